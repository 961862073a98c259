package hostile

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"conduit.io/conduit/mesh"
	"conduit.io/conduit/tests/load/drive"

	"golang.org/x/sys/unix"
)

// period is how long the bystanders are measured at a time.
const period = 2 * time.Second

// attackEnv makes the test binary an attacker: the attack's name and the proxy's address.
const attackEnv = "CONDUIT_HOSTILE_ATTACK"

// everything is all attacks that need no clock of the proxy.
func everything() []attack { return append(append(slices.Clone(floods), hoards...), legit...) }

// legit are loads, not attacks: what the others must expect of their neighbours anyway.
var legit = []attack{
	{name: "nothing", kind: mesh.AbuseNone, strike: func(f *field) error { return f.wait(0) }},
	{name: "a busy neighbour", kind: mesh.AbuseNone, strike: func(f *field) error {
		_, err := drive.Run(context.Background(), drive.Config{
			Target: netip.MustParseAddrPort(f.addr), Protocol: drive.H2C, Connections: 10, Streams: 10, Duration: period, Path: "/", Method: "GET", Expect: -1, Status: 200,
		})
		return err
	}},
}

// attackFor is the attacker's process: two at a time, until it is killed.
func attackFor(spec string) {
	name, addr, _ := strings.Cut(spec, "@")
	for _, a := range everything() {
		if a.name != name {
			continue
		}
		for range 2 {
			go func() {
				for {
					_ = a.strike(&field{addr: addr}) // whatever becomes of it
				}
			}()
		}
		select {}
	}
	fmt.Fprintf(os.Stderr, "no attack is called %q\n", name)
	os.Exit(1)
}

// BenchmarkAttacks measures the bystanders in turn without an attack, while another proxy on the same machine is attacked,
// and while theirs is. The difference of the last two is what the attacker takes from them; that of the first two is what
// the machine does. Attackers get what processor time the others leave. On a machine that has other things to do:
//
//	go test -c ./tests/hostile && chrt -r 1 ./hostile.test -test.run '^$' -test.bench 'Attacks/PING$' -test.benchtime 5x
func BenchmarkAttacks(b *testing.B) {
	app := serve(b)
	for _, a := range everything() {
		b.Run(strings.ReplaceAll(a.name, " ", "_"), func(b *testing.B) {
			p, other := start(b, to(app, "detect")), start(b, to(serve(b), "detect"))
			var quiet, beside, under sample
			for b.Loop() {
				quiet.take(b, p, "")
				beside.take(b, p, a.name+"@"+other.addrs[0])
				under.take(b, p, a.name+"@"+p.addrs[0])
			}
			for _, s := range []struct {
				name string
				*sample
			}{{"quiet", &quiet}, {"beside", &beside}, {"under", &under}} {
				b.ReportMetric(median(s.p50), s.name+"-p50-us")
				b.ReportMetric(median(s.p99), s.name+"-p99-us")
			}
			b.ReportMetric(median(under.cpu)-median(beside.cpu), "cpu-s/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// sample is what the bystanders saw: the worse of the two protocols, in each period.
type sample struct{ p50, p99, cpu []float64 }

func (s *sample) take(b *testing.B, p *process, spec string) {
	b.Helper()
	if spec != "" {
		defer attacker(b, spec)()
	}
	before := p.cpu()
	results := make(chan outcome, 2)
	for _, protocol := range []drive.Protocol{drive.H2C, drive.HTTP1} {
		go func() {
			r, err := drive.Run(b.Context(), drive.Config{
				Target: netip.MustParseAddrPort(p.addrs[0]), Protocol: protocol, Open: true, Connections: 8, Streams: 1, Rate: 500,
				Duration: period, Path: "/bytes/1000", Method: "GET", Timeout: time.Minute, Expect: 1000, Status: 200,
			})
			results <- outcome{r, err, protocol}
		}()
	}
	p50, p99 := 0.0, 0.0
	for range 2 {
		o := <-results
		if o.err != nil || o.Failed > 0 {
			b.Fatalf("bystander %s: %v, %+v", o.who, o.err, o.Result)
		}
		p50, p99 = max(p50, o.Latency.P50), max(p99, o.Latency.P99)
	}
	s.p50, s.p99 = append(s.p50, p50), append(s.p99, p99)
	s.cpu = append(s.cpu, (p.cpu()-before).Seconds()/period.Seconds())
}

// attacker starts a process that attacks; the function that it returns ends it.
func attacker(b *testing.B, spec string) func() {
	b.Helper()
	cmd := exec.Command("nice", "-n", "19", os.Args[0])
	realTime := false
	if attr, err := unix.SchedGetAttr(0, 0); err == nil && attr.Priority > 0 {
		realTime = true // for the proxy and the bystanders; attackers have what is left, before all others on the machine
		cmd = exec.Command("chrt", "-o", "0", os.Args[0])
	}
	cmd.Env = append(os.Environ(), attackEnv+"="+spec)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	if realTime {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", cmd.Process.Pid), []byte("-20"), 0) // where there are autogroups
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// cpu is the processor time that the proxy has used.
func (p *process) cpu() (sum time.Duration) {
	p.t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil || len(tasks) == 0 {
		p.t.Fatal("the proxy has no threads", err)
	}
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64)
		if err != nil {
			p.t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}

func median(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}
