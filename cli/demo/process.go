package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"conduit.io/conduit/cli/demoapp"
	"conduit.io/conduit/cli/lab"
)

// process is one process of the application in its pod. It ends when its standard input does, so it does not outlive
// this process, however that ends. Only one command may be under way.
type process struct {
	place  placement
	pod    *lab.Pod
	in     io.WriteCloser
	log    string
	events chan demoapp.Event // closed when the process has ended
}

// startProcess starts the application's role in pod and waits until it serves. targets are its servers' addresses.
func startProcess(ctx context.Context, program []string, place placement, pod *lab.Pod, targets map[string]string,
	rate float64, dir string) (*process, error) {
	cfg := demoapp.Config{Role: place.role, Name: place.name(), Node: nodeNames[place.node], Targets: targets, Rate: rate}
	if place.role != demoapp.Loadgen {
		cfg.Listen = net.JoinHostPort("", strconv.Itoa(appPort))
	}
	arg, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	p := &process{place: place, pod: pod, log: filepath.Join(dir, place.name()+".log"), events: make(chan demoapp.Event, 4)}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// Not ctx: after Ctrl-C the application is still asked for its counts.
	cmd := pod.Command(context.WithoutCancel(ctx), program[0], append(program[1:len(program):len(program)], string(arg))...)
	cmd.Stderr = log
	if p.in, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", place.name(), err)
	}
	go func() {
		defer close(p.events)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			var e demoapp.Event
			if json.Unmarshal(sc.Bytes(), &e) == nil {
				p.events <- e
			}
		}
		_ = cmd.Wait() // what it wrote to its log says more
	}()
	_, err = p.await(ctx, "ready", 10*time.Second)
	return p, err
}

// ask sends a command and waits for its event.
func (p *process) ask(ctx context.Context, command, event string, limit time.Duration) (demoapp.Event, error) {
	if err := p.say(command); err != nil {
		return demoapp.Event{}, err
	}
	return p.await(ctx, event, limit)
}

func (p *process) say(command string) error {
	if _, err := io.WriteString(p.in, command+"\n"); err != nil {
		return p.ended()
	}
	return nil
}

func (p *process) await(ctx context.Context, event string, limit time.Duration) (demoapp.Event, error) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case e, ok := <-p.events:
		switch {
		case !ok:
			return e, p.ended()
		case e.Event != event:
			return e, fmt.Errorf("%s: %s: %s", p.place.name(), e.Event, e.Error)
		}
		return e, nil
	case <-ctx.Done():
		return demoapp.Event{}, ctx.Err()
	case <-timeout.C:
		return demoapp.Event{}, fmt.Errorf("%s does not say %q within %s", p.place.name(), event, limit)
	}
}

// ended is the error of a process that is not there any more.
func (p *process) ended() error {
	b, _ := os.ReadFile(p.log)
	if said := strings.TrimSpace(string(b)); said != "" {
		return fmt.Errorf("%s ended: %s", p.place.name(), said[max(0, len(said)-500):])
	}
	return errors.New(p.place.name() + " ended unexpectedly")
}

// end lets the process go; its end is not awaited.
func (p *process) end() { p.in.Close() }
