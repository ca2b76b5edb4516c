"""Plain decoding, one token per forward: the baseline, in the same loop, with the same kernels and cache."""

from __future__ import annotations

from selfdraft.core.tree import TokenTree
from selfdraft.drafters.base import Context, Draft, Drafter, DrafterConfig

_EMPTY = TokenTree.empty()


class NoDrafter(Drafter):
    """Never drafts."""

    Config = DrafterConfig
    distributions = False

    def propose(self, context: Context) -> Draft:
        """Return the empty draft."""
        return Draft(_EMPTY)
