"""Every recipe learns, does not change the target, and writes an adapter that drafts like the student.

The models are random and their texts are all there is to learn: trained and counted on the same few, which a recipe
has to know by heart in the end. A recipe that trains nothing stays where it began.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from numpy.random import default_rng
from torch import Tensor

from made import made
from selfdraft.app.runs.session import quiet
from selfdraft.core.errors import UserError
from selfdraft.core.sampling import NextToken
from selfdraft.core.training import Blocks, blocks_of, wanted_positions
from selfdraft.core.tree import TokenTree
from selfdraft.data.distilled import Text
from selfdraft.data.packing import PackedBatch, collate, pack
from selfdraft.data.textmodule import TextDataModule
from selfdraft.decoding.loop import Decoder
from selfdraft.decoding.record import Generation
from selfdraft.decoding.stopping import Stopping
from selfdraft.decoding.trajectories import Trajectories
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.reference.teacher_forced import teacher_forced
from selfdraft.models.trained.adapted import adapted_path
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.trained.fused import FusedRows
from selfdraft.models.training.teacher import TeacherOutputs, TeacherOutputStore, teach
from selfdraft.modules.finetune import WATCHED, FinetuneModule
from selfdraft.modules.recipes import RECIPES
from selfdraft.modules.recipes.fused_jacobi import NONE, FusedJacobiRecipe
from selfdraft.tracking.files.artifact import Artifact

TEXTS, PROMPT, ANSWER = 4, 4, 32
ROW = 2 * (PROMPT + ANSWER)
MARGIN = 0.5  # tokens of a draft: what a recipe gains here is more than that, and what none gains is less


@dataclass(frozen=True)
class Case:
    """A recipe, and options with which it learns a few texts by heart in seconds."""

    recipe: str
    options: dict[str, Any]


CASES = {
    "sparse_distill": Case("sparse_distill", {"steps": 40, "rank": 8, "alpha": 8.0}),
    "sparse_distill with all it has": Case(
        "sparse_distill",
        {"steps": 40, "rank": 8, "alpha": 8.0, "hidden_weight": 0.1, "layer_dropout": 0.1, "curriculum": "gradual"},
    ),
    "exit_adapter": Case("exit_adapter", {"steps": 60, "exit_layer": 2, "rank": 0}),
    "exit_adapter with the feature": Case(
        "exit_adapter", {"steps": 60, "exit_layer": 1, "twins": [1, 3], "feature": True, "rank": 0}
    ),
    "jump": Case("jump", {"steps": 60, "copies": [2, 3], "block": 3, "rank": 0}),
    "pseudo_tokens": Case("pseudo_tokens", {"steps": 40, "rank": 8, "alpha": 8.0}),
    "pseudo_tokens on some matrices": Case(
        "pseudo_tokens", {"steps": 60, "rank": 8, "alpha": 8.0, "matrices": ["q_proj", "up_proj"], "first_layer": 1}
    ),
    "fused_jacobi": Case("fused_jacobi", {"steps": 60, "rank": 8, "alpha": 8.0, "enter": 0, "block": 3}),
    "fused_jacobi with all it has": Case(
        "fused_jacobi",
        {"steps": 60, "rank": 8, "alpha": 8.0, "enter": 1, "block": 3, "markov_rank": 8, "loss": "lk", "feedback": 0.7},
    ),
    "consistency": Case("consistency", {"steps": 200, "block": 4}),
    "consistency of a path": Case("consistency", {"steps": 60, "block": 4, "keep_layers": [0, 2, 3], "norm": True}),
}


# Of this scope, all tests of a case follow each other, so that processes that share the tests do not each train it.
each_case = pytest.mark.parametrize("name", CASES, scope="module")


def fresh_target() -> Target:
    """Larger embeddings make sublayers a modest addition, as they are in trained models: drafts begin half right."""
    model = tiny_model("llama", seed=2)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(100.0)
    return Target(model, packed=False)


@cache
def texts() -> tuple[Text, ...]:
    """The model's own greedy texts, with their Jacobi trajectories."""
    target = fresh_target()
    generator, found = torch.Generator().manual_seed(5), []
    for number in range(TEXTS):
        prompt = torch.randint(target.vocab_size, (1, PROMPT), generator=generator)
        written = target.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=ANSWER, do_sample=False
        )
        found.append(Text(str(number), prompt[0].tolist(), written[0, PROMPT:].tolist()))
    target.allocate(1, PROMPT + ANSWER)
    recorder = Trajectories(target, NextToken(), width=4, passes=6, row=0)
    return tuple(replace(t, trajectory=recorder.record(t.prompt, t.answer, seed=i)) for i, t in enumerate(found))


