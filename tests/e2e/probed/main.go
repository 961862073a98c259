// Command probed is an application that answers what kubelets ask by one protocol: http on port 8080, tcp on 8081, grpc on 8082.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

var protocols = map[string]struct {
	port  string
	serve func(net.Listener) error
}{"http": {":8080", web}, "tcp": {":8081", mute}, "grpc": {":8082", rpc}}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "probed:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 || protocols[args[0]].serve == nil {
		return fmt.Errorf("usage: probed http|tcp|grpc")
	}
	p := protocols[args[0]]
	l, err := net.Listen("tcp", p.port)
	if err != nil {
		return err
	}
	return p.serve(l)
}

// web logs who asks.
func web(l net.Listener) error {
	return http.Serve(l, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		fmt.Println(r.URL.Path, "asked by", r.RemoteAddr)
	}))
}

func mute(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		c.Close()
	}
}

func rpc(l net.Listener) error {
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	return s.Serve(l)
}
