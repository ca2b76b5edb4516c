"""Audit answers of transformers' own batched generate in bfloat16, on random tiny models of all families.

python experiments/audit/tiny.py 3        (number of models of each family)
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from batched_answers import LENGTH, PAD, batched, ending_model, prompts_of
from selfdraft.core.sampling import NextToken
from selfdraft.decoding.audit import Auditor
from selfdraft.decoding.certify import Certifier
from selfdraft.models.target import Target
from selfdraft.models.tiny import FAMILIES

torch.set_num_threads(1)
audits: Counter[str] = Counter()
by_stock: Counter[str] = Counter()
for family in FAMILIES:
    for seed in range(int(sys.argv[1])):
        model, eos = ending_model(family, torch.bfloat16, seed)
        certifier = Certifier(Target(model), NextToken())
        auditor = Auditor(certifier, {eos}, {PAD})
        for batch in range(3):
            prompts = prompts_of(batch, 8)
            for prompt, answer in zip(prompts, batched(model, prompts, eos), strict=True):
                found = auditor.audit(prompt, answer, limit=LENGTH)
                audits[found.verdict] += 1
                by_stock[certifier.by_stock(prompt, found.output).verdict] += 1
print("audit", dict(audits), "certificate without the two tokens' own rounding", dict(by_stock))
