package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"conduit.io/conduit/tests/kernels/plan"
)

const qemuProgram = "qemu-system-x86_64"

var (
	errNoBoot = errors.New("the kernel did not boot in time")
	errSlow   = errors.New("the tests did not end in time")
)

// qemu boots a kernel and reads its console until the machine is off. What the tests did is in r; the error is about the
// machine.
func (c *config) qemu(ctx context.Context, k kernel, image string, r *result) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer time.AfterFunc(c.limit, func() { cancel(errSlow) }).Stop()
	boot := time.AfterFunc(c.boot, func() { cancel(errNoBoot) })
	defer boot.Stop()
	r.onBoot = func() { boot.Stop() }

	cmd := exec.CommandContext(ctx, qemuProgram, "-accel", c.accel, "-cpu", "max", "-smp", strconv.Itoa(c.cpus),
		"-m", strconv.Itoa(c.memory), "-net", "none", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", k.image, "-initrd", image, "-append", "console="+plan.Console+" panic=-1 quiet")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	cmd.Stderr = os.Stderr
	console, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := r.read(console)
	err = errors.Join(readErr, cmd.Wait())
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errNoBoot):
		return fmt.Errorf("%w: %v (-boot-timeout)", cause, c.boot)
	case errors.Is(cause, errSlow):
		return fmt.Errorf("%w: %v (-timeout)", cause, c.limit)
	case cause != nil:
		return cause
	case err != nil:
		return fmt.Errorf("%s: %w", qemuProgram, err)
	}
	return nil
}
