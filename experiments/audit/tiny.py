"""Audit answers of transformers' own batched generate in bfloat16, on random tiny models of all families.

    python experiments/audit/tiny.py [--models 3]

Prints how often the audit, and how often the certificate of evaluations, called such a clean answer exact, a tie or a
mismatch.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch

from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.core.sampling import NextToken
from selfdraft.decoding.audit import Auditor
from selfdraft.decoding.certify import Certifier
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))  # whose batches and prompts these are

from batched_answers import LENGTH, PAD, batched, ending_model, prompts_of

BATCHES, ROWS = 3, 8


@one_line_script("tiny")
def main(arguments: list[str]) -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=3, help="of each family (default: 3)")
    given = parser.parse_args(arguments)
    if given.models < 1:
        raise UserError("--models: at least 1")
    torch.set_num_threads(1)
    audits, certificates = Counter[str](), Counter[str]()
    for family in FAMILIES:
        for seed in range(given.models):
            model, eos = ending_model(family, torch.bfloat16, seed)
            certifier = Certifier(Target(model), NextToken())
            auditor = Auditor(certifier, {eos}, {PAD})
            for batch in range(BATCHES):
                prompts = prompts_of(batch, ROWS)
                for prompt, answer in zip(prompts, batched(model, prompts, eos), strict=True):
                    found = auditor.audit(prompt, answer, limit=LENGTH)
                    audits[found.verdict] += 1
                    certificates[certifier.by_stock(prompt, found.output).verdict] += 1
        print(f"{family}: audit {dict(audits)}, certificate of evaluations {dict(certificates)}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
