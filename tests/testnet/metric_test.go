package testnet

import "testing"

func TestSumSeries(t *testing.T) {
	const text = `# HELP request_total Requests.
# TYPE request_total counter
request_total{direction="outbound",src="shop/a b",dst="shop/web"} 3
request_total{direction="inbound",src="shop/a b",dst="shop/web"} 4
request_total_created{direction="outbound"} 100
request_total 1e3
`
	for _, tc := range []struct {
		name  string
		parts []string
		want  float64
	}{
		{"request_total", nil, 1007},
		{"request_total", []string{`direction="outbound"`}, 3},
		{"request_total", []string{`src="shop/a b"`, `direction="inbound"`}, 4},
		{"request_total", []string{`dst="none"`}, 0},
		{"request", nil, 0},
	} {
		if got, err := sumSeries(text, tc.name, tc.parts); err != nil || got != tc.want {
			t.Errorf("%s %v: %v, %v; want %v", tc.name, tc.parts, got, err, tc.want)
		}
	}
	if _, err := sumSeries("request_total x\n", "request_total", nil); err == nil {
		t.Error("a value that is no number is accepted")
	}
}
