"""How many examples a fuzz test tries: a few in the suite, many in `make fuzz`."""

import os


def budget(small: int, long: int) -> int:
    """Return `long` where the environment has SELFDRAFT_FUZZ=long (`make fuzz`), else `small` (the suite's part)."""
    return long if os.environ.get("SELFDRAFT_FUZZ") == "long" else small
