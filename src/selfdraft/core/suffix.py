"""Every substring of growing texts, with how often it occurred: a suffix automaton over several texts at once.

Blumer et al. 1985; online over several texts as in Mohri et al. 2009. A state stands for substrings that end at the
same places; its *link* leads to the longest shorter suffix that ends at more places. So the longest match of a text's
end with anything that was said before is one link away, whatever its length, and no text is ever scanned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import nlargest
from itertools import islice
from math import sqrt

EMPTY = 0  # the state of the empty substring
CONTEXTS = 3  # suffixes mixed: those shorter than the third add nothing but noise
SURPRISE = 2.0  # of 0.5, 1, 2 and 4 what gained most on answers of SmolLM2


class SuffixAutomaton:
    """Counts of all substrings of the texts appended so far.

    Each text is known by the state of the whole of it, `EMPTY` at its beginning, which `append` moves on: any number of
    texts may grow in turns. Memory: below two states a token.

    Attributes:
        count: by state, how often its substrings occurred.
        length: by state, the length of its longest substring.
        link: by state, where the longest suffix stands that occurred more often.
    """

    def __init__(self) -> None:
        self.count, self.length, self.link = [0], [0], [-1]
        self._next: list[dict[int, int]] = [{}]  # by state: token -> the state one token further

    def __len__(self) -> int:
        return len(self.count)

    def append(self, text: int, token: int) -> int:
        """The state of `text` with `token` behind it, counted. Costs amortised constant time, and one step a link."""
        state = self._extended(text, token)
        suffix = state
        while suffix != EMPTY:
            self.count[suffix] += 1
            suffix = self.link[suffix]
        return state

    def match(self, text: int) -> int:
        """The state of the longest suffix of `text` that occurred elsewhere too; `EMPTY` if there is none."""
        return text if self.count[text] > 1 or text == EMPTY else self.link[text]

    def advance(self, state: int, length: int, token: int) -> tuple[int, int]:
        """The longest match after `token`, given the one before it: state and length. `EMPTY` and 0 for a new token."""
        following = self._next
        while token not in following[state]:
            if state == EMPTY:
                return EMPTY, 0
            state = self.link[state]
            length = self.length[state]
        return following[state][token], length + 1

    def continuations(self, state: int) -> dict[int, int]:
        """What followed the state's substrings, each token with its own state; the first to occur comes first."""
        return self._next[state]

    def suffixes(self, state: int, least: int = 1) -> Iterator[int]:
        """The state and those of its ever shorter, ever more frequent suffixes, down to `least` tokens."""
        while self.length[state] >= least and state != EMPTY:
            yield state
            state = self.link[state]

    def chances(self, state: int, length: int, most: int) -> list[tuple[int, float]]:
        """Up to `most` tokens that may follow a match (its state and its length), each with the chance that it does.

        The state is mixed with its shorter suffixes (prediction by partial matching). Of the C times it was continued,
        in d different ways, with substrings of L tokens, each continuation gets its share of C / (C + e); the rest,
        e / (C + e), is what the shorter suffixes say about other tokens. e = 2 √d / L: to be continued in many ways
        speaks for surprises, a long match against them. (What was matched may be shorter than a state's substrings.)
        """
        found: dict[int, float] = {}
        left = 1.0
        for suffix in islice(self.suffixes(state), CONTEXTS):
            times = {token: self.count[to] for token, to in self._next[suffix].items() if token not in found}
            if not times:
                continue
            total = sum(times.values())
            escape = SURPRISE * sqrt(len(times)) / min(length, self.length[suffix])
            share = left / (total + escape)
            # Of equally frequent ones the last to be seen first: what is new in a text comes again soon.
            for token in nlargest(most, reversed(times), key=times.__getitem__):
                found[token] = share * times[token]
            left = share * escape
        return list(found.items())[:most]

    def _extended(self, text: int, token: int) -> int:
        """The state of `text` + `token`, made where there is none; counts of new states still without this end."""
        known = self._next[text].get(token)
        if known is not None:  # another text began so
            return self._split(text, token, known)
        state = self._new(self.length[text] + 1, {}, count=0)
        while text != -1 and token not in self._next[text]:
            self._next[text][token] = state
            text = self.link[text]
        self.link[state] = EMPTY if text == -1 else self._split(text, token, self._next[text][token])
        return state

    def _split(self, before: int, token: int, state: int) -> int:
        """The part of `state` that is no longer than what `before` leads to: itself, or a clone that takes over."""
        length = self.length[before] + 1
        if self.length[state] == length:
            return state
        clone = self._new(length, dict(self._next[state]), self.count[state])
        self.link[clone], self.link[state] = self.link[state], clone
        while before != -1 and self._next[before].get(token) == state:
            self._next[before][token] = clone
            before = self.link[before]
        return clone

    def _new(self, length: int, following: dict[int, int], count: int) -> int:
        self._next.append(following)
        self.length.append(length)
        self.count.append(count)
        self.link.append(EMPTY)
        return len(self.count) - 1


class SuffixText:
    """One growing text in an automaton, of its own or shared with others."""

    def __init__(self, automaton: SuffixAutomaton) -> None:
        self.automaton = automaton
        self._state, self._read = EMPTY, 0

    def read_on(self, tokens: Sequence[int]) -> None:
        """Take in what was added to `tokens` since the last time."""
        for token in tokens[self._read :]:
            self._state = self.automaton.append(self._state, int(token))
        self._read = len(tokens)

    def match(self) -> tuple[int, int]:
        """The longest match of the text's end: its state, and its length."""
        state = self.automaton.match(self._state)
        return state, self.automaton.length[state]
