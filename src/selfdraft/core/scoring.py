"""Compare answers with references: the final number, the boxed expression, or a program that tests the answer's code.

These are the rules of the usual harnesses (GSM8K: Cobbe et al. 2021, arXiv 2110.14168; MATH: Hendrycks et al. 2021,
arXiv 2103.03874; HumanEval: Chen et al. 2021, arXiv 2107.03374), so that scores can be compared with published ones.
Nothing is run here: see `app.tasks.score` for code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

NUMBER, EXPRESSION, TESTS = "number", "expression", "tests"
METRICS = {NUMBER: "exact match", EXPRESSION: "exact match", TESTS: "pass@1"}

MARK = "####"  # stands before the final number in GSM8K's answers
BOXES = ("\\boxed", "\\fbox")
MAX_DIGITS = 200  # longer numbers are compared as texts

_NUMBER = re.compile(r"-?\$?(?:\d+(?:,\d+)*(?:\.\d+)?|\.\d+)")
_PLAIN_NUMBER = re.compile(r"(-?)(\d*\.?\d+)(?:/(\d+))?")
_FRACTION = re.compile(r"(-?)\\frac\{(-?\d+)\}\{(\d+)\}")
_FENCED = re.compile(r"```[^\S\n]*([\w+-]*)[^\n]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
# LaTeX that changes only how an expression looks.
_LOOKS = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\\\$|\\?%|\^\{?\\circ\}?|\$|\{,\}(?!\d)|~")
_UNIT = re.compile(r"\\(?:text|mbox)\{\s*([^{}]*)\}\s*$")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\{([^{}]*)\}")


@dataclass(frozen=True)
class Reference:
    """What an answer is compared with.

    Attributes:
        kind: NUMBER (the final number), EXPRESSION (the boxed expression) or TESTS (a program that tests its code).
        answer: the number, the expression, or the program that runs after the answer's code and raises if it is wrong.
        preamble: code that runs before the answer's code, such as imports; only for TESTS.
    """

    kind: str
    answer: str
    preamble: str = ""

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return METRICS[self.kind]


def reference_of(answer: str) -> Reference:
    """Return the reference for a right answer: a number if it is one, otherwise an expression that answers box."""
    is_number = _value(normalised(answer)) is not None
    return Reference(NUMBER if is_number else EXPRESSION, answer)


def is_right(reference: Reference, text: str) -> bool:
    """Return whether an answer's final number or boxed expression is that of the reference.

    Args:
        reference: of kind NUMBER or EXPRESSION.
        text: the whole answer.
    """
    extract: Callable[[str], str | None] = final_number if reference.kind == NUMBER else last_boxed
    found = extract(text)
    return found is not None and same(found, reference.answer)


def final_number(text: str) -> str | None:
    """Return the number after the last `####`, otherwise in the last box, otherwise the last one; None without any."""
    _, mark, after = text.rpartition(MARK)
    if mark and (found := _NUMBER.search(after)):
        return found.group()
    boxed = last_boxed(text)
    numbers = _NUMBER.findall(boxed or "") or _NUMBER.findall(text)
    return numbers[-1] if numbers else None


def last_boxed(text: str) -> str | None:
    r"""Return what the last \boxed{…} or \fbox{…} holds, or the word after `\boxed `; None if there is none."""
    start, box = max((text.rfind(box), box) for box in BOXES)
    if start < 0:
        return None
    rest = text[start + len(box) :]
    if not rest.startswith("{"):
        words = rest.replace("$", " ").split()
        return words[0] if rest[:1].isspace() and words else None
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", rest, re.DOTALL):  # an escaped brace is a letter
        depth += (brace.group() == "{") - (brace.group() == "}")
        if depth == 0:
            return rest[1 : brace.start()]
    return None  # the answer ended within the box


def same(one: str, other: str) -> bool:
    """Return whether two answers are equal once their form is normalised, or have the same value as numbers."""
    left, right = normalised(one), normalised(other)
    return left == right or ((value := _value(left)) is not None and value == _value(right))


def normalised(expression: str) -> str:
    r"""Return an expression in one form of several that mean the same, e.g. `\frac{1}{2}` for `\dfrac12` and `1/2`."""
    text = expression.strip().strip("$").strip()
    text = _UNIT.sub(
        lambda unit: "" if unit.start() else unit.group(1), text
    )  # "5 \text{ cm}", but not "\text{Evelyn}"
    text = _WRAPPED.sub(r"\1", text)
    text = _LOOKS.sub("", text.replace("{,}", ","))
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"\s+", "", text).rstrip(".")
    if re.fullmatch(r"[a-zA-Z]=.+", text):  # "x = 5"
        text = text[2:]
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    if found := re.fullmatch(r"(-?)(\d+)/(\d+)", text):
        return f"{found[1]}\\frac{{{found[2]}}}{{{found[3]}}}"
    return text


def _value(text: str) -> Fraction | None:
    """Return the value of a normalised number or fraction; None if it is neither, or has too many digits."""
    found = _FRACTION.fullmatch(text) or _PLAIN_NUMBER.fullmatch(text)
    if found is None or len(text) > MAX_DIGITS or (found[3] and not int(found[3])):
        return None
    value = Fraction(found[2]) / int(found[3] or 1)
    return -value if found[1] else value


def code_in(text: str) -> str:
    """Return the code of an answer: its first fenced block that defines something, its first block, or all of it.

    A block that the answer ends in the middle of counts up to there.
    """
    blocks = [block for _, block in _FENCED.findall(text)]
    return next((block for block in blocks if re.search(r"^\s*(?:async )?(?:def|class) ", block, re.M)), None) or (
        blocks[0] if blocks else text
    )


def program(reference: Reference, text: str) -> str:
    """Return the program that tests an answer's code: it ends without an exception if the code is right.

    The preamble of HumanEval is the beginning of the function that the answer completes, so an answer may be the whole
    function or only the rest of it.
    """
    return "\n".join([reference.preamble.rstrip("\n"), code_in(text), reference.answer, ""])
