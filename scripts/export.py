"""Export fine-tuned draft weights as a peft adapter:  python scripts/export.py RUN OUT [--push-to-hub OWNER/NAME]

RUN is the folder of a task=finetune run. OUT is the folder that `peft.PeftModel.from_pretrained(base, OUT)` loads. LoRA
becomes peft's LoRA; layers that were trained as a whole, and a trained norm, become its `modules_to_save`. Pseudo
tokens, their sampler, the draft vocabulary and the skip set have no place in a peft adapter. They are written next to
it, to selfdraft.safetensors and drafter.yaml, with which `python run.py drafter.from=OUT` drafts as it does from RUN.
selfdraft.safetensors has every trained tensor, including those of the peft adapter, so that drafting needs only OUT.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import torch
from huggingface_hub import create_repo, upload_folder
from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfdraft.app.errors import one_line_script
from selfdraft.app.schema_model import EmbeddedModelConfig, ModelConfig, PretrainedModelConfig, TinyModelConfig
from selfdraft.core.errors import UserError
from selfdraft.core.paths import expanded
from selfdraft.models.adapter import FEATURE, Adapter
from selfdraft.models.adapter import FILE as WEIGHTS
from selfdraft.models.anatomy import dissect
from selfdraft.models.fingerprint import fingerprint
from selfdraft.models.tiny import FAMILIES
from selfdraft.tracking.artifact import ADAPTER, FILE, Artifact
from selfdraft.tracking.plain import NotPlain, read_plain_yaml

BESIDE = "selfdraft.safetensors"  # the weights that our own drafters read
IN_PEFT = "base_model.model."  # prefix of peft's tensor names

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


def read_run(run: Path) -> tuple[Artifact, Adapter]:
    """Read the artifact and the adapter of a fine-tuning.

    Raises:
        UserError: the folder is not that of a task=finetune run.
    """
    if not (run / FILE).is_file():
        raise UserError(f"{run} holds no {FILE}: give the folder of a task=finetune run")
    artifact = Artifact.read(run)
    if artifact.options.get(ADAPTER) is None:
        raise UserError(
            f"{run} was written by task=calibrate: it says what drafter={artifact.drafter} skips, and no weights were "
            "trained; give the folder of a task=finetune run"
        )
    return artifact, Adapter.read(artifact.options[ADAPTER])


def model_of(run: Path, label: str, path: str | None) -> ModelConfig:
    """Return the model that the weights were trained on: by `path`, by the run's config.yaml, or by its label.

    Raises:
        UserError: the model can only be found with --model.
    """
    labelled = {m.label: m for m in (EmbeddedModelConfig(), *(TinyModelConfig(family=name) for name in FAMILIES))}
    if path is not None:
        return PretrainedModelConfig(path=path)
    if (run / "config.yaml").is_file():
        known = {m().name: m for m in (EmbeddedModelConfig, PretrainedModelConfig, TinyModelConfig)}
        try:
            options = read_plain_yaml(run / "config.yaml")["model"]
            return replace(known[options["name"]].from_plain(options), dtype="bfloat16")
        except (NotPlain, UserError, KeyError, TypeError):
            raise UserError(f"{run / 'config.yaml'} names no model: give its folder or hub id as --model") from None
    if label not in labelled:
        raise UserError(f"{run} has no config.yaml that says where {label} is: give its folder or hub id as --model")
    return labelled[label]


def to_peft(adapter: Adapter, model: PreTrainedModel) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Convert the adapter to peft: return its configuration, and the tensors by peft's names.

    Raises:
        UserError: none of its tensors has a place in a peft adapter, or its LoRA has several ranks.
    """
    anatomy, names = dissect(model), {id(module): name for name, module in model.named_modules()}
    tensors: dict[str, Tensor] = {}
    matrices: list[str] = []
    ranks: set[int] = set()
    whole: list[str] = []

    def save(module: nn.Module, own: Mapping[str, Tensor]) -> None:
        if own:
            whole.append(names[id(module)])
            tensors.update({f"{whole[-1]}.{name}": tensor for name, tensor in own.items()})

    for index, layer in enumerate(anatomy.layers):
        own, lora = adapter.under(f"layer.{index}."), adapter.under(f"lora.{index}.")
        save(layer, own)
        for name in () if own else sorted({key.rpartition(".")[0] for key in lora}):
            matrices.append(f"{names[id(layer)]}.{name}")
            ranks.add(len(lora[f"{name}.A"]))
            tensors |= {f"{matrices[-1]}.lora_{part}.weight": lora[f"{name}.{part}"] for part in "AB"}
    save(anatomy.norm, adapter.under("norm."))
    if not tensors:
        raise UserError(f"recipe '{adapter.recipe}' trained no LoRA, layer or norm: peft has no place for the rest")
    if len(ranks) > 1:
        raise UserError(f"its LoRA has ranks {sorted(ranks)}: only one rank for all matrices is exported")
    rank = ranks.pop() if ranks else 1
    config = LoraConfig(
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=rank,
        lora_alpha=rank * float(adapter.settings["scale"]) if matrices else 1,  # peft scales by alpha / rank
        target_modules=matrices or DUMMY_TARGET_MODULES,
        modules_to_save=whole or None,
    )
    return config, {f"{IN_PEFT}{name}": tensor.contiguous() for name, tensor in tensors.items()}


