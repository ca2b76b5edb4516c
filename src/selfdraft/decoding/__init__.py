"""Floor 2: the loop that every drafter runs in; `Drafting` offers it to transformers' own `generate`.

`selfdraft.Drafting` (in `app`) is the same with files: artifacts, and measured costs that are kept.
"""

from selfdraft.decoding.custom_generate import Drafting

__all__ = ["Drafting"]
