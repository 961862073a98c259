package podnet

import (
	"context"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// dadWait is how long an IPv6 address may still be under duplicate address detection (RFC 4862, 5.4).
	dadWait = 3 * time.Second
	dadPoll = 20 * time.Millisecond
)

// Settle waits until no address in netns is under duplicate address detection any more, which may take a second or two
// after the primary plugin has set it: until then the kernel refuses it as the source of a route. What is still tentative
// after a bound is left to the caller to meet.
func Settle(ctx context.Context, netns *Netns) error {
	ctx, cancel := context.WithTimeout(ctx, dadWait)
	defer cancel()
	tick := time.NewTicker(dadPoll)
	defer tick.Stop()
	for {
		settled, err := settled(netns)
		if settled || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func settled(netns *Netns) (bool, error) {
	settled := true
	list, err := netns.route.AddrList(nil, netlink.FAMILY_V6)
	for _, a := range list {
		tentative := a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&(unix.IFA_F_DADFAILED|unix.IFA_F_OPTIMISTIC) == 0
		settled = settled && (!tentative || !a.IP.IsGlobalUnicast())
	}
	if unsupported(err) {
		err = nil
	}
	return settled, err
}
