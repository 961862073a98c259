package main

import (
	"encoding/json"
	"os"
	"time"

	"conduit.io/conduit/tests/load/drive"
)

// newsEvery is how often a report is written anew.
const newsEvery = 500 * time.Millisecond

// news is a file that tells how a load goes. It is written by the load's thread, and always whole.
type news struct {
	file string
	last time.Time
	err  error // the first; told at the end
}

type newsText struct {
	*drive.Result
	Ended bool `json:"ended"`
}

func follow(file string) *news { return &news{file: file} }

// now writes what has become until now, if it is time.
func (n *news) now(r *drive.Result) {
	if time.Since(n.last) >= newsEvery {
		n.last = time.Now()
		n.write(newsText{r, false})
	}
}

// end writes the result, and returns what went wrong with the file.
func (n *news) end(r *drive.Result) error {
	n.write(newsText{r, true})
	return n.err
}

func (n *news) write(t newsText) {
	data, err := json.Marshal(t)
	if err == nil {
		err = os.WriteFile(n.file+".new", data, 0o644)
	}
	if err == nil {
		err = os.Rename(n.file+".new", n.file)
	}
	if n.err == nil {
		n.err = err
	}
}
