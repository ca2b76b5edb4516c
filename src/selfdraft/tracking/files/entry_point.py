"""How this program was started, for messages that say what to type next."""

from __future__ import annotations

from pathlib import Path

RUN = "python run.py"  # how a run is started from a checkout


def entry_point(script: str) -> str:
    """Return how a user starts SelfDraft: as the installed command, as a module, or by run.py of a checkout.

    Args:
        script: the program that runs, as ``sys.argv[0]`` has it.
    """
    path = Path(script)
    if path.name == "selfdraft":
        return "selfdraft"
    return "python -m selfdraft" if path.parts[-2:] == ("selfdraft", "__main__.py") else RUN
