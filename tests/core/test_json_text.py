import json

import pytest

from selfdraft.core.json_text import MalformedJSON, lone_surrogate, parse_json


def test_valid_json_is_read_as_the_json_module_reads_it() -> None:
    text = '{"a": [1, 2.5, null, "\\ud83d\\ude00"]}'
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value at column 1"),
        ('{"a": 1,\n"b"}', "Expecting ':' delimiter at line 2, column 4"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 5000, "a number has too many digits"),
    ],
    ids=["empty", "malformed", "deep arrays", "deep objects", "digits"],
)
def test_unreadable_json_gives_one_clear_line(text: str, reason: str) -> None:
    with pytest.raises(MalformedJSON) as refused:
        parse_json(text)
    assert str(refused.value) == reason


def test_lone_surrogates_are_found() -> None:
    assert lone_surrogate("Grüße 😀") is None
    assert lone_surrogate(json.loads('"a\\ude00\\ud83d"')) == "\\ude00"
