package server

import "net/http"

// allow is what pages of other origins may send, and expose what they may read of the answer: what the Connect protocol and gRPC-Web need.
const (
	allow  = "Authorization, Content-Type, Connect-Protocol-Version, Connect-Timeout-Ms, Grpc-Timeout, X-Grpc-Web, X-User-Agent"
	expose = "Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, Retry-After"
)

// fromPages lets browsers call on behalf of pages of any origin (Fetch standard, CORS protocol). That gives nobody a right: whoever
// calls is known by a token that the page itself must have, and by nothing that a browser would add.
func fromPages(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" {
			h := w.Header()
			h.Set("Access-Control-Allow-Origin", "*")
			h.Set("Access-Control-Expose-Headers", expose)
			if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
				h.Set("Access-Control-Allow-Methods", http.MethodPost)
				h.Set("Access-Control-Allow-Headers", allow)
				h.Set("Access-Control-Max-Age", "7200")
				w.WriteHeader(http.StatusNoContent)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}
