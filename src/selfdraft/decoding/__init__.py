"""Floor 2: the loop that every drafter runs in; `Drafting` offers it to transformers' own `generate`.

`selfdraft.Drafting` adds what is kept in files, of which this floor knows nothing.
"""

from selfdraft.decoding.custom_generate import Drafting

__all__ = ["Drafting"]