def fitted(case: Case, learning_rate: float = 1e-2) -> FinetuneModule:
    """A trained module, with the counts before and after training as its history."""
    quiet()
    recipe = RECIPES[case.recipe]
    config = recipe.Config(batch_size=2, length=ROW, learning_rate=learning_rate, **case.options)
    module = recipe(config, lambda _: fresh_target(), draft_ids=None, seed=0)
    data = TextDataModule(
        texts(), texts(), length=ROW, longest_prompt=PROMPT, batch_size=config.batch_size, steps=config.steps
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=config.steps,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with torch.random.fork_rng(devices=[]):  # LoRA begins at random
        torch.manual_seed(0)
        trainer.validate(module, data, verbose=False)
        trainer.fit(module, data)
    assert [line["step"] for line in module.history] == [0, config.steps]
    return module


@cache
def trained(name: str) -> FinetuneModule:
    """Trained once, because many tests use it."""
    return fitted(CASES[name])


@cache
def untrained(name: str) -> FinetuneModule:
    """The same, with a learning rate of zero."""
    case = CASES[name]
    return fitted(replace(case, options={**case.options, "steps": 2}), learning_rate=0.0)


def gain(module: FinetuneModule) -> float:
    """The gain in expected accepted tokens by training."""
    before, after = (line[WATCHED] for line in module.history)
    return after - before


def test_every_recipe_is_tested() -> None:
    assert {case.recipe for case in CASES.values()} == set(RECIPES)


@pytest.mark.slow
@each_case
def test_a_recipe_raises_the_expected_acceptance_length(name: str) -> None:
    assert gain(trained(name)) > MARGIN


@each_case
def test_a_recipe_without_training_does_not_reach_that_margin(name: str) -> None:
    assert abs(gain(untrained(name))) < MARGIN / 5


@each_case
def test_training_changes_no_bits_of_the_target(name: str, tmp_path: Path) -> None:
    module, text, untouched = trained(name), [*texts()[0].prompt, *texts()[0].answer], fresh_target()
    plain = teacher_forced(untouched, text, PROMPT, 3)
    weights = dict(untouched.model.named_parameters())
    assert all(torch.equal(p, weights[n]) for n, p in module.target.model.named_parameters())
    assert torch.equal(teacher_forced(module.target, text, PROMPT, 3), plain)
    module.adapter().write(tmp_path)
    drafter = drafter_of(module, module.target, tmp_path)
    answered(module.target, drafter, texts()[0])
    assert torch.equal(teacher_forced(module.target, text, PROMPT, 3), plain)


def drafter_of(module: FinetuneModule, target: Target, folder: Path) -> Any:
    """The drafter of a training's artifact, without options that depend on this machine, and with leaves.

    In so small a vocabulary, sixteen leaves would hold the right one without any training.
    """
    fixed = {"siblings": False, "length": "threshold"}
    flat = {"costs": "flat"}
    free = {"pseudo_tokens": flat, "fused_jacobi": flat, "early_exit": fixed, "jump": fixed}
    options = {**module.options(), **free.get(module.drafter, {})}
    return made(target, configured(module.drafter, adapter=str(folder), **options))


def answered(target: Target, drafter: Any, text: Text) -> Generation:
    return Decoder(target, drafter, Stopping(frozenset(), ANSWER)).decode(text.prompt, seed=1)


@pytest.mark.parametrize(
    "name",
    [name for name, case in CASES.items() if case.recipe not in ("pseudo_tokens", "fused_jacobi")],
    scope="module",
)
def test_a_written_adapter_drafts_like_the_student(name: str, tmp_path: Path) -> None:
    module, text = trained(name), texts()[1]
    module.adapter().write(tmp_path)
    target, start, size = fresh_target(), PROMPT + 5, module.config.block
    batch = collate(pack([text], ROW, longest_prompt=PROMPT))
    blocks = blocks_of(batch.texts, wanted_positions(batch.texts, batch.answers, answers_only=False), size, ROW, start)
    outputs = teach(
        module.target,
        batch.tokens,
        batch.positions,
        batch.texts,
        layers=module.student.indices,
        before=module.states_before(),
    )
    with torch.no_grad():
        given = module.inputs(batch, blocks, outputs, default_rng(0))
        ours = module.student.logits(module.student(given, blocks, outputs))[0]

    tokens = batch.tokens[0].tolist()
    drafted = []
    for adapter in (Adapter.read(tmp_path), module.adapter()):
        path = adapted_path(target, adapter)
        target.allocate(1, ROW)
        target.prefill(0, tokens[:start])
        chain = TokenTree.chain(tokens[start + 1 : start + size])
        drafted.append(target.draft_forward(path, [0], 0, [tokens[start]], [chain])[0])
    # Weights from a file begin at other addresses, and processors add up what is not aligned in another order.
    torch.testing.assert_close(*drafted, atol=1e-5, rtol=1e-5)
    assert torch.allclose(drafted[0], ours, atol=1e-3, rtol=1e-3)


def fused_case(name: str) -> tuple[FusedJacobiRecipe, PackedBatch, TeacherOutputs, Blocks]:
    """A trained module, a text, its teacher outputs, and blocks of it."""
    module = trained(name)
    assert isinstance(module, FusedJacobiRecipe)
    batch = collate(pack([texts()[1]], ROW, longest_prompt=PROMPT))
    return module, batch, module.teach(batch), module.blocks(batch, 0, answers_only=False)


FUSED = [name for name, case in CASES.items() if case.recipe == "fused_jacobi"]


@pytest.mark.parametrize("name", FUSED, scope="module")
def test_written_gated_rows_predict_what_they_predicted_in_training(name: str, tmp_path: Path) -> None:
    """Rows of one step in a tree, those of the step before it fed back: as in `after_a_step`."""
    module, batch, _, _ = fused_case(name)
    teacher = teach(
        module.target, batch.tokens, batch.positions, batch.texts, layers=range(4), before=module.states_before()
    )
    blocks = module.blocks(batch, 0, answers_only=False)
    following, fed = module.after_a_step(batch, blocks, teacher, default_rng(3))
    module.adapter().write(tmp_path)
    target, tokens = fresh_target(), batch.tokens[0].tolist()
    rows = FusedRows(target, Adapter.read(tmp_path))
    with torch.no_grad():
        given = module._given(following, teacher, fed)
        hidden = module.student(given, following, teacher)[0].unflatten(0, (-1, following.size))
    seen = set()
    for at, (index, valid) in enumerate(zip(following.index[0].tolist(), following.valid[0], strict=True)):
        if not valid.all() or index[0] < 2:
            continue
        target.allocate(1, ROW)
        target.prefill(0, tokens[: index[0] - 1])
        tree = TokenTree.empty().probed(following.size, target.pad_id)
        inputs = torch.where(fed[0, at] == NONE, target.pad_id, fed[0, at])
        tree = TokenTree(inputs, tree.parents, tree.is_candidate)
        target.forward([0], [tokens[index[0] - 1]], [tree], through=rows.path)
        states = rows.states_of(0, range(1, 1 + following.size))
        assert torch.allclose(states, hidden[at], atol=2e-3, rtol=2e-3)
        with torch.no_grad():
            before = torch.tensor(tokens[index[0]])
            said = module.heads.logits(hidden[at, :1], module._embedded(before[None]), module.student.logits)
        level = rows.resampled(states, int(before), 1)
        assert level[0][()][0][0] == int(said.argmax())
        seen.add(int((fed[0, at] != NONE).sum()))
    assert len(seen) > 1  # some rows had predictions fed back, and others none


def test_a_step_after_a_step_begins_after_the_accepted_tokens(name: str = FUSED[0]) -> None:
    """By heart the module knows the text: chains are accepted whole, or cut somewhere with a right first choice."""
    module, batch, teacher, blocks = fused_case(name)
    tokens, size = batch.tokens[0], blocks.size
    right = module.right(batch, blocks, teacher)
    cut = 0
    # A training that rounds otherwise may leave few chains to cut, so there are several draws.
    draws = [module.after_a_step(batch, blocks, teacher, default_rng(seed)) for seed in range(8)]
    for (following, fed), at in product(draws, range(blocks.index.shape[1])):
        if not bool(blocks.valid[0, at].all() & right[0, at].all() & following.valid[0, at, 0]):
            continue
        ended = int(following.index[0, at, 0] - blocks.index[0, at, 0]) - 1
        assert 0 <= ended <= size and (fed[0, at] == NONE).sum() == ended
        first = int(following.index[0, at, 0])
        if ended < size:
            cut += 1
            assert torch.equal(fed[0, at, : size - ended], tokens[first : first + size - ended])
    assert cut


@pytest.mark.slow
@each_case
def test_trained_drafts_are_accepted_more_often_and_change_no_text(name: str, tmp_path: Path) -> None:
    forwards = []
    for module in (trained(name), untrained(name)):
        folder = tmp_path / str(len(forwards))
        module.adapter().write(folder)
        target = fresh_target()
        drafter = drafter_of(module, target, folder)
        generations = [answered(target, drafter, text) for text in texts()]
        assert [g.output for g in generations] == [text.answer for text in texts()]
        forwards.append(sum(g.counts.target_forwards for g in generations))
    if name != "consistency":  # by heart it knows the blocks of the data, and drafting begins with other random tokens
        assert forwards[0] < 0.9 * forwards[1]


class Teacher:
    """Computes teacher outputs and counts the rows."""

    def __init__(self) -> None:
        self.target, self.rows = fresh_target(), 0

    def __call__(self, tokens: Tensor, positions: Tensor, texts: Tensor) -> TeacherOutputs:
        self.rows += len(tokens)
        return teach(self.target, tokens, positions, texts, layers=(1, 3), before=(2,))


def rounded(part: Tensor) -> Tensor:
    return part.to(torch.bfloat16).to(part.dtype)


def taught(store: TeacherOutputStore, batch: PackedBatch) -> TeacherOutputs:
    return store(batch.tokens, batch.positions, batch.texts)


def test_stored_teacher_outputs_are_the_same_again_and_each_row_is_computed_once() -> None:
    rows = pack([replace(t, answer=t.answer[: ANSWER - 5 * i]) for i, t in enumerate(texts())], ROW, longest_prompt=4)
    assert len({len(row) for row in rows}) == len(rows) == 2
    teacher = Teacher()
    store = TeacherOutputStore(teacher)
    first = taught(store, collate(rows))
    assert teacher.rows == 2
    for order in ([0, 1], [1, 0], [1], [0], [0, 0, 1]):  # with other rows, and so padded to another width
        batch = collate([rows[i] for i in order])
        again = taught(store, batch)
        for b, i in enumerate(order):
            n = len(rows[i])
            assert torch.equal(again.final[b, :n], rounded(first.final[i, :n]))
            assert torch.equal(again.states[2][b, :n], rounded(first.states[2][i, :n]))
            for layer in (1, 3):
                assert torch.equal(again.keys[layer][b, :, :n], rounded(first.keys[layer][i, :, :n]))
                assert torch.equal(again.values[layer][b, :, :n], rounded(first.values[layer][i, :, :n]))
        assert again.final.shape == (*batch.tokens.shape, first.final.shape[-1])
        assert torch.equal(again.positions, batch.positions) and torch.equal(again.texts, batch.texts)
    assert teacher.rows == 2


def test_rows_with_equal_tokens_but_other_texts_are_stored_apart() -> None:
    whole, parts = (
        collate(pack([Text(str(i), ids[:1], ids[1:]) for i, ids in enumerate(split)], 8, longest_prompt=1))
        for split in ([[5, 6, 7, 8]], [[5, 6], [7, 8]])
    )
    assert torch.equal(whole.tokens, parts.tokens)
    teacher = Teacher()
    store = TeacherOutputStore(teacher)
    direct = [teacher(batch.tokens, batch.positions, batch.texts).final for batch in (whole, parts)]
    assert not torch.equal(rounded(direct[0]), rounded(direct[1]))
    for _ in range(2):
        found = [taught(store, batch).final for batch in (whole, parts)]
        assert all(torch.equal(rounded(a), rounded(b)) for a, b in zip(found, direct, strict=True))
    assert teacher.rows == 4


def test_an_artifact_may_name_only_attentions_or_only_mlps(tmp_path: Path) -> None:
    model = {"label": "tiny llama", "dtype": "float32", "fingerprint": "0" * 16}
    config = RECIPES["sparse_distill"].Config(skip_from=str(tmp_path))
    for options, skipped in (({"skip_mlp": [1]}, (set(), {1})), ({"skip_attention": [2]}, ({2}, set()))):
        Artifact("layer_skip", options, model, {}, []).write(tmp_path / "drafter.yaml")
        skip = config.skip_set(4)
        assert (set(skip.attention), set(skip.mlp)) == skipped
    Artifact("layer_skip", {"skip_mlp": [9]}, model, {}, []).write(tmp_path / "drafter.yaml")
    with pytest.raises(UserError, match=r"^finetune\.skip_from\.skip_mlp=\[9\]: this model's layers are 0 to 3$"):
        config.skip_set(4)
    Artifact("layer_skip", {}, model, {}, []).write(tmp_path / "drafter.yaml")
    with pytest.raises(UserError, match="names no skip set"):
        config.skip_set(4)
