package main

import (
	"slices"
	"time"
)

// spread is how long something took: milliseconds.
type spread struct {
	P50, P99, Max float64
	N             int
}

func spreadOf(all []time.Duration) spread {
	if len(all) == 0 {
		return spread{}
	}
	slices.Sort(all)
	ms := func(i int) float64 { return float64(all[i].Microseconds()) / 1000 }
	return spread{ms(len(all) / 2), ms(len(all) * 99 / 100), ms(len(all) - 1), len(all)}
}

// taken is the CPU time, in seconds, of the controller, the API server, and the process of all agents.
type taken struct{ Controller, API, Agents float64 }

func takenOf(c cpus) taken { return taken{c.controller.Seconds(), c.api.Seconds(), c.agents.Seconds()} }

// memory is bytes.
type memory struct{ RSS, Anon, Heap int64 }

// point is what was measured at one size. Times are seconds unless they say otherwise; CPU is of both cores together.
type point struct {
	When                  string
	Nodes, Pods, Services int

	Written       int     // objects' writes to make the cluster
	WrittenRate   float64 // a second
	Load          load
	Alone         memory  // with no agent
	AloneCPU      float64 // percent of one core, at rest
	First         float64 // ms from the connect of one agent, alone, to its complete snapshot
	Together      crowd   // all agents at once, with tokens that the controller does not know
	Enrol         enrol
	Rest          memory  // with all agents
	RestCPU       float64 // percent of one core, at rest
	RestBytes     float64 // that one agent's discovery is sent in a second, at rest
	Change        change
	Herd          herd
	Policy        policy
	Held          held
	Rate          float64 // of changes, a second
	Crowd         float64 // the computer's load, of the last minute, when changes began
	APIServerPeak int64
}

// load is a controller's start.
type load struct {
	Ready, CPU float64
	Peak       int64
}

// crowd are agents that come at once.
type crowd struct {
	Snapshot spread // from an agent's first connect to its complete snapshot
	CPU      taken  // until the last has it
	Peak     int64
	Deferred int   // streams that were told to come again
	Bytes    int64 // of one agent's
}

// enrol is what the agents' first reports cost.
type enrol struct {
	Conditions, Untainted int // that were to be written
	Writes                int // of them, and of those of agents, by the API server's count
	Seconds, MostPerSec   float64
	CPU                   taken
}

// change is what changes of single endpoints cost.
type change struct {
	Changes, Heard, Lost int
	Watch, Agents        spread  // ms since the API server's answer
	Above                spread  // ms between the watch and the agents, of each change
	CPU                  taken   // for each change; the controller's is what goes beyond its rest
	Bytes                float64 // for each change that an agent hears of
	IdleBytes            int64   // to all agents that dial none of what changes
	IdleAgents           int
}

// herd is a controller that is started anew.
type herd struct {
	Drain, Ready float64
	Served       spread // ms from ready to an agent's complete snapshot
	CPU          taken  // until the last has it: of the controller from its start, of the others from ready
	Peak         int64
	Deferred     int
	Writes       int    // of conditions: none is new
	Watch        spread // ms until a plain watch heard of changes of endpoints meanwhile
	Change       spread // of endpoints meanwhile, at agents that were served, ms
	Lost         int
}

// policy is a change of what holds for every pod.
type policy struct {
	Heard spread // ms to each agent
	CPU   float64
	Bytes float64 // for each agent
}

// held is what a Directory holds.
type held struct{ Bytes, Services, Endpoints, Workloads int64 }
