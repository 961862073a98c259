// Command stopwatch is a CNI plugin that notes when it is called, and passes on what came before it: put around another plugin of a
// chain, it tells what that one costs.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

func main() {
	now := time.Now()
	if err := run(now); err != nil {
		// As CNI wants it ("Error").
		_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"cniVersion": "1.0.0", "code": 100, "msg": err.Error()})
		os.Exit(1)
	}
}

func run(now time.Time) error {
	switch os.Getenv("CNI_COMMAND") {
	case "ADD":
	case "VERSION":
		_, err := fmt.Println(`{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}`)
		return err
	default:
		return nil
	}
	var conf struct {
		Dir        string          `json:"dir"`  // where to note
		Mark       string          `json:"mark"` // which of the chain's stopwatches it is
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&conf); err != nil {
		return err
	}
	file := filepath.Join(conf.Dir, os.Getenv("CNI_CONTAINERID")+"."+conf.Mark)
	if err := os.WriteFile(file, fmt.Append(nil, now.UnixNano()), 0o644); err != nil {
		return err
	}
	_, err := os.Stdout.Write(conf.PrevResult)
	return err
}
