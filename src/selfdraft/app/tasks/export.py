"""task=export: write the trained weights of a task=finetune run for peft or speculators, and upload them if asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import torch
from huggingface_hub import create_repo, upload_folder

from selfdraft.app.options.schema_model import ModelConfig, PretrainedModelConfig, TinyModelConfig
from selfdraft.app.options.schema_tasks import PEFT, ExportConfig
from selfdraft.app.runs.build import refuse_a_run_that_cannot_fit, refuse_other_model
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.session import adapter_facts, shown
from selfdraft.core.errors import UserError
from selfdraft.core.paths import expanded
from selfdraft.drafters.chain import ChainConfig
from selfdraft.models.loading.loading import LoadedModel
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.trained.peft_format import to_peft
from selfdraft.models.trained.speculators_format import KIND, VERSION, to_speculators
from selfdraft.tracking.files.artifact import ADAPTER, Artifact
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.peft_folder import BESIDE, refuse_folder_of_others, write_peft_folder
from selfdraft.tracking.files.speculators_folder import OWN_WEIGHTS, write_speculators_folder


def export(run: Run) -> None:
    """Write the folder `task.to`, and what it holds to result.json in the run's folder.

    Raises:
        UserError: drafter.from names no task=finetune run, the model is another one, the folder holds something else,
            the format has no place for the weights, or the hub refuses the upload.
    """
    config, console = run.config, run.console
    task = config.task
    assert isinstance(task, ExportConfig)
    artifact, adapter = finetuned(config.artifact)
    folder = run.folder / task.format if task.to is None else expanded(task.to, "task.to")
    refuse_folder_of_others(folder, "task.to", BESIDE if task.format == PEFT else OWN_WEIGHTS)
    model_config = replace(config.model, packed=False)
    refuse_a_run_that_cannot_fit(replace(config, model=model_config), certify=False, rows=1)
    run.begin(name="export", started=run.folder / "result.json", facts=adapter_facts(config.drafter))
    with console.status(f"loading {config.model.label}"):
        loaded = model_config.load(torch.device("cpu"))
        refuse_other_model(config, loaded.model)
    written = (_as_peft if task.format == PEFT else _as_speculators)(folder, artifact, adapter, loaded, config.model)
    for line in written.said:
        console.print(line)
    console.print(f"written: {shown(folder)}")
    url = None if task.push_to_hub is None else push(folder, task.push_to_hub)
    if url is not None:
        console.print(f"uploaded: {url}")
    result = {
        "task": "export",
        "model": config.model.label,
        "drafter": config.drafter.label,
        "recipe": adapter.recipe,
        "format": task.format,
        "folder": str(folder),
        "url": url,
        **written.counts,
        "parameters": sum(tensor.numel() for tensor in adapter.tensors.values()),
    }
    write_json_atomic(run.folder / "result.json", result)
    run.log(result)


@dataclass(frozen=True)
class _Written:
    """What was written: lines for the user, and entries for result.json."""

    said: Sequence[str]
    counts: Mapping[str, int]


def _as_peft(folder: Path, artifact: Artifact, adapter: Adapter, loaded: LoadedModel, config: ModelConfig) -> _Written:
    peft = to_peft(adapter, loaded.model)
    write_peft_folder(folder, artifact, adapter, peft, hub_id=hub_id(config), arguments=arguments(config))
    lora = [f"LoRA of rank {peft.rank} on {len(peft.matrices)} matrices"] if peft.matrices else []
    whole = [f"trained as a whole: {', '.join(peft.whole)}"] if peft.whole else []
    counts = {
        "lora_rank": peft.rank if peft.matrices else 0,
        "lora_matrices": len(peft.matrices),
        "whole_modules": len(peft.whole),
    }
    return _Written([*lora, *whole], counts)


def _as_speculators(
    folder: Path, artifact: Artifact, adapter: Adapter, loaded: LoadedModel, config: ModelConfig
) -> _Written:
    length = artifact.options.get("draft_length", ChainConfig().draft_length)
    base = hub_id(config) or artifact.model["label"]
    checkpoint = to_speculators(adapter, loaded.model, base=base, draft_length=length)
    write_speculators_folder(folder, artifact, adapter, checkpoint, base=base, arguments=arguments(config))
    said = f"a head of kind {KIND} of speculators {VERSION}: it reads keys of its own, so measure its acceptance there"
    return _Written([said], {"draft_length": length})


def finetuned(path: str | None) -> tuple[Artifact, Adapter]:
    """Read the artifact given as drafter.from, and its weights.

    Raises:
        UserError: there is none, or task=finetune did not write it.
    """
    if path is None:
        raise UserError("task=export needs trained weights: drafter.from=<folder of a task=finetune run>")
    artifact = Artifact.read(Path(path))
    if artifact.options.get(ADAPTER) is None:
        raise UserError(
            f"drafter.from={path} was written by task=calibrate: it says what drafter={artifact.drafter} skips, and no "
            "weights were trained; give the folder of a task=finetune run"
        )
    return artifact, Adapter.read(artifact.options[ADAPTER], "drafter.from")


def hub_id(model: ModelConfig) -> str | None:
    """Return the hub id of a model; None if it is not from a hub."""
    if not isinstance(model, PretrainedModelConfig) or expanded(model.path, "model.path").is_dir():
        return None
    return model.path


def arguments(model: ModelConfig) -> str:
    """Return how the command line names a model, for the README; empty for the default model."""
    if isinstance(model, PretrainedModelConfig):
        return f"model=hf model.path={hub_id(model) or f'<folder of {model.label}>'}"
    if isinstance(model, TinyModelConfig):
        return f"model=tiny model.family={model.family} model.seed={model.seed}"
    return ""


def push(folder: Path, repository: str) -> str:
    """Upload the folder to a model repository, which is created as a private one if it does not exist.

    Returns:
        The address of the upload.

    Raises:
        UserError: the hub refuses the upload or cannot be reached.
    """
    try:
        create_repo(repository, private=True, exist_ok=True)  # private, because the owner decides whether to publish it
        return str(upload_folder(repo_id=repository, folder_path=folder, commit_message="SelfDraft's draft weights"))
    except (httpx.HTTPError, OSError, ValueError) as error:
        reason = next(iter(str(error).split("\n")), "") or type(error).__name__
        raise UserError(f"task.push_to_hub={repository}: {reason}; the folder itself is complete") from None
