#!/bin/bash
# Fuzzes every fuzz target of the module in turn, for the time given (default 20s each). Little of it is spent on making
# inputs smaller, which for targets with sockets would take all.
set -euo pipefail
for_each=${1:-20s}
cd "$(dirname "$0")/.."
grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read -r dir; do
  for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | awk '{print $2}'); do
    echo "== $dir $target"
    go test "$dir" -run '^$' -fuzz "^$target\$" -fuzztime "$for_each" -fuzzminimizetime 10x
  done
done
