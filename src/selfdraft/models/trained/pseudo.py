"""Learned pseudo tokens: extra inputs that are trained to predict the tokens after the next one, all in one forward.

In a forward with pseudo tokens every probe of a tree is one: the j-th of a chain of probes is the j-th pseudo token.
Their embeddings are trained, and LoRA weights that only their rows get. Only probes see a probe, so the root and the
candidates keep the target's own logits, to the bit. Sources: PaSS (arXiv 2311.13581), BiTA (2401.12522), gated LoRA
(see `gated`).

Shapes: k pseudo tokens, C hidden size, r rank, B rows of N tokens, m of these B * N probes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import singledispatch
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from selfdraft.core.errors import UserError
from selfdraft.core.predictions import Weighted, best_tokens, weighted
from selfdraft.core.tree import TokenTree
from selfdraft.models.cache.block import Block
from selfdraft.models.families.lightcopy import light_copy
from selfdraft.models.forward.driver import Driver
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.path import Path, Runner, States, Trees
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.kernels.packing import PackedLinear, can_pack
from selfdraft.models.paths.sparse import sliced_head
from selfdraft.models.trained.adapter import Adapter
from selfdraft.models.trained.gated import Gate, gated
from selfdraft.models.trained.heads import SamplerHead

Branch = tuple[int, ...]  # the tokens from the first probe's on that lead to a node
RANK = 2  # the rank of the random LoRA that `untrained` makes
IDS = 4096  # ids embedded at once for the mean, so that a large vocabulary's embeddings are not copied as a whole


@dataclass(frozen=True)
class PseudoPath(Path):
    """The full path with pseudo tokens as the probes of its trees, and gated LoRA in their rows.

    Attributes:
        embeddings: (k, C), as the first layer gets them.
    """

    embeddings: Tensor = field(kw_only=True)
    gate: Gate = field(kw_only=True)

    def run(self, runner: Runner, block: Block, trees: Trees = (), states: States = None) -> Tensor:
        """See `Path.run`; `trees` say which tokens are probes."""
        which = pseudo_numbers(trees, block.tokens.shape[1]).flatten()
        rows = (which >= 0).nonzero().flatten()
        hidden = runner.anatomy.embed(block.tokens.to(runner.device))
        embedded = self.embeddings.index_select(0, which[rows].to(hidden.device))
        hidden.view(-1, hidden.shape[-1]).index_copy_(0, rows.to(hidden.device), embedded)
        with self.gate.open(rows, which.numel(), hidden.device):
            return self.drive(runner, block, embedded=hidden, states=states)


class PseudoTokens:
    """An adapter's pseudo tokens and LoRA, put in place for forwards of the target.

    Attributes:
        tensor, noun: the adapter's tensor that holds the embeddings, and what messages call them.
        embeddings: (k, C), as the first layer gets them. count: k.
        path: the full path, with these tokens as probes.
        sampler: the adapter's sampler, or None. head: reads what the sampler returns. vocabulary: the ids of the head's
            rows; None for all.
    """

    tensor: ClassVar[str] = "pseudo"
    noun: ClassVar[str] = "pseudo tokens"

    def __init__(self, target: Driver, adapter: Adapter, name: str = "null") -> None:
        """Put an adapter around the target's full path, which is left as it is.

        Args:
            name: the user's name for the adapter, for messages.

        Raises:
            UserError: it holds no pseudo tokens, or was made for another model.
        """
        if target.whole is not None and target.whole.asks:
            raise UserError(
                f"{self.noun} cannot be used with model family '{target.model.config.model_type}': its layers take "
                "the rows of a batch one by one"
            )
        self.target, self.gate = target, Gate()
        self._name, self._family = name, target.model.config.model_type
        if (found := adapter.tensors.get(self.tensor)) is None:
            raise UserError(
                f"drafter.adapter={name}: recipe '{adapter.recipe}' trained no {self.noun}; give the folder of "
                "one that did"
            )
        size = target.anatomy.embed(torch.zeros(1, dtype=torch.long, device=target.device)).shape[-1]
        if found.shape[-1] != size:
            raise self._other_model(f"its {self.noun} have {found.shape[-1]} numbers each", f"a width of {size}")
        adapter.refuse_beyond(len(target.full.layers), target.vocab_size, name)
        self.embeddings = found.to(target.device, target.dtype)
        self.count = len(self.embeddings)
        full = {f.name: getattr(target.full, f.name) for f in fields(target.full)} | {"layers": self._layers(adapter)}
        self.path: Path = self._path(adapter, full)
        self.sampler = self._sampler(adapter.under("sampler."), size)
        ids = adapter.tensors.get("vocabulary")
        self.head, self.vocabulary = target.head, None
        if ids is not None:
            self.head, self.vocabulary = sliced_head(target, ids.tolist())

    @torch.inference_mode()
    def resampled(self, states: Tensor, previous: int, count: int, branches: int = 1) -> list[dict[Branch, Weighted]]:
        """Return, for each probe of a chain, the best `count` tokens after each of the `branches` most likely prefixes.

        The sampler knows the token before each probe. Its cost is reading its weights and the head's, however many
        branches share them. Tokens are from the adapter's vocabulary where it has one.

        Args:
            states: (j, C) normed hidden states of the probes after the last layer.
            previous: the token before the first probe.

        Returns:
            For every probe, the best tokens with their weights (see `weighted`), by the branch that leads to it.
        """
        device = states.device
        before, chances = torch.tensor([previous], device=device), torch.ones(1, dtype=torch.double, device=device)
        found, followed = [], []
        for hidden in states:
            best = self._best(hidden.expand(len(before), -1), self.target.anatomy.embed(before), count)
            if self.vocabulary is not None:
                best[0] = self.vocabulary[best[0].long()].double()
            found.append(best)
            chances, at = (chances[:, None] * best[1]).flatten().topk(min(branches, best[0].numel()))
            before = best[0].flatten()[at].long()
            followed.append(at)
        return _by_branch([best.cpu() for best in found], [at.tolist() for at in followed])

    def _best(self, hidden: Tensor, previous: Tensor, count: int) -> Tensor:
        """Return (2, b, count) the best tokens, numbered as in the head, and their chances, as `best_tokens` does.

        Args:
            hidden, previous: (b, C) a probe's normed hidden state, and the embeddings of b tokens before it.
        """
        assert self.sampler is not None
        said = self.head(self.sampler(hidden, previous))
        return best_tokens(said, min(count, said.shape[-1]))

    def _path(self, adapter: Adapter, full: dict[str, Any]) -> Path:
        """Return the path; `full`: the attributes of the full path, with gated layers."""
        return PseudoPath(**full, embeddings=self.embeddings, gate=self.gate)

    def _layers(self, adapter: Adapter) -> tuple[nn.Module, ...]:
        """Return the full path's layers, with gated linears where the adapter has a LoRA."""
        scale = float(adapter.settings.get("scale", 1.0))
        missing = {name.rpartition(".")[0] for name in adapter.under("lora.")}
        layers = []
        for index, (stock, full) in enumerate(zip(self.target.anatomy.layers, self.target.full.layers, strict=True)):
            tensors = adapter.under(f"lora.{index}.")
            names = {id(m.weight): name for name, m in stock.named_modules() if type(m) is nn.Linear}
            missing -= {f"{index}.{name}" for name in names.values()}
            try:
                layers.append(light_copy(full, gated(tensors, names, scale, self.gate)) if tensors else full)
            except (KeyError, ValueError):
                raise self._other_model(f"its LoRA does not fit layer {index}", "other matrices") from None
        if missing:
            raise self._other_model(f"it has a LoRA of {min(missing)}", "no such matrix")
        return tuple(layers)

    def _sampler(self, tensors: Mapping[str, Tensor], size: int) -> SamplerHead | None:
        if not tensors:
            return None
        head = SamplerHead(size).to(self.target.device, self.target.dtype).eval()
        try:
            head.load_state_dict(dict(tensors))
        except RuntimeError:
            raise self._other_model("its sampler is of another size", f"a width of {size}") from None
        assert isinstance(head.inner, nn.Linear) and isinstance(head.outer, nn.Linear)
        if self.target.packed and can_pack(head.inner) and can_pack(head.outer):
            head.inner, head.outer = PackedLinear(head.inner), PackedLinear(head.outer)
        return head

    def _other_model(self, theirs: str, ours: str) -> UserError:
        return UserError(
            f"drafter.adapter={self._name} was trained for another model: {theirs}, and this one "
            f"('{self._family}') has {ours}"
        )


