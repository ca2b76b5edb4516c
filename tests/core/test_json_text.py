import json

import pytest

from selfdraft.core.json_text import MalformedJSON, lone_surrogate, parse_json


def test_sound_json_is_what_json_says() -> None:
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
def test_what_cannot_be_read_has_a_reason_of_one_line(text: str, reason: str) -> None:
    with pytest.raises(MalformedJSON) as refused:
        parse_json(text)
    assert str(refused.value) == reason


def test_halves_of_characters_are_found() -> None:
    assert lone_surrogate("Grüße 😀") is None
    assert lone_surrogate(json.loads('"a\\ude00\\ud83d"')) == "\\ude00"
