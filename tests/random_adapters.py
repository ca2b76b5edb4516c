"""Adapters with random weights of every kind, for tests that drafts change no text.

Listed beside `lossless.LOSSLESS`, whose configs are made before there is a folder to write an adapter to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.presets import configured
from selfdraft.models.forward.target import Target
from selfdraft.models.trained.adapter import FEATURE, JUMP, Adapter

RANK = 3


@dataclass(frozen=True)
class Adapted:
    """A drafter with a random adapter, for a model of four layers.

    Attributes:
        drafter: its config, given the adapter's folder.
        attention, mlp: what is skipped. first: layers before this one stay the target's. whole: layers replaced
            altogether. noise: of all weights, relative to them. share: of the vocabulary that is drafted. feature:
            whether the last final hidden state is made use of. jump: whether the path begins at a predicted state.
    """

    drafter: Callable[[str], DrafterConfig]
    attention: Sequence[int] = ()
    mlp: Sequence[int] = ()
    first: int = 0
    whole: Sequence[int] = ()
    noise: float = 0.05
    share: float | None = None
    feature: bool = False
    jump: bool = False

    def written(self, target: Target, folder: Path) -> DrafterConfig:
        """The config, its adapter made for `target` and written to a folder."""
        self._adapter(target).write(folder)
        return self.drafter(str(folder))

    def _adapter(self, target: Target) -> Adapter:
        random = torch.Generator().manual_seed(0)

        def moved(weight: Tensor) -> Tensor:
            # Norms begin as ones, which have no spread: their noise is as large as they are.
            scale = self.noise * float(weight.detach().square().mean().sqrt())
            return weight.detach().cpu() + scale * torch.randn(weight.shape, generator=random)

        tensors = {f"norm.{name}": moved(p) for name, p in target.anatomy.norm.named_parameters()}
        skipped = set(self.attention) & set(self.mlp)
        for index, layer in enumerate(target.anatomy.layers):
            if index in self.whole:
                tensors |= {f"layer.{index}.{name}": moved(p) for name, p in layer.named_parameters()}
            elif index >= self.first and index not in skipped:
                for name, module in layer.named_modules():
                    if isinstance(module, nn.Linear):
                        out, width = module.weight.shape
                        size = self.noise * float(module.weight.detach().std())
                        tensors[f"lora.{index}.{name}.A"] = torch.randn(RANK, width, generator=random)
                        tensors[f"lora.{index}.{name}.B"] = size * torch.randn(out, RANK, generator=random)
        if self.share is not None:
            size = target.vocab_size
            tensors["vocabulary"] = torch.randperm(size, generator=random)[: int(self.share * size)].sort().values
        if self.feature:
            width = target.model.config.hidden_size
            tensors[FEATURE] = torch.randn(width, width, generator=random) / width**0.5
        if self.jump:
            tensors[JUMP] = torch.eye(width) + torch.randn(width, width, generator=random) / width
        settings = {"scale": 0.5, "skip_attention": list(self.attention), "skip_mlp": list(self.mlp)}
        return Adapter("random", settings, tensors)


ADAPTED: dict[str, Adapted] = {
    "layer_skip": Adapted(lambda a: configured("layer_skip", adapter=a), attention=[1, 2], mlp=[2]),
    "layer_skip by a vocabulary": Adapted(
        lambda a: configured("layer_skip", adapter=a, siblings=True, min_confidence=0.2, draft_length=10),
        mlp=[1],
        whole=[3],
        share=0.7,
    ),
    "layer_skip and reuse": Adapted(
        lambda a: configured("layer_skip", adapter=a, reuse=True, bonus="keep"), attention=[2], mlp=[2], first=2
    ),
    "early_exit": Adapted(
        lambda a: configured("early_exit", adapter=a, bonus="keep", draft_length=3),
        attention=[2],
        mlp=[2],
        first=3,
        whole=[3],
    ),
    "early_exit by a vocabulary": Adapted(
        lambda a: configured("early_exit", adapter=a, bonus="forgo", min_confidence=0.2),
        attention=[1, 2],
        mlp=[1, 2],
        first=3,
        whole=[3],
        share=0.7,
    ),
    "early_exit with the feature": Adapted(
        lambda a: configured("early_exit", adapter=a, bonus="keep", draft_length=3),
        attention=[1],
        mlp=[1],
        first=1,
        whole=[2, 3],
        feature=True,
    ),
    "layer_skip with the feature": Adapted(
        lambda a: configured("layer_skip", adapter=a), attention=[1], mlp=[1], first=1, whole=[2], feature=True
    ),
    "pool": Adapted(lambda a: configured("pool", adapter=a, costs="flat"), attention=[2], mlp=[2], first=2, whole=[3]),
    "pool with the feature": Adapted(
        lambda a: configured("pool", adapter=a, costs="flat"),
        attention=[1, 2],
        mlp=[1, 2],
        first=1,
        whole=[3],
        feature=True,
    ),
    "pool by a vocabulary, at measured costs": Adapted(
        lambda a: configured("pool", adapter=a), attention=[1], mlp=[1], share=0.7
    ),
    "jump": Adapted(
        lambda a: configured("chain", path="jump", adapter=a, draft_length=3),
        attention=[0, 1],
        mlp=[0, 1],
        whole=[2, 3],
        feature=True,
        jump=True,
    ),
    "jump by a vocabulary": Adapted(
        lambda a: configured("trained", adapter=a, draft_length=10, siblings=True, min_confidence=0.05),
        attention=[0, 1, 2],
        mlp=[0, 1, 2],
        whole=[3],
        share=0.7,
        feature=True,
        jump=True,
    ),
    "pool with a jump": Adapted(
        lambda a: configured("pool", path="jump", adapter=a, costs="flat", sparse_length=3),
        attention=[0, 2],
        mlp=[0, 2],
        whole=[1, 3],
        feature=True,
        jump=True,
    ),
    "jacobi with a jump": Adapted(
        lambda a: configured("jacobi", path="jump", adapter=a, window=4, candidates=2, mode="literal"),
        attention=[0, 1],
        mlp=[0, 1],
        whole=[2, 3],
        feature=True,
        jump=True,
    ),
    "cascade": Adapted(
        lambda a: configured("cascade", adapter=a, costs="flat", sparse_length=3),
        attention=[2],
        mlp=[2],
        first=2,
        whole=[3],
        share=0.7,
    ),
    "jacobi": Adapted(lambda a: configured("jacobi", adapter=a, mode="literal", window=4)),
    "sparse_jacobi": Adapted(
        lambda a: configured("sparse_jacobi", adapter=a, window=4), attention=[1], mlp=[1, 2], share=0.7
    ),
}
