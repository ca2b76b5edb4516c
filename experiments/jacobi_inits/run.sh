#!/usr/bin/env bash
# The runs of this study:  experiments/jacobi_inits/run.sh <prompts.jsonl> [more overrides]
# One process at a time; a run that is finished is not repeated.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,3s/^# \?//p' "$0"; exit 0 ;; esac
[ -f "${1:-}" ] || { echo "$0: there is no file '${1:-}'; give a file of prompts" >&2; exit 2; }
set -- "$(realpath "$1")" "${@:2}"
cd "$(dirname "$0")/../.."
PROMPTS=$1
shift
OUT=outputs/jacobi_inits
JACOBI="drafter=jacobi drafter.costs=flat drafter.candidates=1"  # whole blocks, one at a time
run() {
  name=$1
  shift
  python run.py dataset=jsonl dataset.path="$PROMPTS" dataset.per_category=8 logger=none hydra.run.dir="$OUT/$name" "$@"
}
# What an init is worth alone (dropped after every pass), and with what its passes leave carried over.
for init in prompt_random repeat_last pad ngram; do
  run "fresh-$init" $JACOBI drafter.init=$init drafter.refine_steps=1 "$@"
  run "carried-$init" $JACOBI drafter.init=$init drafter.refine_steps=16 "$@"
done
run carried-previous_tail $JACOBI drafter.init=previous_tail "$@"
# What refinement adds to a good block: the block alone, the block or what was carried over, both side by side.
run lookup drafter=prompt_lookup drafter.draft_length=8 drafter.costs=flat "$@"
run both-ngram drafter=jacobi drafter.init=ngram drafter.refine_steps=16 drafter.candidates=2 drafter.costs=flat "$@"
# The literal figure, and its parts refined one after the other.
run literal drafter=jacobi drafter.init=ngram drafter.mode=literal drafter.refine_steps=1 "$@"
run gauss_seidel drafter=jacobi drafter.init=ngram drafter.mode=literal drafter.refine_steps=1 \
  drafter.order=gauss_seidel "$@"
python experiments/jacobi_inits/table.py "$OUT"/*/
