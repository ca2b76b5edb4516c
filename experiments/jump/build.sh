#!/usr/bin/env bash
# Rebuild the trained weights that come with SelfDraft:  experiments/jump/build.sh PROMPTS [FOLDER]
#
# PROMPTS: a file in Spec-Bench's schema; the first eight prompts of each family are held out.
# FOLDER: for texts and runs; without it, outputs/shipped.
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,5s/^# \?//p' "$0"; exit 0 ;; esac
[ $# -ge 1 ] || { sed -n '2,5s/^# \?//p' "$0" >&2; exit 2; }
[ -f "$1" ] || { echo "$0: there is no file '$1'; give a file of prompts" >&2; exit 2; }
prompts=$(realpath "$1")
cd "$(dirname "$0")/../.."
folder=${2:-outputs/shipped}
python=${PYTHON:-.venv/bin/python}

"$python" run.py task=distill_data drafter=none model.dtype=float32 dataset=jsonl dataset.path="$prompts" \
  dataset.skip_per_category=8 decoding.max_new_tokens=160 hydra.run.dir="$folder/asked"
"$python" run.py task=distill_data drafter=none model.dtype=float32 dataset=bundled dataset.limit=1 distill.invented=850 \
  decoding=sample decoding.temperature=0.8 decoding.max_new_tokens=192 hydra.run.dir="$folder/invented"
"$python" run.py task=finetune finetune=jump "finetune.data=[$folder/asked,$folder/invented]" 'finetune.copies=[28,29]' \
  finetune.learning_rate=1e-3 finetune.steps=1100 finetune.minutes=48 finetune.validation=0.05 finetune.validate_every=60 \
  finetune.patience=100 hardware.threads=1 hydra.run.dir="$folder/jump"
"$python" scripts/ship_weights.py "$folder/jump" jump --command "experiments/jump/build.sh PROMPTS" \
  --data "the model's answers: greedy ones to every second question of Spec-Bench, without the first eight of each family, and sampled ones to prompts that it invented"
