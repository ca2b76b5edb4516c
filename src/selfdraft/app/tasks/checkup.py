"""What works for one model on this machine, found by trying: families, dtypes, attention, engines, drafters, modes.

1. The configuration alone says whether the family can be driven, and what fits in memory.
2. The model is loaded unless it is large, and its forward compared with the model's own.
3. The rest is tried on its first layers, of which there are enough for one of each type: a few tokens each.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from selfdraft.app.options.schemas import Config
from selfdraft.core.costs import CostCurve, Costs
from selfdraft.core.errors import UserError
from selfdraft.core.messages import one_line
from selfdraft.decoding.loop import Decoder, Request
from selfdraft.decoding.stopping import Stopping
from selfdraft.drafters.presets import PRESETS, configured, drafter_for
from selfdraft.models.cache.attention import IMPLEMENTATIONS
from selfdraft.models.engines.choice import COMPILED, EAGER, NATIVE, use_engine
from selfdraft.models.families.anatomy import dissect
from selfdraft.models.families.shortened import enough_layers, random_first_layers, shortened
from selfdraft.models.families.state_cache import keeps_state
from selfdraft.models.families.undivided import undivided
from selfdraft.models.forward.target import Target
from selfdraft.models.forward.targets import target_of
from selfdraft.models.loading.loading import DTYPES, LoadedModel, StockModel
from selfdraft.models.measuring.memory import Needed, needed, refuse_what_cannot_fit
from selfdraft.models.reference.invariance import make_shape_invariant

READ_UP_TO = 2_000_000_000  # bytes of weights; those of a larger model are not read
NEW_TOKENS = 8  # of every text that is tried
# Ways to propose with paths that no preset puts together.
PAIRS = [(name, path) for name in ("jacobi", "pool") for path in ("layer_skip", "early_exit")]
CHAINS = "of every draft with branches, the first branch is verified"
UNTRIED = "it fits in memory; not tried, because its weights are large"


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        part: of the configuration, such as `engine`. choice: what was tried, as it is typed.
        reason: why it does not work, or what there is to know; may be empty.
    """

    part: str
    choice: str
    works: bool
    reason: str = ""


