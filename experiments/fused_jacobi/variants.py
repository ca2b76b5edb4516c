"""Variants of finetune=fused_jacobi with equal budgets: which loss, heads and options raise acceptance.

    python experiments/fused_jacobi/variants.py TEXTS HELD_OUT OUT loss=lk sampler=0,markov_rank=64 …

TEXTS and HELD_OUT are folders of task=distill_data. Each variant changes a few options of `BASE` (a list is written
[a+b]); `base` is trained as well. All share the seed, the order of the texts, the teacher's outputs and one thread.
Afterwards every variant predicts the held-out answers after true tokens, at every fourth position. OUT gets
variants.jsonl, which later calls add to, and each variant's weights.

Shapes: G blocks of K gated rows; T held-out texts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from numpy.random import default_rng
from torch import Tensor

from selfdraft.app.tasks.finetune import frequent
from selfdraft.app.terminal.errors import one_line_script
from selfdraft.core.errors import UserError
from selfdraft.core.training import Blocks, blocks_of, wanted_positions
from selfdraft.data.distilled import Text, load_texts
from selfdraft.data.packing import PackedBatch
from selfdraft.data.textmodule import TextDataModule
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.loading import LoadedModel, load_embedded
from selfdraft.models.training.teacher import TeacherOutputs, TeacherOutputStore, teach
from selfdraft.modules.recipes.fused_jacobi import FusedJacobiRecipe, FusedJacobiRecipeConfig

BASE = {
    "enter": 25,
    "block": 3,
    "anchors": 2,
    "vocabulary": 8192,
    "answers_only": True,
    "feedback": 0.3,
    "learning_rate": 1.5e-3,
    "batch_size": 2,
    "steps": 60,
}
STRIDE = 4  # positions between two evaluated blocks


class Variant(FusedJacobiRecipe):
    """The recipe, with teacher outputs that all variants share."""

    store: TeacherOutputStore

    def teach(self, batch: PackedBatch) -> TeacherOutputs:
        """Return the shared outputs."""
        return self.store(batch.tokens, batch.positions, batch.texts)


def options_of(spec: str) -> dict[str, Any]:
    """Return the options that a variant changes."""
    pairs = [] if spec == "base" else [pair.partition("=") for pair in spec.split(",")]
    return {name: yaml.safe_load(value.replace("+", ",")) for name, _, value in pairs}


def trained(spec: str, loaded: LoadedModel, store: TeacherOutputStore, texts: list[Text], seed: int) -> Variant:
    """Return a variant after its steps; prints the loss now and then."""
    options = {**BASE, **options_of(spec)}
    if unknown := set(options) - {each.name for each in fields(FusedJacobiRecipeConfig)}:
        raise UserError(f"{spec}: finetune=fused_jacobi has no option {', '.join(sorted(unknown))}")
    config, target = FusedJacobiRecipeConfig(**options), Target(loaded.model, packed=False)
    ids = frequent(texts, config.vocabulary, target.vocab_size)
    torch.manual_seed(seed)
    recipe = Variant(config, lambda device: target, draft_ids=ids, seed=seed)
    recipe.store = store
    recipe.prepare(target)
    made = recipe.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rows = TextDataModule(
        texts,
        [],
        length=config.length,
        longest_prompt=config.longest_prompt,
        batch_size=config.batch_size,
        steps=config.steps,
        seed=seed,
    )
    parameters = [p for p in recipe.parameters() if p.requires_grad]
    for step, batch in enumerate(rows.train_dataloader()):
        loss = recipe.loss(batch, default_rng((seed, step, 0, 0)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"{spec}: step {step}, loss {float(loss.detach()):.3f}", flush=True)
    return recipe


@torch.no_grad()
def counted(recipe: Variant, held_out: list[Text], seed: int) -> dict[str, list[list[list[int]]]]:
    """Return, for three kinds of inputs, (T, K, 2) tokens offered and accepted of each text at each depth.

    `masks`: all blocks, without predictions of a step before. `fed`, `unfed`: the blocks that follow these, with and
    without the predictions that a step before would have fed back.
    """
    config = recipe.config
    found: dict[str, list[list[list[int]]]] = {"masks": [], "fed": [], "unfed": []}
    for text in held_out:
        rows = TextDataModule([text], [], length=config.length, longest_prompt=config.longest_prompt, batch_size=1)
        batch = next(iter(rows.train_dataloader()))
        wanted = wanted_positions(batch.texts, batch.answers, answers_only=True)
        blocks = blocks_of(batch.texts, wanted, config.block, STRIDE, 0)
        teacher = recipe.teach(batch)
        after, fed = recipe.after_a_step(batch, blocks, teacher, default_rng(seed))
        cases: dict[str, tuple[Blocks, Tensor | None]] = {
            "masks": (blocks, None),
            "fed": (after, fed),
            "unfed": (after, None),
        }
        for name, (where, given) in cases.items():
            right = recipe.right(batch, where, teacher, given)
            accepted = (right & where.valid).long().cumprod(-1)
            before = torch.cat([torch.ones_like(accepted[..., :1]), accepted[..., :-1]], dim=-1)
            offered = (before * where.valid).sum((0, 1))
            found[name].append(torch.stack([offered, accepted.sum((0, 1))], dim=-1).tolist())
    return found


@one_line_script("variants")
def main(arguments: list[str]) -> None:
    """Train the variants that are not in variants.jsonl yet, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts")
    parser.add_argument("held_out")
    parser.add_argument("out", type=Path)
    parser.add_argument("variants", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    loaded = load_embedded("float32", torch.device("cpu"))
    texts, held_out = load_texts(given.texts), [text for text in load_texts(given.held_out) if text.answer]
    given.out.mkdir(parents=True, exist_ok=True)
    lines = given.out / "variants.jsonl"
    done = {json.loads(line)["variant"] for line in lines.read_text().splitlines()} if lines.exists() else set()
    specs = [spec for spec in dict.fromkeys(["base", *given.variants]) if spec not in done]
    enters = sorted({int(options_of(spec).get("enter", BASE["enter"])) for spec in specs})
    plain = Target(loaded.model, packed=False)
    layers = range(min(enters, default=0), len(plain.full.layers))
    store = TeacherOutputStore(partial(teach, plain, layers=layers, before=enters))
    for spec in specs:
        begin = time.process_time()
        recipe = trained(spec, loaded, store, texts, given.seed)
        seconds = time.process_time() - begin
        parameters = sum(p.numel() for p in recipe.parameters() if p.requires_grad)
        line = {"variant": spec, "seconds": seconds, "parameters": parameters, **counted(recipe, held_out, given.seed)}
        folder = given.out / spec.replace(",", "_")
        folder.mkdir(exist_ok=True)
        recipe.adapter().write(folder)
        with lines.open("a") as file:
            file.write(json.dumps(line) + "\n")
        first = torch.tensor(line["masks"]).sum(0)[0].tolist()
        print(f"{spec}: {seconds:.0f} s of one thread, first token {first[1]} of {first[0]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
