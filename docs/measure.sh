#!/usr/bin/env bash
# Measures what docs/performance.md shows, on this machine: docs/measure.sh [gpu|gpu-models|cpu]... with the binary MEASURE, which is built where it is not given.
# Each word runs the command lines of docs/WORD.txt and writes docs/data/WORD.jsonl. Then: cargo run --example plots -- docs
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${MEASURE:-}" ]; then
  cargo build --release --features cuda --example measure
  MEASURE=target/release/examples/measure
fi
for what in "${@:-cpu}"; do
  "$MEASURE" --from "docs/$what.txt" --json >"docs/data/$what.new"
  mv "docs/data/$what.new" "docs/data/$what.jsonl"
done
