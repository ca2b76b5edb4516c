"""A target that runs a model as a whole, by its own forward and transformers' cache of it.

It is for families whose layers keep a state (convolutions, linear attention, state spaces), and for those whose layers
cannot be taken apart. A state is a summary of the whole text. Keys and values of rejected tokens can be dropped, but
their effect on a state cannot. So this target verifies chains in these steps:

1. Before a draft is verified, the states are copied: a checkpoint.
2. If the whole draft is accepted, the cache is as it should be.
3. Otherwise the checkpoint is restored, and the cache lacks the accepted tokens: they are *owed*. They go before the
   next block, in the same forward, and cost no forward of their own. Only when `MOST_OWED` have gathered are they run
   by themselves.

Where transformers' cache can drop its last tokens, nothing is owed: it has no states, or only those of short
convolutions (LFM2).

A tree has several texts in one forward, and a state has one, so forwards take chains only. Rows run one after another.

Shapes: n nodes of a chain, V vocabulary.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfdraft.core.errors import Unsupported, UserError
from selfdraft.core.skipset import SkipSet
from selfdraft.core.tree import TokenTree
from selfdraft.models.families.anatomy import position_limit, refuse, refusing, text_config
from selfdraft.models.families.chunks import chunked_layers, chunks_for
from selfdraft.models.families.dispatch import device_of, is_placed
from selfdraft.models.families.hooks import called_otherwise
from selfdraft.models.families.lightcopy import light_copy
from selfdraft.models.families.rotary import UNLIMITED
from selfdraft.models.families.routing import mixtures
from selfdraft.models.families.state_cache import Checkpoint, Row, StateCache, keeps_state
from selfdraft.models.families.undivided import cache_name
from selfdraft.models.forward.driver import first_in
from selfdraft.models.forward.path import Graph, Path, Reuse
from selfdraft.models.forward.trial import stock_logits
from selfdraft.models.kernels.packing import PackedLinear, can_pack
from selfdraft.models.kernels.weights import SAME

MOST_OWED = 16  # tokens: a forward takes hardly longer with up to about so many
PREFILL_CHUNK = 512  # tokens per prefill forward
NO_LIMIT = 2**20  # positions of a model whose configuration has no limit
TRIED = 14  # tokens on which forwards with checkpoints are compared with the model's own


class StatefulTarget:
    """A model that is run as a whole, as `TargetProtocol` asks for it.

    Attributes:
        reason: why the model is run as a whole, for messages.
        replays: number of forwards that only ran accepted tokens again, and verified nothing.
        copied_s: seconds spent on checkpoints.
    """

    def __init__(self, model: PreTrainedModel, *, packed: bool = True) -> None:
        """Take a loaded model in eval mode.

        Args:
            packed: on a CPU, run a light copy of the model whose matrices are packed for oneDNN.

        Raises:
            UserError: its logits with a cache are not those without one; the message names the family.
        """
        config = text_config(model)
        self.reason = "keeps a state in its layers" if keeps_state(model.config) else "has layers of a kind of its own"
        self.model, self.device, self.dtype = model, device_of(model), model.dtype
        self.vocab_size = int(config.vocab_size)
        self.max_positions = position_limit(config, NO_LIMIT)
        self.pad_id = first_in(
            self.vocab_size, getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
        )
        rope = str(getattr(config, "rope_parameters", None) or {})
        if "longrope" in rope or "dynamic" in rope:
            raise refuse(model, "it is run as a whole, and its rotary positions depend on the length of the text")
        depth = int(config.num_hidden_layers)
        stacks = (m for m in model.base_model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth)
        stack = next(stacks, torch.nn.ModuleList())
        self.full = Path(tuple(stack), ("",) * depth, SkipSet(), leading=depth)
        self.rotary = SimpleNamespace(recomputed_past=None, rules={}, limits=set(), alike_after=lambda root: UNLIMITED)
        self.chains_only, self.forwards, self.replays, self.copied_s = True, 0, 0, 0.0
        self.compiled: dict[tuple[int, ...], Graph] = {}
        packed = packed and not is_placed(model)
        self.native, self.whole, self.packed, self.weights = None, None, packed, SAME
        self._running = light_copy(model, _packed) if packed else model
        self._chunked = chunked_layers(self._running)
        self.attention = str(config._attn_implementation)
        self._name = cache_name(model)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.cache, self._drops = StateCache(1), True
        self.parameters = sum(p.numel() for p in model.parameters())
        if not self._name:
            raise refuse(model, "its forward takes no cache")
        self.compare_with_stock_forward()

    def graph(self, *_: object) -> None:
        """Return None: layers run one by one, within the model's own forward."""

    def linears(self) -> list[torch.nn.Module]:
        """Return the matrices that have packed copies."""
        return [part for part in self._running.modules() if isinstance(part, PackedLinear)]

    def mixtures(self) -> list[torch.nn.Module]:
        """Return the parts that run experts."""
        return mixtures([self._running])

    def allocate(self, rows: int, slots: int) -> None:
        """See `TargetProtocol.allocate`."""
        self.cache = StateCache(max(rows, self.cache.rows))

    def longest_draft(self, row: int) -> int:
        """See `TargetProtocol.longest_draft`."""
        return UNLIMITED

    def copy_prefix(self, source: int, row: int, length: int) -> int:
        """Copy nothing: a state holds the whole text of its row, and not its beginning."""
        self.cache.clear(row)
        return 0

    def refresh(self, row: int, tokens: Sequence[int]) -> None:
        """Do nothing: such families are refused where their rope depends on the length of the text."""

    @torch.inference_mode()
    def prefill(self, row: int, tokens: Sequence[int]) -> None:
        """See `TargetProtocol.prefill`."""
        held = self.cache.held[row]
        held.tokens += tokens
        self._catch_up(held, 0)

    @torch.inference_mode()
    def forward(
        self,
        rows: Sequence[int],
        roots: Sequence[int],
        trees: Sequence[TokenTree],
        *,
        reuse: Sequence[Reuse | None] | None = None,
        keep: Sequence[list[Tensor]] | None = None,
        through: Path | None = None,
    ) -> list[Tensor]:
        """See `TargetProtocol.forward`."""
        if keep is not None or through is not None:
            raise self.undivided()
        self.forwards += 1
        out = []
        for row, root, tree in zip(rows, roots, trees, strict=True):
            held = self.cache.held[row]
            block = [root, *self._chain(tree)]
            self._catch_up(held, MOST_OWED)
            held.checkpoint = self._copied(held) if len(block) > 1 else None
            out.append(self._run(held, [*held.tokens[held.covered :], *block], len(block)))
            held.block = block
        return out

    @torch.inference_mode()
    def draft_forward(
        self,
        path: Path,
        rows: Sequence[int],
        offset: int,
        tokens: Sequence[int],
        trees: Sequence[TokenTree],
        *,
        keep: Sequence[list[Tensor]] | None = None,
    ) -> list[Tensor]:
        """See `TargetProtocol.draft_forward`: a draft is run from its beginning each time it grows."""
        if path is not self.full or keep is not None:
            raise self.undivided()
        self.forwards += 1
        out = []
        for row, token, tree in zip(rows, tokens, trees, strict=True):
            held = self.cache.held[row]
            block = [token, *self._chain(tree)]
            held.scratch = [*held.scratch[:offset], *block]
            self._catch_up(held, MOST_OWED)
            checkpoint = self._copied(held)
            run = [*held.tokens[held.covered :], *held.scratch]
            out.append(self._run(held, run, len(block)))
            held.undo(checkpoint, len(run))
        return out

    def replay(self, path: Path, row: int, position: int, tokens: Sequence[int], block: int | None = None) -> Tensor:
        """Refuse: only drafters that run a part of the model ask for it."""
        raise self.undivided()

    @torch.inference_mode()
    def commit(self, row: int, nodes: Sequence[int]) -> None:
        """See `TargetProtocol.commit`."""
        held, kept = self.cache.held[row], 1 + len(nodes)
        owed, dropped = len(held.tokens) - held.covered, len(held.block) - kept
        held.tokens += held.block[:kept]
        stays = not dropped or (held.covered > 0 and held.drops_tokens)
        held.undo(held.checkpoint, dropped)
        held.covered += owed + kept if stays else 0
        held.checkpoint, held.block, held.scratch = None, [], []

    def undivided(self) -> UserError:
        """Return the error for drafters that run a part of the model, or look into it."""
        return Unsupported(
            f"model family '{self.model.config.model_type}' {self.reason}, so it is run as a whole: take a drafter "
            "that runs no part of it, such as pool, suffix, prompt_lookup or jacobi"
        )

    @torch.inference_mode()
    def compare_with_stock_forward(self) -> None:
        """Decode a few tokens with drafts that are accepted in part, and compare with the model's own forward.

        Raises:
            UserError: the logits differ.
        """
        drawn = torch.randint(self.vocab_size, (TRIED,), generator=torch.Generator().manual_seed(0))
        text = drawn.tolist()
        stock = stock_logits(self.model, drawn)
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.1
        try:
            error = self._apart(stock, text)
        except Exception:
            error = float("nan")
        if not error < tolerance:  # written so that NaN counts as large
            # Some caches (DeepSeek-V4) say that they can forget tokens, but cannot: then copy them before each draft.
            self._drops = False
            with refusing(self.model, "its forward does not go on from a cache of the text by several tokens"):
                error = self._apart(stock, text)
        self.cache, self.forwards, self.replays, self.copied_s = StateCache(1), 0, 0, 0.0
        if not error < tolerance:
            said = f"it {self.reason}, and its forward goes on from a text one token at a time only"
            raise refuse(self.model, f"{said} (several tokens differ by {error:.2g} of a sigma)")

    def _apart(self, stock: Tensor, text: list[int]) -> float:
        """Return by how much our logits of a text differ from (S, V) stock ones, as a share of their deviation."""
        self.cache, found = StateCache(1), []
        self.prefill(0, text[:5])
        for first, end, wrong in ((5, 8, 3), (8, 9, 2), (9, 10, 0), (10, 13, 2), (13, 14, 0)):
            chain = [*text[first + 1 : end], *text[:wrong]]
            (logits,) = self.forward([0], [text[first]], [TokenTree.chain(chain)])
            self.commit(0, range(end - first - 1))
            found.append(logits[: end - first].float())
        return float((stock[5:] - torch.cat(found)).abs().mean() / stock.std(dim=-1).mean())

    def _catch_up(self, held: Row, most: int) -> None:
        """Run the tokens that the cache lacks, if they are more than `most`."""
        if len(held.tokens) - held.covered <= most:
            return
        self.replays += held.covered > 0
        while held.covered < len(held.tokens):
            chunk = held.tokens[held.covered : held.covered + PREFILL_CHUNK]
            self._run(held, chunk, 1)
            if held.drops_tokens:
                held.cache.crop(0)
            held.covered += len(chunk)

    def _run(self, held: Row, tokens: Sequence[int], count: int) -> Tensor:
        """Run tokens after those in the cache; return the (count, V) logits after the last ones."""
        ids = torch.tensor([list(tokens)], device=self.device)
        given = {self._name: held.cache} if held.cache is not None else {}
        if self._keeps_logits:
            given["logits_to_keep"] = count
        with chunks_for(self._chunked, len(tokens)):
            out = self._running(input_ids=ids, use_cache=True, **given)
        if held.cache is None:
            if (cache := out.get(self._name)) is None:
                encoder = getattr(text_config(self.model), "is_decoder", None) is False
                what = "it is an encoder, whose tokens see later ones, too (its configuration has is_decoder=false)"
                kept = "its forward returns no cache: its layers keep the text to themselves"
                raise refuse(self.model, what if encoder else kept)
            held.cache = cache
            held.drops_tokens = self._drops and getattr(held.cache, "is_croppable", False)
            if held.drops_tokens:
                held.cache.activate_past_recording()
        return out.logits[0, -count:]

    def _copied(self, held: Row) -> Checkpoint:
        """Return a checkpoint, and count its seconds."""
        begun = time.perf_counter()
        checkpoint = held.copied()
        self.copied_s += time.perf_counter() - begun
        return checkpoint

    def _chain(self, tree: TokenTree) -> list[int]:
        if not tree.is_chain:
            raise Unsupported(
                f"model family '{self.model.config.model_type}' {self.reason}, so it verifies chains only, and no tree "
                "with branches"
            )
        return [int(token) for token in tree.tokens.tolist()]


def _packed(_: str, module: torch.nn.Module) -> torch.nn.Module | None:
    """Return the packed form of a matrix on a CPU, or None: a `Swap` for `light_copy`."""
    if isinstance(module, torch.nn.Linear) and can_pack(module) and not called_otherwise(module):
        return PackedLinear(module)
    return None
