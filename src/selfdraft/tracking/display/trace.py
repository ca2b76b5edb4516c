"""Show every step of one decoding, as JSON for programs and as lines for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from selfdraft.decoding.record import Generation

ACCEPTED, REJECTED, PROBE = "accepted", "rejected", "probe"
STYLES = {ACCEPTED: "green", REJECTED: "red", "bonus": "bold cyan", PROBE: "dim"}
MARKS = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍"})

Spell = Callable[[Sequence[int]], str]
"""From ids to text."""


def trace_steps(generation: Generation, spell: Spell) -> list[dict[str, Any]]:
    """Return the draft of every step, and which of its nodes were accepted.

    Returns:
        For each step: `root`, the last committed token, and `position`, its position in the text; `source`; `nodes`,
        each with id, text, parent (-1: the root), depth, state, and source if there are several; `accepted`, the
        accepted nodes; `bonus`, None if the answer ended before it; `emitted`, how many tokens the step added.
    """
    text, end, steps = [*generation.prompt, *generation.output], len(generation.prompt), []
    for number, (tokens, parents, path, bonus, source, probes, *several) in enumerate(generation.steps, start=1):
        depths: list[int] = []
        nodes = []
        for i, token in enumerate(tokens):
            parent = i - 1 if parents is None else parents[i]
            depths.append(1 if parent < 0 else depths[parent] + 1)
            state = ACCEPTED if i in path else PROBE if i in (probes or ()) else REJECTED
            own = {"source": several[0][i]} if several else {}
            nodes.append({**_token(token, spell), "parent": parent, "depth": depths[i], "state": state, **own})
        emitted = len(path) + (bonus is not None)
        steps.append(
            {
                "step": number,
                "position": end - 1,
                "root": _token(text[end - 1], spell),
                "source": source,
                "nodes": nodes,
                "accepted": path,
                "bonus": None if bonus is None else _token(bonus, spell),
                "emitted": emitted,
            }
        )
        end += emitted
    return steps


def print_trace(steps: Sequence[dict[str, Any]], console: Console, branches: int) -> None:
    """Print a line for each step, and below it up to `branches` rejected branches, from their first rejected node."""
    console.print(
        Text.assemble(
            "each step: ", ("accepted", STYLES[ACCEPTED]), " ", ("bonus", STYLES["bonus"]), ", and below ",
            ("rejected", STYLES[REJECTED]), " branches with the depth at which they begin",
        )
    )  # fmt: skip
    for step in steps:
        nodes = step["nodes"]
        line = Text(f"{step['step']:>4}  ")
        for i in step["accepted"]:
            line.append(_shown(nodes[i]), STYLES[ACCEPTED])
        if step["bonus"] is not None:
            line.append(_shown(step["bonus"]), STYLES["bonus"])
        counts = [(state, sum(node["state"] == state for node in nodes)) for state in (REJECTED, PROBE)]
        said = ", ".join(f"{count} {state if state == REJECTED else 'probes'}" for state, count in counts if count)
        line.append(f"   +{step['emitted']}" + (f", {said}" if said else ""), "dim")
        console.print(line)
        lost = rejected_branches(nodes)
        for branch in lost[:branches]:
            line = Text(f"{'✗':>9} {nodes[branch[0]]['depth']}: ", STYLES[REJECTED])
            console.print(line.append("".join(_shown(nodes[i]) for i in branch)))
        if branches and len(lost) > branches:
            console.print(Text(f"{'':>10}and {len(lost) - branches} more", STYLES[PROBE]))


def rejected_branches(nodes: Sequence[dict[str, Any]]) -> list[list[int]]:
    """Return the rejected branches, one for each leaf, from the first rejected node down to the leaf."""
    inner = {node["parent"] for node in nodes if node["state"] == REJECTED}
    branches = []
    for leaf, node in enumerate(nodes):
        if node["state"] != REJECTED or leaf in inner:
            continue
        branch = [leaf]
        while (parent := nodes[branch[-1]]["parent"]) >= 0 and nodes[parent]["state"] == REJECTED:
            branch.append(parent)
        branches.append(branch[::-1])
    return branches


def _token(token: int, spell: Spell) -> dict[str, Any]:
    return {"id": token, "text": spell([token])}


def _shown(token: dict[str, Any]) -> str:
    """Return the token's text in brackets, so that spaces are seen; newlines and tabs are shown as symbols."""
    text = token["text"].translate(MARKS)
    return f"[{text if text.isprintable() and text else token['id']}]"
