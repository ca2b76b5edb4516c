"""A student attends in training to what a draft attends to in decoding; only its own weights are trained."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.core.training import blocks_of, wanted_positions
from selfdraft.core.tree import TokenTree
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import FAMILIES, tiny_model
from selfdraft.models.paths.sparse import sparse_path
from selfdraft.models.reference.teacher_forced import teacher_forced
from selfdraft.models.trained.adapted import adapted_path
from selfdraft.models.trained.adapter import FILE, Adapter
from selfdraft.models.training.student import Student
from selfdraft.models.training.teacher import teach

VOCABULARY, LENGTH = 97, 24
SKIP = SkipSet(frozenset({1, 2}), frozenset({2}))


def target_of(family: str, *, packed: bool = False) -> Target:
    model = tiny_model(family, seed=3, vocab_size=VOCABULARY, max_positions=256, dtype=torch.float32)
    return Target(model, packed=packed)


def packed_texts() -> tuple[Tensor, Tensor, Tensor]:
    """Two rows: one text, and two followed by padding."""
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    texts = torch.zeros(2, LENGTH, dtype=torch.long)
    texts[1, 10:20], texts[1, 20:] = 1, -1
    positions = torch.arange(LENGTH).repeat(2, 1)
    positions[1, 10:20] -= 10
    positions[1, 20:] = 0
    return tokens, positions, texts


def trained(student: Student) -> Student:
    """Change every weight, as training does."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return student


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_outputs_of_a_packed_text_equal_those_of_the_text_itself(family: str) -> None:
    target, (tokens, positions, texts) = target_of(family), packed_texts()
    outputs = teach(target, tokens, positions, texts, layers=range(4))
    ours = target.head(outputs.final)
    alone = target.model(input_ids=tokens[1:, 10:20], use_cache=False).logits
    cap = target.anatomy.softcap
    ours = ours if cap is None else torch.tanh(ours / cap) * cap
    assert torch.allclose(ours[1, 10:20], alone[0], atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_student_of_all_layers_equals_the_target(family: str) -> None:
    target, (tokens, positions, texts) = target_of(family), packed_texts()
    outputs = teach(target, tokens, positions, texts, layers=range(4))
    blocks = blocks_of(texts, wanted_positions(texts, texts >= 0, answers_only=False), 5, 5, 1)
    student = Student(target, sparse_path(target, SkipSet()), rank=2)
    hidden = student(target.anatomy.embed(blocks.gathered(tokens)), blocks, outputs)
    valid = blocks.valid.flatten(1)
    assert torch.allclose(hidden[valid], blocks.gathered(outputs.final)[valid], atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_path_gives_the_logits_of_its_student(family: str, tmp_path: Path) -> None:
    teacher, (tokens, positions, texts) = target_of(family), packed_texts()
    ids = torch.arange(5, 60)
    path = sparse_path(teacher, SKIP)
    student = trained(Student(teacher, path, rank=3, alpha=6.0, whole=[3], norm=True, vocabulary=ids))
    student.adapter("sparse_distill", path).write(tmp_path)

    start, block = 9, 4
    blocks = blocks_of(texts[:1], wanted_positions(texts, texts >= 0, answers_only=False)[:1], block, LENGTH, start)
    first = teach(teacher, tokens[:1], positions[:1], texts[:1], layers=student.indices)
    with torch.no_grad():
        logits = student.logits(student(teacher.anatomy.embed(blocks.gathered(tokens[:1])), blocks, first))

    text = tokens[0].tolist()
    tree = TokenTree.chain(text[start + 1 : start + block])
    for packed in (False, True):
        target = target_of(family, packed=packed)
        adapted = adapted_path(target, Adapter.read(tmp_path))
        target.allocate(1, LENGTH)
        target.prefill(0, text[:start])
        drafted = target.draft_forward(adapted, [0], 0, [text[start]], [tree])[0]
        assert torch.isinf(drafted[:, :5]).all() and torch.isinf(drafted[:, 60:]).all()
        assert torch.allclose(drafted[:, 5:60], logits[0], atol=5e-4), f"packed={packed}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_changes_no_bits_of_the_target(dtype: torch.dtype) -> None:
    model = tiny_model("llama", seed=3, vocab_size=VOCABULARY, max_positions=256, dtype=dtype)
    before = {name: p.clone() for name, p in model.named_parameters()}
    target, text = Target(model), list(range(20))
    plain = teacher_forced(target, text, 4, 3)
    teacher = target_of("llama")
    path = sparse_path(teacher, SKIP)
    adapter = trained(Student(teacher, path, rank=3, whole=[3], norm=True)).adapter("sparse_distill", path)
    adapted = adapted_path(target, adapter)
    target.allocate(1, 32)
    target.prefill(0, text[:4])
    drafted = target.draft_forward(adapted, [0], 0, [text[4]], [TokenTree.empty()])[0]
    assert torch.isfinite(drafted).all()
    assert torch.equal(teacher_forced(target, text, 4, 3), plain)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_only_trained_weights_have_gradients() -> None:
    target, (tokens, positions, texts) = target_of("llama"), packed_texts()
    student = Student(target, sparse_path(target, SKIP), rank=2, lora_from=1, whole=[3])
    outputs = teach(target, tokens, positions, texts, layers=student.indices)
    blocks = blocks_of(texts, wanted_positions(texts, texts >= 0, answers_only=False), 3, 3, 0)
    student(target.anatomy.embed(blocks.gathered(tokens)), blocks, outputs).sum().backward()
    with_gradients = {name.split(".")[1] for name, p in student.named_parameters() if p.grad is not None}
    assert with_gradients == {"1", "2"}  # layers 1 (half of it) and 3; 2 is skipped, and 0 has no LoRA
    assert all(p.grad is None for p in target.model.parameters())


def test_a_damaged_or_foreign_adapter_gives_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no adapter\.safetensors there"):
        Adapter.read(tmp_path)
    (tmp_path / FILE).write_bytes(b"not tensors at all")
    with pytest.raises(UserError, match="task=finetune"):
        Adapter.read(tmp_path)
    skip = {"skip_attention": [], "skip_mlp": [], "scale": 1.0}
    wrong = Adapter("sparse_distill", skip, {"lora.1.self_attn.q_proj.A": torch.zeros(2, 5)})
    wrong = Adapter(wrong.recipe, skip, {**wrong.tensors, "lora.1.self_attn.q_proj.B": torch.zeros(7, 2)})
    with pytest.raises(UserError, match="trained for another"):
        adapted_path(target_of("llama"), wrong)
