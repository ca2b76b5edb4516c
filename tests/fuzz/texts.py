"""Texts and JSON values for fuzz tests, common and unusual ones."""

from __future__ import annotations

import json

from hypothesis import strategies as st

AWKWARD = [
    "", " ", "\n", "\x00", "\x1b[2J", "\x1b]0;x\x07", "\x7f", "\x9b31m", "\u202e", "\u2028", "\ud800", "a\udfffb",
    "\ufeff", "😀", "ﬁ", "[/]", "[bold]", "$\\frac$", "{{ x }}", "{% raw %}", "${oc.env:HOME}", "${seed}", "???",
    "null", "~/x", "<|im_end|>", "<s>", "../x", "/", "a,b", "a=b", "'", '"', "\\", "#", "%s", "{}", "x" * 3000,
]  # fmt: skip
DEEP = 20_000
BIG = int("9" * 4000)

words = st.one_of(st.sampled_from(AWKWARD), st.text(st.characters(), max_size=12), st.text("abc xyz", max_size=8))
numbers = st.one_of(st.integers(-3, 300), st.sampled_from([2**31, 2**63, BIG]), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)


def as_json(value: object) -> str:
    """What `json.dumps` writes, half characters and NaN included."""
    return json.dumps(value)