def readme(artifact: Artifact, adapter: Adapter, model: ModelConfig) -> str:
    """Return the text of README.md: what the weights are, what peft leaves out, and how to draft with them."""
    settings, label, hub, arguments = adapter.settings, artifact.model["label"], "", ""
    if isinstance(model, PretrainedModelConfig):
        is_hub = _is_on_hub(model)
        hub = f"base_model: {model.path}\n" if is_hub else ""
        arguments = f"model=hf model.path={model.path if is_hub else f'<folder of {label}>'}"
    elif isinstance(model, TinyModelConfig):
        arguments = f"model=tiny model.family={model.family} model.seed={model.seed}"
    notes = ["What a peft adapter has no place for:", ""]
    attention, mlp = settings.get("skip_attention") or [], settings.get("skip_mlp") or []
    if attention or mlp:
        notes.append(
            f"- Drafts skip the attention of layers {attention} and the MLP of layers {mlp} (counted from 0). peft "
            "runs them all: what it makes of these weights is not what drafts."
        )
    if "pseudo" in adapter.tensors:
        notes.append(
            f"- {len(adapter.tensors['pseudo'])} pseudo tokens (`pseudo`). The LoRA is for their rows alone; peft "
            "applies it to every token."
        )
    if adapter.under("sampler."):
        notes.append("- The pseudo tokens' sampler (`sampler.*`).")
    if "vocabulary" in adapter.tensors:
        notes.append(f"- Drafts say only {len(adapter.tensors['vocabulary'])} of the model's ids (`vocabulary`).")
    if FEATURE in adapter.tensors:
        notes.append(f"- The matrix for the last committed token's final hidden state (`{FEATURE}`).")
    if not notes[2:]:
        notes = ["All that was trained is in the peft adapter."]
    notes += ["", f"`{BESIDE}` holds every trained tensor and what is skipped, `{FILE}` the drafter's options."]
    return README.format(
        base_model=hub, label=label, recipe=adapter.recipe, arguments=arguments, notes="\n".join(notes)
    ).replace(" \n", "\n")


def _is_on_hub(model: ModelConfig) -> bool:
    return isinstance(model, PretrainedModelConfig) and not expanded(model.path, "--model").is_dir()


def export(run: Path, out: Path, path: str | None = None) -> None:
    """Write the folder `out` from the folder `run`.

    Args:
        path: of the base model, if neither the run's config.yaml nor its label identifies it.

    Raises:
        UserError: there is nothing to export, the base model is another one, or `out` holds something else.
    """
    artifact, adapter = read_run(run)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / BESIDE).is_file())):
        raise UserError(f"{out} holds something else: give an empty folder, a new one or that of an earlier export")
    config = model_of(run, artifact.model["label"], path)
    model = config.load(torch.device("cpu")).model
    artifact.refuse_other_model(str(run), config.label, fingerprint(model))
    lora, tensors = to_peft(adapter, model)
    lora.base_model_name_or_path = config.path if _is_on_hub(config) else artifact.model["label"]
    out.mkdir(parents=True, exist_ok=True)
    lora.save_pretrained(str(out))
    save_file(tensors, out / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    adapter.write(out)
    (out / WEIGHTS).replace(out / BESIDE)
    replace(artifact, options={**artifact.options, ADAPTER: BESIDE}).write(out / FILE)
    (out / "README.md").write_text(readme(artifact, adapter, config), encoding="utf-8")
    if lora.target_modules != DUMMY_TARGET_MODULES:
        print(f"{out}: LoRA of rank {lora.r} on {len(lora.target_modules)} matrices")
    if lora.modules_to_save:
        print(f"{out}: as a whole {', '.join(lora.modules_to_save)}")


def push(folder: Path, repository: str) -> None:
    """Upload the folder to a model repository, which is created as a private one if it does not exist.

    Raises:
        UserError: the hub refuses the upload or cannot be reached.
    """
    try:
        create_repo(repository, private=True, exist_ok=True)  # private, because the owner decides whether to publish it
        print(upload_folder(repo_id=repository, folder_path=folder, commit_message="SelfDraft's draft weights"))
    except (httpx.HTTPError, OSError, ValueError) as error:
        reason = next(iter(str(error).split("\n")), "") or type(error).__name__
        raise UserError(f"--push-to-hub {repository}: {reason}; the folder itself is complete") from None


@one_line_script("export")
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", metavar="PATH", help="folder or hub id of the base model, where the run has moved")
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="upload the folder there afterwards; a new repository is private"
    )
    given = parser.parse_args(arguments)
    export(given.run, given.out, given.model)
    if given.push_to_hub:
        push(given.out, given.push_to_hub)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
