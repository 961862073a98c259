package install

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// place is a file that is locked while the plugin is in place, so that others see it, and see that somebody looks after it: the
// kernel takes the lock away from a process that dies. The lock is one for reading: several may hold it, as when another program takes
// over. The zero value is not locked.
type place struct {
	path string // empty: nobody wants to know
	file *os.File
}

// tell locks the file if the plugin is in place, and else gives the lock back.
func (p *place) tell(inPlace bool) error {
	if p.path == "" || inPlace == (p.file != nil) {
		return nil
	}
	if !inPlace {
		p.close()
		return nil
	}
	f, err := os.OpenFile(p.path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("tell that the plugin is in place: %w", err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != nil {
		f.Close()
		return fmt.Errorf("tell that the plugin is in place: lock %s: %w", p.path, err)
	}
	p.file = f
	return nil
}

func (p *place) close() {
	if p.file != nil {
		p.file.Close()
		p.file = nil
	}
}