@singledispatch
def pseudo_tokens(target: TargetProtocol, adapter: str | None, count: int, noise: float) -> PseudoTokens:
    """Return the pseudo tokens of an adapter's folder, or `count` untrained ones (see `untrained`)."""
    driver = layered(target)
    if adapter is not None:
        return PseudoTokens(driver, Adapter.read(adapter), adapter)
    return PseudoTokens(driver, untrained(driver, count, noise))


def _by_branch(found: Sequence[Tensor], followed: Sequence[list[int]]) -> list[dict[Branch, Weighted]]:
    """Return each depth's (2, b, k) best tokens by branch; `followed`: which of the b * k go on to the next depth."""
    levels: list[dict[Branch, Weighted]] = []
    branches: list[Branch] = [()]
    for best, at in zip(found, followed, strict=True):
        levels.append(dict(zip(branches, weighted(best), strict=True)))
        tokens = best[0].flatten().long().tolist()
        branches = [(*branches[i // best.shape[-1]], tokens[i]) for i in at]
    return levels


def untrained(target: Driver, count: int, noise: float = 0.0) -> Adapter:
    """Return a substitute for a trained adapter: `count` copies of the mean input embedding, and no LoRA.

    Args:
        noise: makes the copies differ, by this many sigmas of an embedding, and adds a random LoRA of that size to
            every matrix.
    """
    embed, random = target.anatomy.embed, torch.Generator().manual_seed(0)
    ids = torch.arange(target.vocab_size, device=target.device)
    with torch.inference_mode():
        sums = torch.stack([embed(part).float().sum(0) for part in ids.split(IDS)])
        spread = embed(ids[:IDS]).float().std().cpu()
    pseudo = (sums.sum(0) / len(ids)).cpu().repeat(count, 1)
    pseudo += noise * spread * torch.randn(pseudo.shape, generator=random)
    tensors = {"pseudo": pseudo, **(random_lora(target, noise, random) if noise else {})}
    return Adapter("untrained", {"scale": 1.0}, tensors)


def random_lora(target: Driver, noise: float, random: torch.Generator, first: int = 0) -> dict[str, Tensor]:
    """Return a random LoRA of every matrix from layer `first` on, by the names that `Adapter` uses."""
    tensors = {}
    for index, layer in list(enumerate(target.anatomy.layers))[first:]:
        for name, module in layer.named_modules():
            if type(module) is nn.Linear:  # a subclass (PhiMoE's router) does more than a product
                out, width = module.weight.shape
                into = torch.randn(RANK, width, generator=random) / width**0.5
                tensors[f"lora.{index}.{name}.A"] = into
                tensors[f"lora.{index}.{name}.B"] = noise * torch.randn(out, RANK, generator=random)
    return tensors


def pseudo_numbers(trees: Sequence[TokenTree], width: int) -> Tensor:
    """Return (B, N) the number of each token's pseudo token, from 0; -1 for roots, candidates and padding."""
    which = torch.full((len(trees), width), -1)
    for b, tree in enumerate(trees):
        probes = ~tree.is_candidate
        before = (tree.sees & probes).sum(1) - 1
        which[b, 1 : 1 + len(tree)] = torch.where(probes, before, -1)
    return which
