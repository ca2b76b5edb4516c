#!/usr/bin/env bash
# The sweep of this study:  experiments/lookahead_sweep/run.sh <prompts.jsonl> [more overrides]
# Writes outputs/lookahead_sweep/sweep.csv; the same command again goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
PROMPTS=$1
shift
python run.py -m drafter=lookahead drafter.window=4,7,12 drafter.ngram=3,5,7 drafter.guesses=2,7 \
  dataset=jsonl dataset.path="$PROMPTS" dataset.per_category=1 decoding.max_new_tokens=64 logger=none \
  hydra.sweep.dir=outputs/lookahead_sweep "$@"
python experiments/lookahead_sweep/plot.py outputs/lookahead_sweep/sweep.csv
