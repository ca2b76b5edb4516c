"""The list that every losslessness test runs over: each drafter in the ways in which it can go wrong.

A new drafter adds its entry here; until it has one, every test that imports this file fails.
"""

from __future__ import annotations

from dataclasses import fields

from selfdraft.drafters import DRAFTERS
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.jacobi import INITS, JacobiConfig
from selfdraft.drafters.layer_skip import LayerSkipConfig
from selfdraft.drafters.pool import PoolConfig
from selfdraft.drafters.prompt_lookup import PromptLookupConfig
from selfdraft.drafters.recycling import RecyclingConfig
from selfdraft.drafters.suffix import SuffixConfig

# The configs fit a model of four layers and a window of eight, as `models.tiny` makes them.
LOSSLESS: dict[str, list[DrafterConfig]] = {
    "none": [DrafterConfig()],
    "jacobi": [
        *(JacobiConfig(window=4, refine_steps=3, init=init) for init in INITS),
        JacobiConfig(window=1, refine_steps=1),
        JacobiConfig(window=12, refine_steps=2, init="previous_tail"),  # a block longer than a sliding window
        JacobiConfig(window=4, refine_steps=1, init="prompt_random", mode="literal"),
        JacobiConfig(window=5, refine_steps=4, init="ngram", mode="literal"),  # reaches the fixed point now and then
    ],
    "layer_skip": [
        LayerSkipConfig(sparsity=0.5),
        LayerSkipConfig(sparsity=0.0, draft_length=3),  # drafts with all layers: accepted always
        LayerSkipConfig(skip_attention=[0, 2], draft_length=3),
        LayerSkipConfig(skip_mlp=[0, 3], draft_length=10),  # a draft longer than a sliding window
        LayerSkipConfig(skip_attention=[1, 2], skip_mlp=[1, 2]),  # whole layers
        LayerSkipConfig(skip_attention=[1, 3], skip_mlp=[0, 1]),  # a whole layer, a half of each other kind
        LayerSkipConfig(skip_attention=[3], min_confidence=0.6, draft_length=6),  # rows of a batch stop at other depths
    ],
    "prompt_lookup": [
        PromptLookupConfig(),
        PromptLookupConfig(ngram_max=1, draft_length=3),
        PromptLookupConfig(ngram_max=5, ngram_min=2, draft_length=12, adaptive=False),
    ],
    "pool": [
        PoolConfig(),
        PoolConfig(costs="flat", max_nodes=12, min_probability=0.0, warm=True),
        PoolConfig(costs="flat", sources=["trajectory", "recycling"], edges=3, max_nodes=6),
    ],
    "recycling": [
        RecyclingConfig(),
        RecyclingConfig(edges=3, nodes=12, depth=12, seed_from_prompt=False, warm=True),
        RecyclingConfig(edges=2, template=[2, 1, 2, 1]),
    ],
    "suffix": [
        SuffixConfig(),
        SuffixConfig(costs="flat", max_nodes=12, branches=2, min_probability=0.0, warm=True),
        SuffixConfig(costs="flat", branches=1),
    ],
}


def complaints(lossless: dict[str, list[DrafterConfig]], known: dict[str, type]) -> list[str]:
    """Drafters that would escape the tests, or are tested under a name that nobody can ask for."""
    missing = [f"drafter '{name}' has no entry in LOSSLESS" for name in known if not lossless.get(name)]
    unknown = [f"LOSSLESS names '{name}', which is no drafter" for name in lossless if name not in known]
    wrong = [
        f"LOSSLESS['{name}'] holds a {type(config).__name__}, but the drafter takes a {known[name].Config.__name__}"
        for name, configs in lossless.items()
        for config in configs
        if name in known and type(config) is not known[name].Config
    ]
    return missing + unknown + wrong


def name_of(config: DrafterConfig) -> str:
    """What differs from the defaults, for test names: `jacobi-window=4-init=ngram`."""
    usual = type(config)()
    changed = [
        f"{f.name}={getattr(config, f.name)}"
        for f in fields(config)
        if getattr(config, f.name) != getattr(usual, f.name)
    ]
    return "-".join([config.name, *changed]).replace(" ", "")


if found := complaints(LOSSLESS, DRAFTERS):
    raise AssertionError("; ".join(found))

EVERY_CONFIG: list[DrafterConfig] = [config for configs in LOSSLESS.values() for config in configs]
EVERY_NAME: list[str] = [name_of(config) for config in EVERY_CONFIG]
