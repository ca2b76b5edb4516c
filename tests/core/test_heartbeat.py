"""Lines while something long goes on."""

from __future__ import annotations

import threading

from selfdraft.core.heartbeat import Heartbeat, busy


def test_it_beats_until_the_block_ends() -> None:
    beats: list[float] = []
    third = threading.Event()

    def beat(seconds: float) -> None:
        beats.append(seconds)
        if len(beats) == 3:
            third.set()

    with Heartbeat(beat, every_s=0.01):
        assert third.wait(10)
    count = len(beats)
    assert beats == sorted(beats) and count >= 3
    threading.Event().wait(0.05)
    assert len(beats) == count, "it went on after the block"


def test_busy_tells_at_once_and_only_once_about_something_short() -> None:
    told: list[str] = []
    with busy("loading", told.append):
        assert told == ["loading …"]
    assert told == ["loading …"]
