"""A folder with trained draft weights that others can use: a peft adapter, and beside it what peft has no place for.

`peft.PeftModel.from_pretrained(base, FOLDER)` loads the adapter. `drafter.from=FOLDER` drafts as from the folder of the
task=finetune run: selfdraft.safetensors has every trained tensor, also those of the peft adapter, and drafter.yaml has
the drafter's options.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from selfdraft.core.errors import UserError
from selfdraft.models.trained.adapter import FEATURE, Adapter
from selfdraft.models.trained.adapter import FILE as WEIGHTS
from selfdraft.models.trained.peft_format import PeftAdapter
from selfdraft.tracking.files.artifact import ADAPTER, FILE, Artifact

BESIDE = "selfdraft.safetensors"  # the weights that our own drafters read

README = """---
library_name: peft
tags: [selfdraft, speculative-decoding]
{base_model}---
# Draft weights for {label}

Trained by SelfDraft's recipe `{recipe}`: they draft for the model that they were trained on, which verifies every token
and whose output stays what it is. As a peft adapter:

```python
model = PeftModel.from_pretrained(base, "<this folder>")
```

Drafting with them, in SelfDraft:

```bash
python run.py drafter.from=<this folder> {arguments}
```

{notes}
"""


def refuse_folder_of_others(folder: Path, option: str, mark: str = BESIDE) -> None:
    """Check that the folder is a new one, empty, or that of an earlier export.

    Args:
        mark: the file by which an earlier export is known.

    Raises:
        UserError: it holds something else; the message names `option`.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / mark).is_file())):
        raise UserError(
            f"{option}={folder} holds something else: give an empty folder, a new one or that of an earlier export"
        )


def write_peft_folder(
    folder: Path, artifact: Artifact, adapter: Adapter, peft: PeftAdapter, *, hub_id: str | None, arguments: str
) -> None:
    """Write the folder.

    Args:
        artifact, adapter, peft: what task=finetune wrote, and its weights in peft's format.
        hub_id: of the base model; None if it is not on a hub.
        arguments: how the command line of SelfDraft names the base model.
    """
    peft.write(folder, base=hub_id or artifact.model["label"])
    adapter.write(folder)
    (folder / WEIGHTS).replace(folder / BESIDE)
    replace(artifact, options={**artifact.options, ADAPTER: BESIDE}).write(folder / FILE)
    text = README.format(
        base_model=f"base_model: {hub_id}\n" if hub_id else "",
        label=artifact.model["label"],
        recipe=adapter.recipe,
        arguments=arguments,
        notes=_notes(adapter),
    )
    (folder / "README.md").write_text(text.replace(" \n", "\n"), encoding="utf-8")


def _notes(adapter: Adapter) -> str:
    """Return the paragraph that says what peft leaves out."""
    settings = adapter.settings
    notes = ["What a peft adapter has no place for:", ""]
    attention, mlp = settings.get("skip_attention") or [], settings.get("skip_mlp") or []
    if attention or mlp:
        notes.append(
            f"- Drafts skip the attention of layers {attention} and the MLP of layers {mlp} (counted from 0). peft "
            "runs all of them, so what it makes of these weights is not what drafts."
        )
    if "pseudo" in adapter.tensors:
        notes.append(
            f"- {len(adapter.tensors['pseudo'])} pseudo tokens (`pseudo`). The LoRA is only for their rows; peft "
            "applies it to every token."
        )
    if "mask" in adapter.tensors:
        notes.append(
            f"- The inputs of {len(adapter.tensors['mask'])} gated rows (`mask`, `feed.*`), which enter before layer "
            f"{settings.get('first', 0)}. The LoRA is only for their rows; peft applies it to every token."
        )
    if adapter.under("sampler."):
        notes.append("- The sampler, which knows the token drafted before (`sampler.*`).")
    if adapter.under("markov.") or adapter.under("confidence."):
        notes.append("- Other heads that know the token drafted before (`markov.*`, `confidence.*`).")
    if "vocabulary" in adapter.tensors:
        notes.append(f"- Drafts use only {len(adapter.tensors['vocabulary'])} of the model's ids (`vocabulary`).")
    if FEATURE in adapter.tensors:
        notes.append(f"- The matrix for the last committed token's final hidden state (`{FEATURE}`).")
    if not notes[2:]:
        notes = ["All that was trained is in the peft adapter."]
    notes += ["", f"`{BESIDE}` holds every trained tensor and what is skipped, `{FILE}` the drafter's options."]
    return "\n".join(notes)
