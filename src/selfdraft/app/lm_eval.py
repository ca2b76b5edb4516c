"""`python -m selfdraft.app.lm_eval`: the command of lm-evaluation-harness, which then knows `--model selfdraft`.

The harness finds models only in its own package, or if they have been imported before its command line is read.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from selfdraft.app.terminal.errors import one_line_errors
from selfdraft.core.errors import UserError

PACKAGE = "lm_eval"


def main() -> None:
    """Run the harness on the arguments of this process.

    Exits with status 2 and one line if the harness is not installed, or if SelfDraft refuses an option.
    """
    with one_line_errors():
        if find_spec(PACKAGE) is None:
            raise UserError("lm-evaluation-harness is not installed: pip install 'selfdraft[lm_eval]'")
        import_module("selfdraft.app.lm_eval_model")  # registers the model
        import_module(f"{PACKAGE}.__main__").cli_evaluate()


if __name__ == "__main__":
    main()
