"""Families whose layers cannot be taken apart: run as a whole, as chains, with the text of generate."""

from __future__ import annotations

import pytest
import torch

from made import made
from selfdraft.app.tasks.checkup import described
from selfdraft.core.errors import UserError
from selfdraft.decoding.certify import Certifier
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import configured
from selfdraft.models.engines.choice import use_engine
from selfdraft.models.families.undivided import undivided
from selfdraft.models.forward.stateful import StatefulTarget
from selfdraft.models.forward.targets import refuse_undrivable, target_of
from selfdraft.models.loading.small import small_model
from selfdraft.models.measuring.memory import needed
from subjects import stock_output

# Keys are chosen by an indexer; positions are counted inside; windows of a form of its own; no positions at all; a
# cache that says it can forget tokens, and cannot; one cache with the states of all layers.
FAMILIES = ["deepseek_v32", "bart", "gpt_neo", "mpt", "deepseek_v4", "xlstm"]
COPIED = ["deepseek_v4", "xlstm"]
PROMPTS = [[5, 17, 3, 60, 42, 7, 33, 81, 2, 14, 27, 5, 17, 3], [5, 17, 3], [9, 9, 9, 9, 2, 9]]
TOKENS = 12
CPU = torch.device("cpu")
CONFIGS = [
    configured("none"),
    configured("pool", costs="flat", max_nodes=12, min_probability=0.0),
    configured("jacobi", costs="flat", window=4),
    configured("chain", path="full", draft_length=3),
]


@pytest.fixture(scope="module", params=FAMILIES)
def target(request: pytest.FixtureRequest) -> StatefulTarget:
    found = target_of(small_model(request.param))
    assert isinstance(found, StatefulTarget)
    return found


def texts(target: StatefulTarget, config: DrafterConfig, rows: int = 1) -> list[list[int]]:
    decoder = Decoder(target, made(target, config), Stopping(frozenset(), TOKENS), batch_size=rows)
    return [list(each.output) for each in decoder.answer([Request(prompt) for prompt in PROMPTS])]


def expected(target: StatefulTarget) -> list[list[int]]:
    return [stock_output(target.model, prompt, TOKENS, pad_token_id=0) for prompt in PROMPTS]


def test_every_text_is_that_of_transformers(target: StatefulTarget) -> None:
    right = expected(target)
    for config in CONFIGS:
        assert texts(target, config) == right, config.label
    assert texts(target, CONFIGS[1], rows=3) == right


def test_where_caches_forget_rejected_tokens_nothing_is_owed(target: StatefulTarget) -> None:
    texts(target, CONFIGS[1])
    copied = target.model.config.model_type in COPIED
    assert target.cache.held[0].drops_tokens != copied and (copied or target.replays == 0)
    assert target.cache.held[0].covered == len(target.cache.held[0].tokens)


def test_certificates_are_exact(target: StatefulTarget) -> None:
    (output, *_) = texts(target, CONFIGS[1])
    assert Certifier(target).by_stock(PROMPTS[0], output).verdict == "exact"  # type: ignore[arg-type]


def test_what_takes_layers_apart_says_so_in_one_line(target: StatefulTarget) -> None:
    family = target.model.config.model_type
    for name in ("layer_skip", "pseudo_tokens"):
        with pytest.raises(
            UserError, match=f"'{family}' has layers of a kind of its own, so it is run as a whole: take"
        ):
            texts(target, configured(name))
    said = use_engine(target, "auto")  # type: ignore[arg-type]
    assert said == "eager: a model that has layers of a kind of its own runs in its own forward"
    refuse_undrivable(target.model)
    if family != "gpt_neo":  # of which only a forward shows it
        assert undivided(target.model) and described(target.model).startswith("layers that cannot be taken apart")
        need = needed(target.model, torch.float32, CPU, rows=1, packed=True, new_tokens=8, certify=False, compiled=True)
        assert need.compiled == 0


REFUSED = {
    "prophetnet": "its forward does not go on from a cache of the text by several tokens",
    "rwkv": "its forward takes no cache, from which rejected tokens could be taken back",
    "recurrent_gemma": "its forward returns no cache: its layers keep the text to themselves",
    "roberta": "its own forward counts the positions of a text in another way than `generate`",
}


@pytest.mark.parametrize("family", REFUSED)
def test_others_are_refused_with_the_reason(family: str) -> None:
    with pytest.raises(UserError, match=REFUSED[family]) as refused:
        target_of(small_model(family))
    assert "\n" not in str(refused.value)


def test_other_attention_functions_are_not_for_them() -> None:
    with pytest.raises(UserError, match="'gpt_neo'"):
        target_of(small_model("gpt_neo"), attention="eager")
