"""Which answers are right: the final number, the boxed expression, and the code of an answer."""

from __future__ import annotations

import pytest

from selfdraft.core.scoring import (
    EXPRESSION,
    NUMBER,
    TESTS,
    Reference,
    code_in,
    final_number,
    is_right,
    last_boxed,
    normalised,
    program,
    reference_of,
    same,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 apples and 4 pears.\n#### 7", "7"),
        ("#### 1\nNo, again.\n#### 1,234.50 dollars", "1,234.50"),
        ("First 12, and so the answer is 18.", "18"),
        ("It costs $1,000, as said.", "$1,000"),
        ("He owes -5 dollars", "-5"),
        (r"So \boxed{42} is it, in 3 steps.", "42"),
        ("about .5 of it", ".5"),
        ("#### none, but 6 before", "6"),
        ("I do not know.", None),
        ("", None),
    ],
)
def test_the_final_number_of_an_answer(text: str, number: str | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"\boxed{1} then $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\fbox{a\}b{c}}", r"a\}b{c}"),
        (r"$\boxed 7$", "7"),
        (r"\boxed{\sqrt{3", None),
        (r"\boxed", None),
        ("no box", None),
    ],
)
def test_the_last_box_of_an_answer(text: str, inside: str | None) -> None:
    assert last_boxed(text) == inside


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        ("1/2", r"\tfrac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        ("-0.50", "-1/2"),
        ("1,234", "1234"),
        ("10{,}000", "10000"),
        ("$72", "72.00"),
        ("18.", "18"),
        (r"5 \text{ cm}", "5"),
        (r"\text{Evelyn}", "Evelyn"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"90^\circ", "90"),
        (r"25\%", "25"),
        ("x = 5", "5"),
        (r"\sqrt3", r"\sqrt{3}"),
        (r"2\!\sqrt{3}", r"2\sqrt{3}"),
    ],
)
def test_forms_that_mean_the_same(one: str, other: str) -> None:
    assert same(one, other) and same(other, one)
    assert normalised(normalised(one)) == normalised(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "2"), ("5", "-5"), ("(1,2)", "(1,3)"), ("(1,234)", "(1234)"), (r"\sqrt{3}", "3"), ("1/0", "2/0"), ("", "0")],
)
def test_forms_that_differ(one: str, other: str) -> None:
    assert not same(one, other) and not same(other, one)


def test_endless_numbers_are_compared_as_texts() -> None:
    assert same("9" * 100_000, "9" * 100_000)
    assert not same("9" * 100_000, "9" * 100_000 + ".0")


def test_the_kind_of_a_reference_is_that_of_the_answer() -> None:
    for answer in ("7", "-1,234.5", "3/4", "$1,000"):
        assert reference_of(answer) == Reference(NUMBER, answer)
    for answer in (r"x^2", "(1, 2)", ""):
        assert reference_of(answer) == Reference(EXPRESSION, answer)
    assert is_right(reference_of("7"), "So it is 7.") and not is_right(reference_of(r"\pi"), "So it is pi.")


def test_an_answer_is_right_by_its_kind_of_reference() -> None:
    assert is_right(Reference(NUMBER, "1234"), "So #### 1,234.00")
    assert not is_right(Reference(NUMBER, "1234"), "1234 or 5")
    assert is_right(Reference(EXPRESSION, r"\frac{1}{2}"), r"Thus $\boxed{\dfrac{1}{2}}$, not 3.")
    assert not is_right(Reference(EXPRESSION, "2"), "It is 2.")  # nothing is boxed
    assert (Reference(EXPRESSION, "2").metric, Reference(TESTS, "").metric) == ("exact match", "pass@1")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Sure:\n```python\ndef f():\n    return 1\n```\nThen:\n```python\nf()\n```", "def f():\n    return 1"),
        ("```bash\npip install x\n```\n```py\ndef f(): ...\n```", "def f(): ..."),
        ("```\nx = 1\n```", "x = 1"),
        ("Look:\n```python\ndef f():\n    retur", "def f():\n    retur"),
        ("    return x + 1", "    return x + 1"),
        ("```python\n```", ""),
    ],
)
def test_the_code_of_an_answer(text: str, code: str) -> None:
    assert code_in(text) == code


@pytest.mark.parametrize("answer", ["    return x + 1", "```python\ndef f(x):\n    return x + 1\n```"])
def test_a_program_takes_the_whole_function_or_the_rest_of_it(answer: str) -> None:
    reference = Reference(TESTS, "assert f(2) == 3", preamble='def f(x):\n    """Add one."""\n')
    exec(compile(program(reference, answer), "answer", "exec"), {})
    with pytest.raises(AssertionError):
        exec(compile(program(reference, answer.replace("+", "-")), "answer", "exec"), {})
