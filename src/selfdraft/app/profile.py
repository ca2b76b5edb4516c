"""task=profile: measure forwards and their parts on this device; write profile.json, a table and a picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from selfdraft.app.build import measured_config, refuse_a_run_that_cannot_fit
from selfdraft.app.lifecycle import Run
from selfdraft.app.schemas import ProfileConfig
from selfdraft.app.session import shown
from selfdraft.core.costmodel import CostModel
from selfdraft.core.messages import harmless
from selfdraft.models.profiling import BATCHES, measure_grid, measure_parts
from selfdraft.models.target import Target
from selfdraft.tracking.atomic import write_json_atomic
from selfdraft.tracking.costs import plot_costs, print_costs


def profile(run: Run) -> None:
    """Measure the costs, write them to the run's folder and print them.

    Raises:
        UserError: the model cannot be loaded or is not supported.
    """
    config, folder, console = run.config, run.folder, run.console
    task = config.task
    assert isinstance(task, ProfileConfig)
    refuse_a_run_that_cannot_fit(config, certify=False, rows=max(BATCHES) if task.grid else 1)
    run.begin(name="profile", started=folder / "profile.json")
    device, environment = torch.device(config.hardware.torch_device), run.environment
    with console.status(f"loading {config.model.label}"):
        model = config.model.load(device).model
        target = Target(model, packed=config.model.packed, attention=config.model.attention)
    with console.status("measuring the forward and its parts") as status:
        costs = measure_parts(
            target,
            context=task.context,
            rounds=task.rounds,
            device=describe_device(environment),
            model=config.model.label,
            source=environment["command"],
        )
        if task.grid:
            for part, line in measure_grid(target, rounds=min(task.rounds, 3)):
                status.update(f"measured {', '.join(f'{k} {v}' for k, v in line.items() if isinstance(v, int))}")
                costs = replace(costs, **{part: (*getattr(costs, part), line)})
    write_profile(folder / "profile.json", costs, environment, measured_config(run.composed))
    print_costs(costs, console)
    with harmless("profile.png was not drawn"):
        plot_costs(costs, folder / "profile.png")
    run.log({"task": "profile", **costs.to_dict()}, picture=folder / "profile.png")
    console.print(f"written: {shown(folder)}/profile.json (scripts/predict.py takes it as --hardware), profile.png")


def write_profile(path: Path, costs: CostModel, environment: dict, config: dict) -> None:
    """Write the cost model, with the environment and configuration that it was measured in."""
    write_json_atomic(path, {**costs.to_dict(), "environment": environment, "config": config})


def describe_device(environment: dict) -> str:
    """Return the name of the GPU, or the name of the CPU and its number of threads."""
    if environment["gpu"]:
        return environment["gpu"]["name"]
    return f"{environment['cpu']['name']}, {environment['cpu']['threads']} threads"
