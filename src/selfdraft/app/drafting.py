"""`selfdraft.Drafting`: a drafter for transformers' `generate`, with what is kept in files.

Artifacts give the drafter that a calibration or a fine-tuning found, and the cache of costs spares later processes the
seconds of measuring.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfdraft.app.terminal.console import make_console
from selfdraft.core.costs import Costs
from selfdraft.decoding import custom_generate
from selfdraft.models.engines.choice import EAGER
from selfdraft.models.forward.target import Target
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.loading import StockModel
from selfdraft.tracking.files.artifact import Artifact
from selfdraft.tracking.files.cost_cache import kept_costs

PATIENCE_S = 2.0  # seconds of measuring after which a line says so


class Drafting(custom_generate.Drafting):
    """Decodes for `generate`, with any drafter: `model.generate(…, custom_generate=Drafting("pool"))`.

    The model is not changed. Options of `generate` keep their meaning; options that cannot be honoured are refused.
    Keep the object between calls, because the model is prepared once, and again only when it has changed.

    What forwards cost on this machine is measured once for a model, its dtype, the engine and the number of threads,
    and kept in the cache folder (`SELFDRAFT_CACHE`), unless other programs kept the machine busy then. Delete its
    folder `costs` to have it measured anew.

    Attributes:
        last: what the last call accepted and how long it took (see `decoding/last_call.py`); None before the first one
            and after one that failed.
    """

    _artifact: Artifact | None = None
    _named = ""  # the artifact, as the user gave it

    @classmethod
    def from_artifact(
        cls, artifact: str | Path, /, *, engine: str = EAGER, packed: bool = True, **options: Any
    ) -> Drafting:
        """Draft as a calibration or a fine-tuning found it best.

        Args:
            artifact: the `drafter.yaml` that `task=calibrate` or `task=finetune` wrote, or the folder of that run.
            engine, packed: see `Drafting`.
            options: of the drafter and its path; they take the place of the artifact's own.

        Raises:
            UserError: there is no artifact, or an option is wrong. A call of `generate` with another model than the one
                that the artifact is for raises one, too.
        """
        found = Artifact.read(Path(artifact), "Drafting.from_artifact")
        drafting = cls(found.drafter, engine=engine, packed=packed, **{**found.options, **options})
        drafting._artifact, drafting._named = found, str(artifact)
        return drafting

    def _prepare(self, model: StockModel) -> custom_generate._Prepared:
        if self._artifact is not None:
            label = model.name_or_path or model.config.model_type
            self._artifact.refuse_other_model(self._named, label, fingerprint(model))
        return super()._prepare(model)

    def _costs(self, target: Target) -> Costs:
        return kept_costs(target, self.config, _Patience())


class _Patience:
    """Prints one line when the blocks that it is entered for have taken longer than `PATIENCE_S` in all."""

    def __init__(self) -> None:
        self._left, self._told = PATIENCE_S, False

    @contextmanager
    def __call__(self, place: Path | None) -> Iterator[None]:
        """Watch a block; the line names the file `place` that keeps the result."""
        begun = time.perf_counter()
        timer = threading.Timer(max(self._left, 0.0), self._tell, [place])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._left -= time.perf_counter() - begun

    def _tell(self, place: Path | None) -> None:
        if not self._told:
            self._told = True
            line = "selfdraft: measuring what forwards cost here"
            if place is not None:
                line += f"; kept in {place.parent} for the next time, unless other programs keep this machine busy"
            make_console(stderr=True).print(line, soft_wrap=True)
