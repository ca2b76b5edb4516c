"""The default model: every drafter gives exactly the ids of transformers' own generate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from made import made
from selfdraft.core.errors import UserError
from selfdraft.data.sources import load_bundled
from selfdraft.decoding import Drafting
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.presets import PRESETS, configured
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.packing import packable
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.loading import LoadedModel, load_embedded
from selfdraft.models.reference import invariance
from selfdraft.models.reference.invariance import LEAST, ROW_BLOCK, make_shape_invariant, widest_alike

pytestmark = [pytest.mark.real, pytest.mark.slow]

# Where the processor has no kernels for bfloat16, a forward takes ten times as long: shorter texts are tried there.
LONG = {"float32": True, "bfloat16": packable(torch.bfloat16)}
LONG_FAMILY = "summarization"
FAMILIES = (LONG_FAMILY, "math_reasoning")
# One of each kind, for what does not depend on the drafter: chains, blocks, trees with probes, sources, sparse paths.
KINDS = ("none", "prompt_lookup", "jacobi", "lookahead", "pool", "early_exit")
# Those tried alone, and in a batch, in a dtype without kernels. pool has jacobi's blocks and prompt_lookup's source.
ALONE, TOGETHER = ("none", "pool", "early_exit"), ("lookahead",)


@dataclass(frozen=True)
class Real:
    """The model in one dtype, two prompts, and what stock greedy decoding answers.

    Attributes:
        certifier: shared by all tests, because it checks each text once, by several times the text's own forwards.
        stock: the first `length` tokens of `texts`.
    """

    loaded: LoadedModel
    target: Target
    certifier: Certifier
    prompts: dict[str, list[int]]
    texts: dict[str, list[int]]
    stock: dict[str, list[int]]
    length: int

    def decode(self, drafter: str, family: str) -> list[int]:
        decoder = Decoder(self.target, made(self.target, configured(drafter)), Stopping(self.loaded.eos, self.length))
        return decoder.decode(self.prompts[family]).output


DTYPES = ("float32", "bfloat16")
# Each kind in one dtype.
IN_BFLOAT16 = KINDS[1::2] if LONG["bfloat16"] else TOGETHER
KIND_BY_TURNS = [
    pytest.param(dtype, kind, id=f"{kind}-{dtype}")
    for dtype in DTYPES
    for kind in KINDS
    if (kind in IN_BFLOAT16) == (dtype == "bfloat16")
]
# Every drafter on one text in float32, and on the other one in bfloat16, or only some kinds where that has no kernels.
# `chain` is layer_skip, and `trained` needs an adapter.
DRAFTER_BY_TURNS = [
    pytest.param(dtype, drafter, FAMILIES[(number + turn) % 2], id=f"{drafter}-{dtype}")
    for turn, dtype in enumerate(DTYPES)
    for number, drafter in enumerate(name for name in PRESETS if name not in ("chain", "trained"))
    if LONG[dtype] or drafter in ALONE
]
WITH_KERNELS = [dtype for dtype in DTYPES if LONG[dtype]]  # for what a machine without them cannot have anyway


@pytest.fixture(params=DTYPES)
def real(request: pytest.FixtureRequest) -> Real:
    return real_in(request.param)


@cache  # not the fixture's scope: pytest would build it anew at every change of dtype
def real_in(dtype: str) -> Real:
    loaded, length, written = load_embedded(dtype, torch.device("cpu")), *((10, 26) if LONG[dtype] else (4, 4))
    chat, bundled = Chat(loaded.tokenizer), load_bundled()
    prompts = {}
    for family in FAMILIES:
        first = next(prompt.turns[0] for prompt in bundled if prompt.family == family)
        prompts[family] = chat.encode([("user", first)])
    assert len(prompts[LONG_FAMILY]) > 3 * len(prompts[FAMILIES[1]])
    if not LONG[dtype]:
        prompts = {family: ids[-16:] for family, ids in prompts.items()}
    texts = {}
    for family, ids in prompts.items():
        row = torch.tensor([ids])
        with torch.inference_mode():
            answer = loaded.model.generate(
                row,
                attention_mask=torch.ones_like(row),
                max_new_tokens=written,
                do_sample=False,
                eos_token_id=sorted(loaded.eos),
                pad_token_id=min(loaded.eos),
            )
        texts[family] = answer[0, len(ids) :].tolist()
        assert len(set(texts[family][:length])) > length // 4  # a text, not one token for ever
    target = Target(loaded.model)
    stock = {family: text[:length] for family, text in texts.items()}
    return Real(loaded, target, Certifier(target), prompts, texts, stock, length)


def check(real: Real, family: str, output: list[int]) -> None:
    """Equal ids in float32; in bfloat16 they may differ only where rounding decides."""
    if real.target.dtype == torch.float32:
        assert output == real.stock[family]
    certificate = real.certifier.certify(real.prompts[family], output, real.stock[family])
    assert certificate.verdict in ("exact", "tie"), certificate


@pytest.mark.parametrize(("real", "drafter", "family"), DRAFTER_BY_TURNS, indirect=["real"])
def test_a_drafter_gives_the_text_of_stock_generate(real: Real, drafter: str, family: str) -> None:
    check(real, family, real.decode(drafter, family))


@pytest.mark.parametrize(("real", "drafter"), KIND_BY_TURNS, indirect=["real"])
def test_a_batch_of_very_different_lengths_gives_the_texts_of_stock_generate(real: Real, drafter: str) -> None:
    stopping = Stopping(real.loaded.eos, real.length)
    decoder = Decoder(real.target, made(real.target, configured(drafter)), stopping, batch_size=2)
    families = [*FAMILIES, FAMILIES[1]]  # the third one comes in where the first to end was
    answers = decoder.answer([Request(real.prompts[family]) for family in families])
    for family, answer in zip(families, answers, strict=True):
        check(real, family, answer.output)


def test_the_answer_is_natural_language() -> None:
    """A model converted wrongly would still be decoded without loss."""
    real = real_in("float32")
    text = Chat(real.loaded.tokenizer).decode(real.texts[LONG_FAMILY])
    words = text.split()
    assert len(words) > 20
    assert sum(word.strip(".,:;'\"()").isalpha() for word in words) > 0.8 * len(words)


@pytest.mark.parametrize("real", WITH_KERNELS, indirect=True)
def test_shape_invariant_forwards_make_drafters_bit_exact(real: Real) -> None:
    """A chain, a tree and a path that is reused: there are no ties then, in any dtype.

    If a machine's kernels do not allow it, it must be refused.
    """
    target = Target(real.loaded.model)
    try:
        make_shape_invariant(target)
    except UserError as refusal:
        pytest.skip(str(refusal))  # said, not passed
    invariant, family = replace(real, target=target, length=8), FAMILIES[real.target.dtype == torch.float32]
    alone = invariant.decode("none", family)
    same = {drafter: invariant.decode(drafter, family) == alone for drafter in ("prompt_lookup", "pool", "early_exit")}
    assert same == dict.fromkeys(same, True)


@pytest.mark.parametrize("real", WITH_KERNELS, indirect=True)
def test_the_self_check_notices_blocks_that_round_differently(real: Real, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without padding, bits depend on the block, also of a short text."""
    monkeypatch.setattr(invariance, "WIDTHS", range(ROW_BLOCK, LEAST + 1, ROW_BLOCK))
    monkeypatch.setattr(invariance, "TRIED_BLOCKS", (1,))
    assert widest_alike(Target(real.loaded.model)) < LEAST


@pytest.mark.parametrize(
    ("real", "drafter", "options"),
    [
        ("float32", "prompt_lookup", {"costs": "flat"}),  # measuring them takes longer than the answers
        *[("bfloat16", "pool", {"costs": "flat"}) for _ in WITH_KERNELS[1:]],
    ],
    indirect=["real"],
)
def test_custom_generate_gives_the_greedy_text_of_transformers(real: Real, drafter: str, options: dict) -> None:
    """Two prompts, padded on the left, through `generate` itself."""
    pair = [real.prompts[family] for family in FAMILIES[:2]]
    width, pad = max(map(len, pair)), min(real.loaded.eos)
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in pair])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in pair])
    written = real.loaded.model.generate(
        ids,
        attention_mask=mask,
        custom_generate=Drafting(drafter, **options),
        max_new_tokens=real.length,
        do_sample=False,
        eos_token_id=sorted(real.loaded.eos),
        pad_token_id=pad,
    )
    for row, family in zip(written[:, width:].tolist(), FAMILIES, strict=False):
        end = next((n for n, token in enumerate(row, start=1) if token in real.loaded.eos), len(row))
        assert set(row[end:]) <= {pad}
        check(real, family, row[:end])