class Checkup:
    """Tries everything on one model. Nothing raises: what fails is a finding."""

    def __init__(self, config: Config, tell: Callable[[str], object]) -> None:
        """Take the model's configuration; `tell` is called with a line before something that takes seconds."""
        self.config, self.tell = config, tell
        self.device = torch.device(config.hardware.torch_device)
        self._outline: StockModel | None = None  # without weights
        self._loaded: LoadedModel | None = None  # in the run's dtype, if its weights were read
        self._short: StockModel | None = None  # its first layers
        self._target: Target | None = None  # of these
        self._plain: list[list[int]] = []  # texts that it writes without a drafter

    def findings(self) -> Iterator[Finding]:
        """Yield the lines of the table, as they are found."""
        model = self.config.model
        yield self._tried("model", model.label, self._outlined)
        if (outline := self._outline) is None:
            return
        family = self._tried("family", outline.config.model_type, partial(described, outline))
        yield family
        if not family.works:
            return
        small = sum(p.numel() for p in outline.parameters()) * 4 <= READ_UP_TO
        for dtype in DTYPES:
            yield self._tried("dtype", f"model.dtype={dtype}", partial(self._dtype, outline, dtype, small))
        yield from self._of_tokenizer()
        # Layers of a model that runs as a whole are not taken apart.
        layers = outline.config.num_hidden_layers if undivided(outline) else enough_layers(outline.config)
        yield self._tried("forward", f"first {layers} layers", partial(self._first, outline, layers))
        if self._short is not None:
            yield from self._of_engines(self._short)
            yield from self._of_drafters(self._short)

    def _outlined(self) -> str:
        outline = self._outline = self.config.model.outline()
        return f"{type(outline).__name__}, {sum(p.numel() for p in outline.parameters()) / 1e6:,.1f} million parameters"

    def _dtype(self, outline: StockModel, dtype: str, small: bool) -> str:
        need = self._need(outline, dtype)
        refuse_what_cannot_fit(need, self.device)
        if not small:
            return f"{UNTRIED} ({need.total / 1e6:,.0f} MB)"
        self.tell(f"loading {self.config.model.label} in {dtype}")
        loaded = replace(self.config.model, dtype=dtype).load(self.device)
        target_of(loaded.model, packed=False, attention=self.config.model.attention)
        if dtype == self.config.model.dtype:
            self._loaded = loaded
        return f"{need.total / 1e6:,.0f} MB; its forward is that of transformers"

    def _need(self, outline: StockModel, dtype: str) -> Needed:
        model, tokens = self.config.model, self.config.decoding.max_new_tokens
        return needed(
            outline, DTYPES[dtype], self.device, rows=1, packed=model.packed, new_tokens=tokens, certify=False
        )

    def _of_tokenizer(self) -> Iterator[Finding]:
        if (loaded := self._loaded) is None:
            return
        ids, size = len(loaded.tokenizer), int(loaded.model.config.vocab_size)
        said = f"{ids:,} token ids; the model has {size:,}"
        if ids > size:
            yield Finding("tokenizer", "vocabulary", False, f"{said}: prompts with the others are refused")
        else:
            yield Finding("tokenizer", "vocabulary", True, said)
        chat = bool(getattr(loaded.tokenizer, "chat_template", None))
        yield Finding("tokenizer", "chat template", chat, "" if chat else "none: prompts are given as plain text")

    def _first(self, outline: StockModel, layers: int) -> str:
        """Make the model that the rest is tried on, in float32, so that texts differ only where something is wrong."""
        if self._loaded is not None:
            whole = layers == outline.config.num_hidden_layers
            short = self._loaded.model if whole else shortened(self._loaded.model, layers)
            said = "of the model's weights"
            if short.dtype != torch.float32:
                short, said = copy.deepcopy(short).float(), f"{said}, in float32"
        else:
            short = random_first_layers(outline, layers, torch.float32, self.device)
            said = "with random weights, in float32"
        target_of(short, packed=False)
        self._short = short
        return f"what follows is tried on these layers {said}"

    def _of_engines(self, short: StockModel) -> Iterator[Finding]:
        for kind in IMPLEMENTATIONS:
            yield self._tried("attention", f"model.attention={kind}", partial(self._attends, short, kind))
        for engine in (EAGER, NATIVE, COMPILED):
            yield self._tried("engine", f"model.engine={engine}", partial(self._runs, short, engine))
        yield self._tried("mode", "decoding.shape_invariant=true", partial(self._invariant, short))

    def _attends(self, short: StockModel, kind: str) -> str:
        target_of(short, packed=False, attention=kind)
        return ""

    def _runs(self, short: StockModel, engine: str) -> str:
        self.tell(f"trying model.engine={engine}")
        target = target_of(short, packed=self.config.model.packed, attention=self.config.model.attention)
        said = use_engine(target, engine)
        if engine != EAGER and self.config.model.dtype != "float32":
            return f"with model.dtype=float32: {said}"
        return said

    def _invariant(self, short: StockModel) -> str:
        target = target_of(short, packed=self.config.model.packed)
        use_engine(target, EAGER)
        make_shape_invariant(target)
        return f"with model.engine=eager: chains of up to {target.widest_draft} tokens"

    def _of_drafters(self, short: StockModel) -> Iterator[Finding]:
        self.tell("trying every drafter")
        yield self._tried("drafter", "drafter=none", partial(self._plainly, short))
        if (target := self._target) is None:
            return
        for name in (name for name in PRESETS if name not in ("none", "chain", "trained")):
            yield self._tried("drafter", f"drafter={name}", partial(self._same, target, name))
        for name, path in PAIRS:
            choice = f"drafter={name} drafter/path={path}"
            yield self._tried("drafter", choice, partial(self._same, target, name, path))
        yield Finding("drafter", "drafter=trained", False, "it needs weights: task=finetune trains them")
        yield Finding("mode", "trees", not target.chains_only, CHAINS if target.chains_only else "")
        yield self._tried("mode", "decoding.batch_size=2", partial(self._same, target, "prompt_lookup", rows=2))

    def _plainly(self, short: StockModel) -> str:
        target = target_of(short, packed=False)
        self._plain = self._decoded(target, "none")
        self._target = target
        return ""

    def _same(self, target: Target, name: str, path: str | None = None, rows: int = 1) -> str:
        if self._decoded(target, name, path, rows) != self._plain:
            raise UserError("its text is not that of plain decoding: please report this as a bug")
        return ""

    def _decoded(self, target: Target, name: str, path: str | None = None, rows: int = 1) -> list[list[int]]:
        """Return the texts after two prompts, one of which repeats itself."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(target.vocab_size, (12,), generator=generator).tolist()
        costs = Costs(lambda path: CostCurve((1, 64), (1.0, 1.5)))  # not measured: drafters only have to work
        drafter = drafter_for(target, configured(name, path), costs)
        decoder = Decoder(target, drafter, Stopping(frozenset(), NEW_TOKENS), batch_size=rows)
        return [list(each.output) for each in decoder.answer([Request(ids), Request(ids[:5] * 3)])]

    def _tried(self, part: str, choice: str, work: Callable[[], str]) -> Finding:
        try:
            with warnings.catch_warnings():  # of torch, on functions that are not compiled
                warnings.simplefilter("ignore")
                return Finding(part, choice, True, one_line(work()))
        except UserError as error:
            return Finding(part, choice, False, short_reason(str(error), choice))
        except Exception as error:  # a diagnosis goes on, whatever fails
            said = one_line(f"{type(error).__name__}: {error}")
            return Finding(part, choice, False, f"it fails ({said:.160}): please report this as a bug")


def described(outline: StockModel) -> str:
    """Return what a family's layers are like.

    Raises:
        UserError: the family cannot be driven.
    """
    if keeps_state(outline.config):
        known = Counter(getattr(outline.config, "layer_types", None) or [])
        counts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in known.items())
        return f"layers that keep a state{f' ({counts})' if counts else ''}: drafts are chains, by the whole model"
    if undivided(outline):
        return "layers that cannot be taken apart: drafts are chains, by the whole model"
    anatomy = dissect(outline)
    kinds = Counter(kind.replace("_", " ") for kind in anatomy.layer_types)
    told = [f"{count} layers with {kind}" for kind, count in kinds.items()]
    if anatomy.window is not None:
        told.append(f"a window of {anatomy.window} tokens")
    return ", ".join(told)


def short_reason(error: str, choice: str) -> str:
    """Return a message without what the line of the table says already."""
    reason = error.partition(" is not supported: ")[2] or error.removeprefix(f"{choice}: ")
    return one_line(reason)
