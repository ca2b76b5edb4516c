"""SelfDraft: lossless self-speculative decoding, configured, certified and timed.

The names of `__all__` are looked up when they are first asked for: importing this package loads neither torch nor
transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdraft.app.comparing import compare
    from selfdraft.app.drafting import Drafting

__version__ = "0.1.0"
__all__ = ["Drafting", "compare"]

# The modules that the names come from.
_HOMES = {"Drafting": "selfdraft.app.drafting", "compare": "selfdraft.app.comparing"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
