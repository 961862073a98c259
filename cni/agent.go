package cni

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"conduit.io/conduit/api/frame"
	"conduit.io/conduit/api/podapi"
)

// ErrMismatch is the code of a CHECK that found the pod wired otherwise than it should be. The specification leaves
// codes from 100 to plugins.
const ErrMismatch uint = 100

// ask makes one call to the agent. An error is a *podapi.Error when the agent answered, and otherwise from the
// socket. It never takes longer than the configured timeout.
func ask(conf *Conf, req *podapi.Request, timeout time.Duration) (*podapi.Response, error) {
	timeout = min(timeout, conf.Timeout)
	deadline := time.Now().Add(timeout)
	conn, err := frame.Dial(conf.AgentSocket, timeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	if err := conn.Send(req); err != nil {
		return nil, err
	}
	var resp podapi.Response
	files, err := conn.Receive(&resp)
	frame.CloseAll(files)
	if err != nil {
		return nil, err
	}
	if resp.Error != nil {
		return nil, resp.Error
	}
	return &resp, nil
}

// toCNI turns an error of ask into what a user reads in the pod's events: what happened, why, what to do.
func toCNI(err error, req *podapi.Request, conf *Conf) *types.Error {
	var said *podapi.Error
	if errors.As(err, &said) {
		message := fmt.Sprintf("the conduit agent refused %s: %s", subject(req), said.Message)
		return types.NewError(codeOf(said.Code, req.Op), message, said.Hint)
	}
	message := fmt.Sprintf("%s: ", subject(req))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return types.NewError(types.ErrTryAgainLater, message+fmt.Sprintf("the conduit agent's socket %s does not exist", conf.AgentSocket),
			"is the agent running on this node? "+hintAgent)
	case errors.Is(err, syscall.ECONNREFUSED):
		return types.NewError(types.ErrTryAgainLater, message+fmt.Sprintf("nobody listens on the conduit agent's socket %s", conf.AgentSocket),
			"the agent has stopped or is starting: "+hintAgent)
	case errors.Is(err, fs.ErrPermission):
		return types.NewError(types.ErrIOFailure, message+fmt.Sprintf("no permission to use the conduit agent's socket %s", conf.AgentSocket),
			"the container runtime must run CNI plugins as root: see `ls -l "+conf.AgentSocket+"`")
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) || isTimeout(err):
		return types.NewError(types.ErrTryAgainLater, message+fmt.Sprintf("the conduit agent at %s did not answer in time (at most %v)", conf.AgentSocket, conf.Timeout),
			"it may be overloaded or stuck: "+hintAgent+`, or raise "timeout" in the conduit-cni configuration`)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
		return types.NewError(types.ErrTryAgainLater, message+fmt.Sprintf("the conduit agent at %s hung up without an answer", conf.AgentSocket),
			"it may have been restarted: "+hintAgent)
	}
	return types.NewError(types.ErrIOFailure, message+fmt.Sprintf("talk to the conduit agent at %s: %v", conf.AgentSocket, err),
		"plugin and agent may be of different versions, or the socket is not the agent's: "+hintAgent)
}

const hintAgent = "look at its log (on Kubernetes: `conduit check`)"

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// subject names what was asked, for messages.
func subject(req *podapi.Request) string {
	switch {
	case req.Op == podapi.GC || req.Op == podapi.Status:
		return fmt.Sprintf("%s of network %s", req.Op, req.Network)
	case req.Pod != "":
		return fmt.Sprintf("%s of pod %s/%s", req.Op, req.Namespace, req.Pod)
	}
	return fmt.Sprintf("%s of container %s", req.Op, req.ContainerID)
}

// codeOf maps the agent's codes to those of the specification (section 2, "Error").
func codeOf(c podapi.Code, op podapi.Op) uint {
	switch c {
	case podapi.CodeNotReady:
		return types.ErrTryAgainLater
	case podapi.CodeUnknownPod:
		if op == podapi.Check {
			return types.ErrUnknownContainer
		}
		return types.ErrTryAgainLater // the agent may hear of the pod later than the runtime
	case podapi.CodeBadRequest:
		return types.ErrInvalidEnvironmentVariables
	case podapi.CodeBadNetns:
		return types.ErrInvalidNetNS
	case podapi.CodeMismatch:
		return ErrMismatch
	}
	return types.ErrInternal
}
