"""A suffix automaton of several growing texts: it counts the occurrences of every substring.

A state represents all substrings that end at the same positions. Its *link* leads to the state of the longest suffix
that ends at more positions. So the longest match of a text's end with any earlier text is at most one link away, and no
text is ever scanned. (Blumer et al. 1985; online over several texts as in Mohri et al. 2009.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import nlargest
from itertools import islice
from math import sqrt

EMPTY = 0  # the state of the empty substring
CONTEXTS = 3  # suffixes that are mixed; those shorter than the third only add noise
SURPRISE = 2.0  # the best of 0.5, 1, 2 and 4 on answers of SmolLM2


class SuffixAutomaton:
    """Counts of all substrings of the texts appended so far.

    A text is identified by the state of the whole text: `EMPTY` at its beginning, then what `append` returns. So any
    number of texts may grow in turns. There are fewer than two states per token.

    Attributes:
        count: for each state, how often its substrings occurred.
        length: for each state, the length of its longest substring.
        link: for each state, the state of the longest suffix that occurred more often.
    """

    def __init__(self) -> None:
        self.count, self.length, self.link = [0], [0], [-1]
        self._next: list[dict[int, int]] = [{}]  # for each state: token -> the state one token further

    def __len__(self) -> int:
        return len(self.count)

    def append(self, text: int, token: int) -> int:
        """Append `token` to `text`, update the counts, and return the new state.

        Takes amortised constant time, plus one step per link.
        """
        state = self._extended(text, token)
        suffix = state
        while suffix != EMPTY:
            self.count[suffix] += 1
            suffix = self.link[suffix]
        return state

    def match(self, text: int) -> int:
        """Return the state of the longest suffix of `text` that also occurred elsewhere; `EMPTY` if there is none."""
        return text if self.count[text] > 1 or text == EMPTY else self.link[text]

    def advance(self, state: int, length: int, token: int) -> tuple[int, int]:
        """Extend the longest match by `token`; return its state and length, `EMPTY` and 0 for an unknown token."""
        following = self._next
        while token not in following[state]:
            if state == EMPTY:
                return EMPTY, 0
            state = self.link[state]
            length = self.length[state]
        return following[state][token], length + 1

    def continuations(self, state: int) -> dict[int, int]:
        """Return the tokens that followed the state's substrings, each with its state, in order of first occurrence."""
        return self._next[state]

    def suffixes(self, state: int, least: int = 1) -> Iterator[int]:
        """Yield the state, then those of its ever shorter and more frequent suffixes, down to `least` tokens."""
        while self.length[state] >= least and state != EMPTY:
            yield state
            state = self.link[state]

    def chances(self, state: int, length: int, most: int) -> list[tuple[int, float]]:
        """Return up to `most` tokens that may follow a match (its state and its length), each with its probability.

        The state is mixed with its shorter suffixes (prediction by partial matching). Let a match of L tokens have been
        continued C times, with d different tokens. These share the probability C / (C + e) in proportion to their
        counts; the rest, e / (C + e), goes to other tokens, by the shorter suffixes. e = 2 √d / L, because many
        different continuations make a new one more likely, and a long match makes it less likely. (A match may be
        shorter than a state's substrings.)
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
            # Among equally frequent tokens the latest comes first, because what is new in a text soon occurs again.
            for token in nlargest(most, reversed(times), key=times.__getitem__):
                found[token] = share * times[token]
            left = share * escape
        return list(found.items())[:most]

    def _extended(self, text: int, token: int) -> int:
        """Return the state of `text` + `token`, made if there is none. Counts do not include this occurrence yet."""
        known = self._next[text].get(token)
        if known is not None:  # another text begins with the same tokens
            return self._split(text, token, known)
        state = self._new(self.length[text] + 1, {}, count=0)
        while text != -1 and token not in self._next[text]:
            self._next[text][token] = state
            text = self.link[text]
        self.link[state] = EMPTY if text == -1 else self._split(text, token, self._next[text][token])
        return state

    def _split(self, before: int, token: int, state: int) -> int:
        """Return the state of the part of `state` no longer than `before` + `token`: itself, or a new clone of it."""
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
    """One growing text in an automaton, which other texts may share."""

    def __init__(self, automaton: SuffixAutomaton) -> None:
        self.automaton = automaton
        self._state, self._read = EMPTY, 0

    def read_on(self, tokens: Sequence[int]) -> None:
        """Append the tokens that were added to `tokens` since the last call."""
        for token in tokens[self._read :]:
            self._state = self.automaton.append(self._state, int(token))
        self._read = len(tokens)

    def match(self) -> tuple[int, int]:
        """Return the state and the length of the longest match of the text's end."""
        state = self.automaton.match(self._state)
        return state, self.automaton.length[state]
