"""Floor 2: the loop that every drafter runs in; `Drafting` offers it to transformers' own `generate`."""

from selfdraft.decoding.custom_generate import Drafting

__all__ = ["Drafting"]
