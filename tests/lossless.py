"""The list that every losslessness test runs over: each drafter in the ways in which it can go wrong.

A new drafter adds its entry here; until it has one, every test that imports this file fails.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields

from selfdraft.core.blocks import INITS
from selfdraft.drafters import PATHS, PROPOSALS
from selfdraft.drafters.base import DrafterConfig, PathDrafterConfig
from selfdraft.drafters.jacobi import JacobiConfig
from selfdraft.drafters.lookahead import LookaheadConfig
from selfdraft.drafters.paths.sparse_kv import SparseKVConfig
from selfdraft.drafters.pool import PoolConfig
from selfdraft.drafters.presets import PRESETS, configured
from selfdraft.drafters.prompt_lookup import PromptLookupConfig
from selfdraft.drafters.pseudo_tokens import PseudoTokensConfig
from selfdraft.drafters.recycling import RecyclingConfig
from selfdraft.drafters.suffix import SuffixConfig

# The configs fit a model of four layers and a window of eight, as `models.loading.tiny` makes them.
LOSSLESS: dict[str, list[DrafterConfig]] = {
    "none": [DrafterConfig()],
    "jacobi": [
        JacobiConfig(),
        JacobiConfig(window=12, refine_steps=4, candidates=3),  # at measured costs: ragged blocks
        *(JacobiConfig(window=4, refine_steps=3, init=init, candidates=1, costs="flat") for init in INITS),
        JacobiConfig(window=1, refine_steps=1, candidates=1, costs="flat"),
        JacobiConfig(
            window=12, refine_steps=2, init="previous_tail", candidates=1, costs="flat"
        ),  # a block longer than a sliding window
        JacobiConfig(window=4, refine_steps=1, init="prompt_random", mode="literal"),
        JacobiConfig(window=5, refine_steps=4, init="ngram", mode="literal"),  # reaches the fixed point now and then
        JacobiConfig(window=6, refine_steps=2, mode="literal", order="gauss_seidel", sub_blocks=3),
        JacobiConfig(
            window=4, refine_steps=3, init="ngram", candidates=3, costs="flat"
        ),  # side by side: the first is no prefix
        JacobiConfig(window=3, refine_steps=2, mode="literal", candidates=2),
    ],
    "layer_skip": [
        configured("layer_skip", sparsity=0.5),
        configured("layer_skip", sparsity=0.0, draft_length=3),  # drafts with all layers: accepted always
        configured("layer_skip", skip_attention=[0, 2], draft_length=3),
        configured("layer_skip", skip_mlp=[0, 3], draft_length=10),  # a draft longer than a sliding window
        configured("layer_skip", skip_attention=[1, 2], skip_mlp=[1, 2]),  # whole layers
        configured("layer_skip", skip_attention=[1, 3], skip_mlp=[0, 1]),  # a whole layer, a half of each other kind
        # Rows of a batch stop at other depths:
        configured("layer_skip", skip_attention=[3], min_confidence=0.6, draft_length=6),
        configured("layer_skip", sparsity=0.3, siblings=True, length="adaptive", draft_length=5),
        configured("layer_skip", skip_mlp=[1], draft_vocabulary=40, length="gain"),
        configured("layer_skip", skip_attention=[2], skip_mlp=[3], reuse=True, bonus="keep", min_confidence=0.3),
    ],
    "early_exit": [
        configured("early_exit"),
        configured("early_exit", bonus="keep", draft_length=10),
        configured("early_exit", exit_layer=3, bonus="forgo", min_confidence=0.5, draft_length=5),  # rows differ
        configured("early_exit", exit_layer=1, siblings=True, draft_length=3),
        configured("early_exit", exit_layer=3, reuse=False, draft_vocabulary=60, warm=True),
    ],
    "swift": [
        configured("swift", draft_length=4, context_window=3),
        configured("swift", sparsity=0.7, context_window=2, bayes_interval=2, min_confidence=0.0, siblings=False),
        configured(
            "swift", context_window=2, score_initial=True, recent_window=True, rescore_incumbent=True, neighbours=True
        ),
        configured("swift", context_window=2, cost_aware=True, draft_vocabulary=50, draft_length=3, length="adaptive"),
    ],
    "clasp": [
        configured("clasp", sparsity=0.5, interval=1),
        configured("clasp", sparsity=0.9, interval=3, siblings=True, draft_vocabulary=60, draft_length=10),
    ],
    "dynamic_exit": [
        configured("dynamic_exit", stride=1, interval=1),
        configured("dynamic_exit", stride=1, interval=3, draft_length=3, siblings=True),
    ],
    "width_skip": [
        configured("width_skip", ratio=0.6),
        configured("width_skip", ratio=0.9, sparsity=0.3, siblings=True, length="gain", draft_vocabulary=50),
    ],
    "sparse_kv": [
        configured("sparse_kv", sink=1, recent=4, draft_length=10),  # a draft longer than a sliding window
        configured("sparse_kv", sink=2, recent=6, sparsity=0.3, min_confidence=0.4, siblings=True),
        configured("sparse_kv", sink=1, recent=4, top_k=3, refresh=2),
    ],
    "low_bit": [
        configured("low_bit", bits=8),
        configured("low_bit", bits=4, draft_length=10, siblings=True, min_confidence=0.3),  # longer than a window
    ],
    "sparse_jacobi": [
        configured("sparse_jacobi"),
        configured("sparse_jacobi", window=10, refine_steps=3, init="ngram", sparsity=0.5),
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
        configured("cascade"),  # may find that the sparse model never pays
        configured("cascade", costs="flat", sparsity=0.5, max_nodes=12),
        configured("cascade", costs="flat", skip_attention=[1], skip_mlp=[2], sparse_length=9, warm=True),
        configured("cascade", costs="flat", sources=["recycling"], edges=1, branches=1, sparse_length=1),
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
    "fused_jacobi": [  # untrained: see test_fused_jacobi.py for those that are right
        configured("fused_jacobi"),
        configured("fused_jacobi", count=2, branches=16, nodes=150, noise=1.0, costs="flat"),  # some are right
        configured("fused_jacobi", count=10, nodes=10, noise=0.5, costs="flat"),  # longer than a sliding window
        configured("fused_jacobi", count=2, branches=3, nodes=6, noise=2.0, feedback=False),
    ],
    "recycling": [
        RecyclingConfig(),
        RecyclingConfig(edges=3, nodes=12, depth=12, seed_from_prompt=False, warm=True),
        RecyclingConfig(edges=2, template=[2, 1, 2, 1]),
    ],
    # Pairs of a way to propose and a path that have no name of their own:
    "chain+full": [configured("chain", path="full", draft_length=3)],  # as many forwards as tokens: always accepted
    "jacobi+swift": [configured("jacobi", path="swift", window=4, context_window=3)],
    "jacobi+early_exit": [configured("jacobi", path="early_exit", window=5, init="ngram", candidates=2)],
    "jacobi+clasp": [configured("jacobi", path="clasp", sparsity=0.5, interval=1, order="gauss_seidel")],
    "jacobi+width_skip": [configured("jacobi", path="width_skip", ratio=0.8, window=3)],
    "jacobi+sparse_kv": [
        configured("jacobi", path="sparse_kv", sink=1, recent=4, top_k=3, refresh=2, window=10),
        configured("jacobi", path="sparse_kv", sink=1, recent=5, window=4),
    ],
    "jacobi+low_bit": [configured("jacobi", path="low_bit", window=4)],
    "pool+low_bit": [configured("pool", path="low_bit", costs="flat", sparse_length=3)],
    "jacobi+dynamic_exit": [configured("jacobi", path="dynamic_exit", stride=1, interval=1, window=4)],
    "pool+early_exit": [configured("pool", path="early_exit", costs="flat", sparse_length=1)],
    "pool+swift": [
        configured(
            "pool",
            path="swift",
            costs="flat",
            sparsity=0.7,
            context_window=3,
            sources=["recycling"],
            edges=1,
            warm=True,
        ),
    ],
    "pool+clasp": [configured("pool", path="clasp", costs="flat", sparsity=0.5, interval=1, sparse_length=2)],
    "pool+dynamic_exit": [configured("pool", path="dynamic_exit", costs="flat", stride=1, interval=1, sparse_length=3)],
    "pool+width_skip": [configured("pool", path="width_skip", costs="flat", ratio=0.6, sparse_length=9)],
    "pool+sparse_kv": [
        configured("pool", path="sparse_kv", costs="flat", sink=1, recent=4, top_k=3, refresh=2, sparse_length=4),
        configured("pool", path="sparse_kv", costs="flat", recent=4, sparsity=0.7, sources=["recycling"], edges=1),
    ],
    "suffix": [
        SuffixConfig(),
        SuffixConfig(costs="flat", max_nodes=12, branches=2, min_probability=0.0, warm=True),
        SuffixConfig(costs="flat", branches=1),
    ],
}


def cannot(config: DrafterConfig, family: str) -> bool:
    """Whether a drafter refuses a family, by name, because its attention cannot be read."""
    path = config.path if isinstance(config, PathDrafterConfig) else None
    return isinstance(path, SparseKVConfig) and path.top_k > 0 and family in ("mistral", "gemma2", "gemma3_text")


def complaints(lossless: dict[str, list[DrafterConfig]], known: Collection[str]) -> list[str]:
    """Drafters that would escape the tests, or are tested under a name that is not theirs.

    Args:
        known: names of presets, of ways to propose and of paths.
    """
    every = [config for configs in lossless.values() for config in configs]
    tried = {*lossless, *(config.name for config in every)}
    tried |= {config.path.name for config in every if isinstance(config, PathDrafterConfig)}
    missing = [f"'{name}' has no entry in LOSSLESS" for name in known if name not in tried or lossless.get(name) == []]
    wrong = [
        f"LOSSLESS['{name}'] holds options of '{config.label}'"
        for name, configs in lossless.items()
        for config in configs
        if config.label != name
    ]
    return missing + wrong


NEED_WEIGHTS = ("trained", "jump")  # drafters whose path task=finetune trained


def name_of(config: DrafterConfig) -> str:
    """What differs from the defaults, for test names: `jacobi-window=4-init=ngram`."""
    changed = []
    for part in (config, config.path) if isinstance(config, PathDrafterConfig) else (config,):
        usual = (
            configured(config.label) if config.label in PRESETS and config.label not in NEED_WEIGHTS else type(config)()
        )
        plain = usual if part is config else type(part)()
        changed += [
            f"{f.name}={getattr(part, f.name)}"
            for f in fields(part)
            if f.name not in ("name", "path") and getattr(part, f.name) != getattr(plain, f.name)
        ]
    return "-".join([config.label, *changed]).replace(" ", "")


# A chain with a path that task=finetune trained needs a folder: see `random_adapters.ADAPTED`.
TRIED = {*PRESETS, *PROPOSALS, *PATHS} - {*NEED_WEIGHTS, "chain"}

if found := complaints(LOSSLESS, TRIED):
    raise AssertionError("; ".join(found))

EVERY_CONFIG: list[DrafterConfig] = [config for configs in LOSSLESS.values() for config in configs]
EVERY_NAME: list[str] = [name_of(config) for config in EVERY_CONFIG]
# One of each drafter, for tests of what does not depend on its options: the last, which has the most unusual ones.
ONE_EACH: list[DrafterConfig] = [configs[-1] for configs in LOSSLESS.values()]
ONE_NAMES: list[str] = [name_of(config) for config in ONE_EACH]
