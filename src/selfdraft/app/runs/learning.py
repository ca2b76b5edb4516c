"""What an evaluation with drafter.learn=true leaves: the learned weights, the learning curve and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdraft.app.options.schemas import Config
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.session import shown
from selfdraft.core.errors import UserError
from selfdraft.core.messages import harmless
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import PRESETS
from selfdraft.modules.bench import Bench
from selfdraft.modules.online import OnlineLearner, acceptance_of, learns
from selfdraft.tracking.display.picture import plot_learning
from selfdraft.tracking.files.artifact import FILE, Artifact
from selfdraft.tracking.files.records import PROMPTS, record_path

KEPT = ("draft_length", "length", "siblings", "reuse", "bonus")  # options that the artifact takes over from the run
PICTURE = "learning.png"


def refuse_learning(config: Config, folder: Path) -> None:
    """Refuse drafter.learn=true where the run cannot learn.

    Raises:
        UserError: it has several processes, each of which would learn other weights, repeats its prompts, or would go
            on with an earlier run, whose optimizer and texts are lost.
    """
    if not learns(config.drafter):
        return
    if record_path(folder, name=PROMPTS).exists():
        raise UserError(f"drafter.learn=true: {shown(folder)} has prompts of an earlier run; use a new folder")
    if config.hardware.devices > 1:
        raise UserError("drafter.learn=true: every process would learn weights of its own; use hardware.devices=1")
    if getattr(config.task, "repeats", 1) > 1:
        raise UserError("drafter.learn=true: repeats would draft with what the first taught; use task.repeats=1")


def conclude_learning(run: Run, bench: Bench, learner: OnlineLearner, lines: Sequence[Mapping[str, Any]]) -> dict:
    """Write the learned weights and the picture into the run's folder; return the learning curve for result.json.

    Args:
        lines: of the prompts, in the order in which they were decoded.
    """
    folder, config = run.folder, run.config
    rates = acceptance_of(lines)
    learner.adapter().write(folder)
    options = {"adapter": ".", **{name: getattr(learner.config, name) for name in KEPT}}
    model = {"label": config.model.label, "dtype": config.model.dtype, "fingerprint": bench.fingerprint}
    curve: dict[str, Any] = {
        "steps": learner.steps,
        "learning_s": learner.seconds,
        "acceptance_by_prompt": rates,
        "first_half": _mean(rates[: len(rates) // 2]),
        "second_half": _mean(rates[len(rates) // 2 :]),
    }
    objective = {"name": "first_token_acceptance", "method": "online", "value": curve["second_half"], **curve}
    Artifact(_preset(learner.drafter.config), options, model, objective, []).write(folder / FILE)
    with harmless(f"{PICTURE} was not drawn"):
        plot_learning(rates, folder / PICTURE)
    first, second = curve["first_half"], curve["second_half"]
    run.console.print(
        f"learned in {learner.steps} steps between prompts, {learner.seconds:.1f} s besides decoding: of first drafted "
        f"tokens {first:.2f} were accepted in the first half of the prompts, {second:.2f} in the second; "
        f"{shown(folder)}/{FILE}"
    )
    return curve


def _preset(config: DrafterConfig) -> str:
    """Return the name of the preset that a drafter's weights are used by."""
    return config.label if config.label in PRESETS else "early_exit"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
