"""A folder with a trained jump in the layout of speculators, and in a subfolder what our own drafters read.

The subfolder is there because vLLM takes every file of weights that lies beside config.json.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from selfdraft.models.trained.adapter import FILE as WEIGHTS
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.trained.speculators_format import KIND, SpeculatorsCheckpoint
from selfdraft.tracking.files.artifact import ADAPTER, FILE, Artifact

OWN = "selfdraft"  # the subfolder
OWN_WEIGHTS = f"{OWN}/{WEIGHTS}"

README = """---
tags: [selfdraft, speculators, speculative-decoding]
---
# A draft head for {base}

Trained by SelfDraft's recipe `{recipe}`, in the layout of vllm-project/speculators, kind `{kind}`: embeddings and head
are those of the model. In a text, this head reads keys of its own, computed from the states that it predicts. It was
trained to read the keys of the full model instead, so it drafts other tokens there than in SelfDraft: measure its
acceptance, or train it further.

Drafting as it was trained, in SelfDraft:

```bash
python run.py drafter.from=<this folder>/{own} {arguments}
```
"""


def write_speculators_folder(
    folder: Path, artifact: Artifact, adapter: Adapter, checkpoint: SpeculatorsCheckpoint, *, base: str, arguments: str
) -> None:
    """Write the folder.

    Args:
        artifact, adapter, checkpoint: what task=finetune wrote, its weights, and these in the layout of speculators.
        base: hub id or label of the model.
        arguments: how the command line of SelfDraft names the model.
    """
    checkpoint.write(folder)
    adapter.write(folder / OWN)
    replace(artifact, options={**artifact.options, ADAPTER: "."}).write(folder / OWN / FILE)
    text = README.format(base=base, recipe=adapter.recipe, kind=KIND, own=OWN, arguments=arguments)
    (folder / "README.md").write_text(text.replace(" \n", "\n"), encoding="utf-8")
