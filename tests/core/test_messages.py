"""Messages: control characters are escaped, and failures of optional work are warnings."""

import unicodedata

import pytest

from selfdraft.core.messages import harmless, one_line, printable, warn


def test_only_control_characters_are_escaped():
    every = "".join(map(chr, range(0x3000)))
    shown = printable(every)
    assert not [c for c in shown if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert "\\x1b" in shown and "\\x9b" in shown and "\\x7f" in shown and "\\x0d" in shown
    kept = "two\nlines\tand a tab, naïve 日本 👩‍👩‍👧 שלום \\x1b"
    assert printable(kept) == kept
    assert printable(printable(every)) == shown


@pytest.mark.parametrize("text", ["\u202eevil", "half \ud800", "\udcff"])
def test_bidirectional_controls_and_lone_surrogates_are_escaped(text):
    printable(text).encode()
    assert "\\u" in printable(text)


def test_a_message_is_put_on_one_line():
    assert one_line("a\r\n\tb\x1b[31m\u2028c ") == "a b\\x1b[31m c"


def test_a_harmless_failure_is_one_warning_line(capsys):
    with harmless("the picture was not drawn"):
        raise RuntimeError("no \x1b[2J luck\nand more")
    with harmless("not logged"):
        raise ConnectionResetError
    warn("done")
    assert capsys.readouterr().err.splitlines() == [
        "warning: the picture was not drawn: no \\x1b[2J luck",
        "warning: not logged: ConnectionResetError",
        "warning: done",
    ]


def test_ctrl_c_is_not_a_harmless_failure():
    with pytest.raises(KeyboardInterrupt), harmless("x"):
        raise KeyboardInterrupt
