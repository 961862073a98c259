package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// DefaultDir is below which labs keep their directories unless told otherwise.
const DefaultDir = defaultParent

// RemoveLeftovers removes what the lab of that name left behind, in the default places, when its process was killed
// before Close. The caller knows that the process is gone. It is no error when there is nothing.
func RemoveLeftovers(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("remove leftovers: bad lab name %q", name)
	}
	found, err := filepath.Glob(filepath.Join(netnsDir, name+".*"))
	if err != nil {
		return fmt.Errorf("remove leftovers of lab %s: %w", name, err)
	}
	var spaces []*Netns
	for _, path := range found {
		spaces = append(spaces, &Netns{name: filepath.Base(path)})
	}
	errs := []error{killInside(spaces)}
	for _, s := range spaces {
		errs = append(errs, s.remove())
	}
	pins, err := os.ReadDir(DefaultBPFFS)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, p := range pins {
		if strings.HasPrefix(p.Name(), name+"-") {
			errs = append(errs, os.RemoveAll(filepath.Join(DefaultBPFFS, p.Name())))
		}
	}
	errs = append(errs, os.RemoveAll(filepath.Join(DefaultDir, name)))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove leftovers of lab %s: %w", name, err)
	}
	return nil
}
