#!/usr/bin/env bash
# All runs of this study, then its tables:  experiments/batching/run.sh PROMPTS.jsonl
#
# Runs that are finished are not decoded again, so the command may be stopped and given anew. TOKENS=64 decodes longer
# answers than the usual 32; PYTHON=… names another interpreter, OUT=… another folder for the runs.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,5s/^# \?//p' "$0"; exit 0 ;; esac
[ $# -eq 1 ] || { sed -n '2,5s/^# \?//p' "$0" >&2; exit 2; }
[ -f "$1" ] || { echo "$0: there is no file '$1'; give a file of prompts" >&2; exit 2; }
prompts=$(realpath "$1")
cd "$(dirname "$0")/../.."
python=${PYTHON:-python} out=${OUT:-outputs/batching}

evaluate() { # folder, then overrides
  "$python" run.py hydra.run.dir="$out/$1" logger=none dataset=jsonl dataset.path="$prompts" dataset.per_category=8 \
    'dataset.categories=[translation,qa,math_reasoning]' decoding.max_new_tokens="${TOKENS:-32}" "${@:2}" >"$out/$1.log" || { tail -n 20 "$out/$1.log" >&2; exit 1; }
}

mkdir -p "$out"
for batch in 16 8 4 1; do
  for drafter in none prompt_lookup jacobi layer_skip; do
    evaluate "bf16_${drafter}_$batch" drafter=$drafter decoding.batch_size=$batch
  done
done
for batch in 8 1; do # its baseline is `none`
  evaluate "fp32_prompt_lookup_$batch" drafter=prompt_lookup model.dtype=float32 decoding.batch_size=$batch
done
"$python" experiments/batching/table.py "$out"/bf16_*/ "$out"/fp32_*/
echo
echo "float32, batch 8 against batch 1:"
"$python" scripts/same_outputs.py "$out/fp32_prompt_lookup_1" "$out/fp32_prompt_lookup_8"
