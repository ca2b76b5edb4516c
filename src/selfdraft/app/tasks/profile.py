"""task=profile: measure forwards and their parts on this device; write profile.json, tables and a picture.

The last tables say where a decoding step goes, with each engine (see `profile_steps`).

If the drafter runs a part of the model (`drafter=early_exit`, `drafter.from=RUN`), drafting with it is measured, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from selfdraft.app.options.schema_tasks import ProfileConfig
from selfdraft.app.runs.build import measured_config, refuse_a_run_that_cannot_fit, refuse_other_model
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.session import adapter_facts, shown
from selfdraft.app.tasks.profile_steps import compiled_target, measure_engines
from selfdraft.core.errors import UserError
from selfdraft.core.messages import harmless
from selfdraft.drafters.base import DrafterConfig, PathDrafterConfig
from selfdraft.drafters.presets import policy_for
from selfdraft.models.engines.choice import AUTO, EAGER, use_engine
from selfdraft.models.forward.path import Path as ModelPath
from selfdraft.models.forward.target import Target
from selfdraft.models.measuring.breakdown import StepParts
from selfdraft.models.measuring.profiling import BATCHES, costs_on, measure_grid, measure_parts, measure_path
from selfdraft.tracking.dashboards.curve import Curve
from selfdraft.tracking.display.costs import plot_costs, print_costs, print_path_costs
from selfdraft.tracking.display.steps import print_steps
from selfdraft.tracking.files.atomic import write_json_atomic


def profile(run: Run) -> None:
    """Measure the costs, write them to the run's folder and print them.

    Raises:
        UserError: the model cannot be loaded or is not supported.
    """
    config, folder, console = run.config, run.folder, run.console
    task = config.task
    assert isinstance(task, ProfileConfig)
    if config.model.placed:
        raise UserError("task=profile measures a model on one device: leave model.device_map out")
    refuse_a_run_that_cannot_fit(config, certify=False, rows=max(BATCHES) if task.grid else 1)
    run.begin(name="profile", started=folder / "profile.json", facts=adapter_facts(config.drafter))
    curve = Curve(run.logger, "forward_tokens", ("forward_s/*", "step_s/*"))
    device, environment = torch.device(config.hardware.torch_device), run.environment
    with console.status(f"loading {config.model.label}"):
        loaded = config.model.load(device)
        refuse_other_model(config, loaded.model)
        # Costs of parts are differences of forwards with and without them, all of which must be run in the same way.
        target = Target(loaded.model, packed=config.model.packed, attention=config.model.attention)
        choice, weights = EAGER if config.model.engine == EAGER else AUTO, config.model.weights
        engine = use_engine(target, choice, "task=profile takes layers apart", weights=weights)
        targets = {"eager": target, **compiled_target(config, loaded, console.print)}
        path = drafting_path(target, config.drafter)
    with console.status("measuring the forward and its parts") as status:
        costs = measure_parts(
            target,
            context=task.context,
            rounds=task.rounds,
            device=describe_device(environment),
            model=config.model.label,
            source=environment["command"],
        )
        for part in ("forward", "base", "attention", "mlp", "head"):
            log_line(curve, part, getattr(costs, part).sizes, getattr(costs, part).seconds)
        if task.grid:
            for part, line in measure_grid(target, rounds=min(task.rounds, 3)):
                status.update(f"measured {', '.join(f'{k} {v}' for k, v in line.items() if isinstance(v, int))}")
                name, number = next(iter(line.items()))
                log_line(curve, f"{name}_{number}", line["sizes"], line["seconds"])
                lines: dict[str, Any] = {part: (*getattr(costs, part), line)}
                costs = replace(costs, **lines)
        drafting = None
        if path is not None:
            assert isinstance(config.drafter, PathDrafterConfig)
            status.update(f"measuring drafts of {config.drafter.label}")
            drafting = measure_path(target, path, config.drafter.longest, context=task.context, rounds=task.rounds)
            log_line(curve, config.drafter.path.name, drafting.forward.sizes, drafting.forward.seconds)

        def note(engine: str, step: StepParts) -> None:
            curve.add(step.tokens, {f"step_s/{engine}/{part}": seconds for part, seconds in step.parts_s.items()})

        steps = measure_engines(config, loaded, targets, task.context, task.rounds, status.update, note)
    paths = None if drafting is None else drafting.to_dict()
    result = {**costs.to_dict(), "engine": engine, "drafting": paths, "steps": steps}
    write_profile(folder / "profile.json", result, environment, measured_config(run.composed))
    print_costs(costs, console)
    if drafting is not None:
        print_path_costs(config.drafter.label, drafting, console)
    print_steps(steps, console)
    with harmless("profile.png was not drawn"):
        plot_costs(costs, folder / "profile.png")
    run.log({"task": "profile", **result}, picture=folder / "profile.png")
    console.print(f"written: {shown(folder)}/profile.json (scripts/predict.py takes it as --hardware), profile.png")


def log_line(curve: Curve, name: str, sizes: Sequence[float], seconds: Sequence[float]) -> None:
    """Log the seconds of forwards by their numbers of tokens."""
    for size, value in zip(sizes, seconds, strict=True):
        curve.add(int(size), {f"forward_s/{name}": value})


def drafting_path(target: Target, drafter: DrafterConfig) -> ModelPath | None:
    """Return the part of the model that a drafter runs, typically if it changes; None if it runs none or all of it.

    Raises:
        UserError: the drafter's options do not fit the model.
    """
    if not isinstance(drafter, PathDrafterConfig) or drafter.path.name == "full":
        return None
    return policy_for(target, drafter, costs_on(target)).typical


def write_profile(path: Path, costs: dict, environment: dict, config: dict) -> None:
    """Write the costs, with the environment and configuration that they were measured in."""
    write_json_atomic(path, {**costs, "environment": environment, "config": config})


def describe_device(environment: dict) -> str:
    """Return the name of the GPU, or the name of the CPU and its number of threads."""
    if environment["gpu"]:
        return environment["gpu"]["name"]
    return f"{environment['cpu']['name']}, {environment['cpu']['threads']} threads"
