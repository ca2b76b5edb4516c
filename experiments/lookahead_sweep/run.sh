#!/usr/bin/env bash
# The sweep of this study:  experiments/lookahead_sweep/run.sh <prompts.jsonl> [more overrides]
# Writes outputs/lookahead_sweep/sweep.csv; the same command again goes on where it stopped.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,3s/^# \?//p' "$0"; exit 0 ;; esac
[ -f "${1:-}" ] || { echo "$0: there is no file '${1:-}'; give a file of prompts" >&2; exit 2; }
set -- "$(realpath "$1")" "${@:2}"
cd "$(dirname "$0")/../.."
PROMPTS=$1
shift
python run.py -m drafter=lookahead drafter.window=4,7,12 drafter.ngram=3,5,7 drafter.guesses=2,7 \
  dataset=jsonl dataset.path="$PROMPTS" dataset.per_category=1 decoding.max_new_tokens=64 logger=none \
  hydra.sweep.dir=outputs/lookahead_sweep "$@"
python experiments/lookahead_sweep/plot.py outputs/lookahead_sweep/sweep.csv
