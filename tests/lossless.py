"""The list that every losslessness test runs over: each drafter in the ways in which it can go wrong.

A new drafter adds its entry here; until it has one, every test that imports this file fails.
"""

from __future__ import annotations

from dataclasses import fields

from selfdraft.core.blocks import INITS
from selfdraft.drafters import DRAFTERS
from selfdraft.drafters.base import DrafterConfig
from selfdraft.drafters.cascade import CascadeConfig
from selfdraft.drafters.clasp import ClaspConfig
from selfdraft.drafters.dynamic_exit import DynamicExitConfig
from selfdraft.drafters.early_exit import EarlyExitConfig
from selfdraft.drafters.jacobi import JacobiConfig
from selfdraft.drafters.layer_skip import LayerSkipConfig
from selfdraft.drafters.lookahead import LookaheadConfig
from selfdraft.drafters.pool import PoolConfig
from selfdraft.drafters.prompt_lookup import PromptLookupConfig
from selfdraft.drafters.pseudo_tokens import PseudoTokensConfig
from selfdraft.drafters.recycling import RecyclingConfig
from selfdraft.drafters.sparse_jacobi import SparseJacobiConfig
from selfdraft.drafters.sparse_kv import SparseKVConfig
from selfdraft.drafters.suffix import SuffixConfig
from selfdraft.drafters.swift import SwiftConfig
from selfdraft.drafters.width_skip import WidthSkipConfig

# The configs fit a model of four layers and a window of eight, as `models.tiny` makes them.
LOSSLESS: dict[str, list[DrafterConfig]] = {
    "none": [DrafterConfig()],
    "jacobi": [
        *(JacobiConfig(window=4, refine_steps=3, init=init) for init in INITS),
        JacobiConfig(window=1, refine_steps=1),
        JacobiConfig(window=12, refine_steps=2, init="previous_tail"),  # a block longer than a sliding window
        JacobiConfig(window=4, refine_steps=1, init="prompt_random", mode="literal"),
        JacobiConfig(window=5, refine_steps=4, init="ngram", mode="literal"),  # reaches the fixed point now and then
        JacobiConfig(window=6, refine_steps=2, mode="literal", order="gauss_seidel", sub_blocks=3),
        JacobiConfig(window=4, refine_steps=3, init="ngram", candidates=3),  # side by side: the first is no prefix
        JacobiConfig(window=3, refine_steps=2, mode="literal", candidates=2),
    ],
    "layer_skip": [
        LayerSkipConfig(sparsity=0.5),
        LayerSkipConfig(sparsity=0.0, draft_length=3),  # drafts with all layers: accepted always
        LayerSkipConfig(skip_attention=[0, 2], draft_length=3),
        LayerSkipConfig(skip_mlp=[0, 3], draft_length=10),  # a draft longer than a sliding window
        LayerSkipConfig(skip_attention=[1, 2], skip_mlp=[1, 2]),  # whole layers
        LayerSkipConfig(skip_attention=[1, 3], skip_mlp=[0, 1]),  # a whole layer, a half of each other kind
        LayerSkipConfig(skip_attention=[3], min_confidence=0.6, draft_length=6),  # rows of a batch stop at other depths
        LayerSkipConfig(sparsity=0.3, siblings=True, length="adaptive", draft_length=5),
        LayerSkipConfig(skip_mlp=[1], draft_vocabulary=40, length="gain"),
        LayerSkipConfig(skip_attention=[2], skip_mlp=[3], reuse=True, bonus="keep", min_confidence=0.3),
    ],
    "early_exit": [
        EarlyExitConfig(),
        EarlyExitConfig(bonus="keep", draft_length=10),
        EarlyExitConfig(exit_layer=3, bonus="forgo", min_confidence=0.5, draft_length=5),  # rows of a batch differ
        EarlyExitConfig(exit_layer=1, siblings=True, draft_length=3),
        EarlyExitConfig(exit_layer=3, reuse=False, draft_vocabulary=60, warm=True),
    ],
    "swift": [
        SwiftConfig(draft_length=4, context_window=3),
        SwiftConfig(sparsity=0.7, context_window=2, bayes_interval=2, min_confidence=0.0, siblings=False),
        SwiftConfig(context_window=2, score_initial=True, recent_window=True, rescore_incumbent=True, neighbours=True),
        SwiftConfig(context_window=2, cost_aware=True, draft_vocabulary=50, draft_length=3, length="adaptive"),
    ],
    "clasp": [
        ClaspConfig(sparsity=0.5, interval=1),
        ClaspConfig(sparsity=0.9, interval=3, siblings=True, draft_vocabulary=60, draft_length=10),
    ],
    "dynamic_exit": [
        DynamicExitConfig(stride=1, interval=1),
        DynamicExitConfig(stride=1, interval=3, draft_length=3, siblings=True),
    ],
    "width_skip": [
        WidthSkipConfig(ratio=0.6),
        WidthSkipConfig(ratio=0.9, sparsity=0.3, siblings=True, length="gain", draft_vocabulary=50),
    ],
    "sparse_kv": [
        SparseKVConfig(sink=1, recent=4, draft_length=10),  # a draft longer than a sliding window
        SparseKVConfig(sink=2, recent=6, sparsity=0.3, min_confidence=0.4, siblings=True),
        SparseKVConfig(sink=1, recent=4, top_k=3, refresh=2),
    ],
    "sparse_jacobi": [
        SparseJacobiConfig(),
        SparseJacobiConfig(window=10, refine_steps=3, init="ngram", sparsity=0.5),
    ],
    "lookahead": [
        LookaheadConfig(),
        LookaheadConfig(window=12, ngram=3, guesses=2, seed_from_prompt=False),  # longer than a sliding window
        LookaheadConfig(window=1, ngram=2, guesses=1),  # the smallest: no warming up, and row 0 is the root alone
        LookaheadConfig(window=3, ngram=4, guesses=20, warm=True),
    ],
    "prompt_lookup": [
        PromptLookupConfig(),
        PromptLookupConfig(ngram_max=1, draft_length=3),
        PromptLookupConfig(ngram_max=5, ngram_min=2, draft_length=12, costs="flat"),
    ],
    "cascade": [
        CascadeConfig(),  # may find that the sparse model never pays
        CascadeConfig(costs="flat", sparsity=0.5, max_nodes=12),
        CascadeConfig(costs="flat", skip_attention=[1], skip_mlp=[2], sparse_length=9, warm=True),
        CascadeConfig(costs="flat", sources=["recycling"], edges=1, branches=1, sparse_length=1),
    ],
    "pool": [
        PoolConfig(),
        PoolConfig(costs="flat", max_nodes=12, min_probability=0.0, warm=True),
        PoolConfig(costs="flat", sources=["trajectory", "recycling"], edges=3, max_nodes=6),
    ],
    "pseudo_tokens": [  # untrained: see test_pseudo_tokens.py for those that are right
        PseudoTokensConfig(),
        PseudoTokensConfig(count=3, branches=7, nodes=56, noise=0.1, costs="flat"),  # so many that some are right
        PseudoTokensConfig(count=10, nodes=10, noise=0.5, costs="flat"),  # longer than a sliding window, with LoRA
        PseudoTokensConfig(count=2, branches=3, nodes=6, noise=2.0),
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


def cannot(config: DrafterConfig, family: str) -> bool:
    """Whether a drafter refuses a family, by name: its MLPs have no gates, or its attention cannot be read."""
    if isinstance(config, WidthSkipConfig):
        return family == "gpt_neox"
    return isinstance(config, SparseKVConfig) and config.top_k > 0 and family in ("mistral", "gemma2", "gemma3_text")


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
