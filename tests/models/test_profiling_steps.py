"""The parts of a decoding step: which there are, and that they are the whole step."""

import pytest

from selfdraft.models.engines.choice import COMPILED, use_engine
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.tiny import tiny_model
from selfdraft.models.measuring.breakdown import kind_of, measure_steps, step_parts, within

AROUND = ["head", "masks", "accept", "commit", "host"]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_layers_that_run_one_by_one_are_taken_apart(family: str) -> None:
    target = Target(tiny_model(family))
    steps = list(measure_steps(target, context=20, rounds=1))
    assert [step.tokens for step in steps] == [1, 8, 32]
    for step in steps:
        assert list(step.parts_s) == ["products", "attention", "small", *AROUND]
        assert min(step.parts_s.values()) >= 0 and step.forward_s > 0
        assert step.parts_s["products"] > 0 and step.parts_s["attention"] > 0
        parts = dict(step.parts_s)
        host = parts.pop("host")
        assert host == step.step_s - sum(parts.values())
    assert target.forwards == 0 and target.cache.lengths == [20]


def test_compiled_layers_are_one_part() -> None:
    pytest.importorskip("openvino")
    target = Target(tiny_model("llama"))
    use_engine(target, COMPILED)
    (step,) = measure_steps(target, sizes=(2,), context=20, rounds=1)
    assert list(step.parts_s) == ["layers", *AROUND]
    assert min(step.parts_s.values()) >= 0


def test_steps_fit_the_model_s_positions() -> None:
    target = Target(tiny_model("llama"))
    target.max_positions = 12
    assert [step.tokens for step in measure_steps(target, context=20, rounds=1)] == [1, 8]


def test_the_host_is_the_rest_and_the_drafter_is_added() -> None:
    step = step_parts(1, 3.0, 8.0, {"head": 2.0, "commit": 1.0, "accept": -1.0})
    assert step.parts_s == {"head": 2.0, "commit": 1.0, "accept": 0.0, "host": 5.0}
    more = step.with_drafter(4.0)
    assert more.step_s == 12.0 and list(more.parts_s)[-2:] == ["drafter", "host"]
    assert sum(more.parts_s.values()) == 12.0 and more.forward_s == 3.0


def test_a_step_is_never_shorter_than_its_parts() -> None:
    step = step_parts(1, 1.0, 2.0, {"head": 2.0, "commit": 1.0})
    assert (step.step_s, step.parts_s["host"]) == (3.0, 0.0)


def test_operators_that_were_slowed_by_profiling_are_scaled_to_the_layers() -> None:
    assert within(6.0, {"products": 9.0, "small": 3.0, "attention": -1.0}) == {
        "products": 4.5,
        "small": 1.5,
        "attention": 0.0,
    }
    assert within(20.0, {"products": 9.0}) == {"products": 9.0}
    assert within(1.0, {"products": 0.0}) == {"products": 0.0}


def test_kinds_of_operators() -> None:
    names = ("aten::mm", "mkldnn::_linear_pointwise", "aten::addmm", "aten::bmm", "aten::_softmax", "aten::silu")
    assert [kind_of(name) for name in names] == ["products"] * 3 + ["attention"] * 2 + ["small"]
    assert kind_of("aten::_scaled_dot_product_flash_attention_for_cpu") == "attention"
