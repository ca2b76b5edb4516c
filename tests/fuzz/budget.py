"""Examples of a fuzz test: a few fixed ones in the suite, many new ones in `make fuzz`."""

import os

from hypothesis import HealthCheck


def budget(small: int, long: int) -> int:
    """Return `long` where the environment has SELFDRAFT_FUZZ=long (`make fuzz`), else `small` (the suite's part)."""
    return long if os.environ.get("SELFDRAFT_FUZZ") == "long" else small


# Beside max_examples, for hypothesis.settings: an example may take seconds, and fixtures serve them all.
SETTINGS = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
    "derandomize": bool(budget(1, 0)),
}
