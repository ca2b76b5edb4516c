"""Find what a prompt has in common with the texts in the cache, so that its keys are copied and not computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def longest_prefix(tokens: Sequence[int], texts: Mapping[int, Sequence[int]], held: Sequence[int]) -> tuple[int, int]:
    """Return the row whose text begins like `tokens` for longest, and for how many tokens; the first of equal ones.

    Args:
        texts: by row, the text of its request. held: by row, how many of its first tokens are in the cache.
    """
    best = 0, 0
    for row, text in texts.items():
        most = min(len(tokens), len(text), held[row])
        # Most rows are no better than the best one so far, which the comparison of a slice shows at once.
        if most > best[1] and text[: best[1] + 1] == tokens[: best[1] + 1]:
            best = row, next((at for at in range(most) if text[at] != tokens[at]), most)
    return best
