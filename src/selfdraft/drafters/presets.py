"""Drafters by name. A *preset* is a way to propose with a path and a few options.

For example, `drafter=swift` is the way to propose `chain` on the path `swift`, with longer drafts than its default.
`configured` turns a name and options into checked options, and `drafter_for` these into a drafter for a target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import MISSING

from selfdraft.core.costs import Costs
from selfdraft.core.errors import UserError
from selfdraft.drafters import PATHS, PROPOSALS
from selfdraft.drafters.base import Drafter, DrafterConfig, PathDrafter, PathDrafterConfig
from selfdraft.drafters.paths.base import PathConfig, PathPolicy, Use
from selfdraft.models.forward.protocol import TargetProtocol


@dataclass(frozen=True)
class Preset:
    """A named drafter.

    Attributes:
        proposal, path: names in `PROPOSALS` and `PATHS`; no path if the drafter runs no part of the model.
        options: those of its options that differ from the defaults of the way to propose.
    """

    proposal: str
    path: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


# Every YAML in conf/drafter is one of these, with the same options (a test checks this).
PRESETS: dict[str, Preset] = {
    "none": Preset("none"),
    "jacobi": Preset("jacobi", "full"),
    "lookahead": Preset("lookahead"),
    "prompt_lookup": Preset("prompt_lookup"),
    "suffix": Preset("suffix"),
    "recycling": Preset("recycling"),
    "pool": Preset("pool", "full"),
    "pseudo_tokens": Preset("pseudo_tokens"),
    "fused_jacobi": Preset("fused_jacobi"),
    "chain": Preset("chain", "layer_skip"),
    "layer_skip": Preset("chain", "layer_skip"),
    "early_exit": Preset("chain", "early_exit", {"reuse": True}),
    "swift": Preset("chain", "swift", {"draft_length": 25, "min_confidence": 0.8, "siblings": True}),
    "clasp": Preset("chain", "clasp"),
    "dynamic_exit": Preset("chain", "dynamic_exit", {"draft_length": 8, "reuse": True, "bonus": "keep"}),
    "width_skip": Preset("chain", "width_skip"),
    "sparse_kv": Preset("chain", "sparse_kv"),
    "low_bit": Preset("chain", "low_bit"),
    "trained": Preset("chain", "trained"),
    "jump": Preset("chain", "jump", {"draft_length": 2, "length": "gain"}),
    "sparse_jacobi": Preset("jacobi", "layer_skip", {"window": 6, "init": "previous_tail", "mode": "literal"}),
    "cascade": Preset("pool", "layer_skip", {"sparse_length": 4}),
}


@dataclass(frozen=True)
class Routed:
    """Options of a drafter, each with its owner: the way to propose, or the path, if it takes one."""

    proposal: str
    values: dict[str, Any]
    path: str | None = None
    path_values: dict[str, Any] = field(default_factory=dict)


def routed(name: str, path: str | None = None, **options: Any) -> Routed:
    """Return the owners of a drafter's options; see `configured` for the arguments and errors."""
    if name not in PRESETS:
        raise UserError(f"there is no drafter {name!r:.60}; choose one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    proposal = PROPOSALS[preset.proposal].Config
    if preset.path is None:
        if path is not None:
            raise UserError(f"drafter={name} runs no part of the model: it takes no path")
        return Routed(preset.proposal, options)
    if path is None:
        takes = "adapter" in options_of(PATHS[preset.path].Config)
        path = preset.path if takes or options.get("adapter") is None else "trained"
    if not isinstance(path, str) or path not in PATHS:
        raise UserError(f"there is no path {path!r:.60}; choose one of {', '.join(PATHS)}")
    own = options_of(PATHS[path].Config)
    known = own | options_of(proposal)
    given = {option: value for option, value in options.items() if (option, value) != ("adapter", None)}
    if unknown := [option for option in given if option not in known]:
        raise UserError(
            f"drafter={name} with path {path} has no option {unknown[0]!r:.60}; there are {', '.join(sorted(known))}"
        )
    mine = {option: value for option, value in given.items() if option not in own}
    return Routed(preset.proposal, mine, path, {option: value for option, value in given.items() if option in own})


def configured(name: str, path: str | None = None, **options: Any) -> DrafterConfig:
    """Return the options of a drafter.

    Args:
        name: of a preset. path: of another path than the preset's.
        options: the drafter's and its path's; no two of them have the same name. An `adapter` of a drafter whose path
            takes none chooses the path `trained`.

    Raises:
        UserError: no such drafter, path or option, or a value that is out of range or of another type.
    """
    owned = routed(name, path, **options)
    proposal, values = PROPOSALS[owned.proposal].Config, {**PRESETS[name].options, **owned.values}
    if owned.path is None:
        return proposal.from_plain(values)
    chosen = PATHS[owned.path].Config.from_plain(owned.path_values)
    if missing := [option for option in options_of(type(chosen)) if getattr(chosen, option) == MISSING]:
        raise UserError(f"{chosen.config_group}.{missing[0]} is needed with the path {owned.path}")
    return proposal.from_plain({**values, "path": chosen})


def options_of(config: type[DrafterConfig | PathConfig]) -> set[str]:
    """Return the names of a schema's options."""
    return {f.name for f in fields(config)} - {"name", "path"}


def drafter_for(target: TargetProtocol, config: DrafterConfig, costs: Costs) -> Drafter:
    """Return the drafter that `config` describes.

    Raises:
        UserError: its options do not fit the model.
    """
    proposal = PROPOSALS[config.name]
    if not isinstance(config, PathDrafterConfig):
        return proposal(target, config, costs)
    assert issubclass(proposal, PathDrafter)
    return proposal(target, config, costs, policy_for(target, config, costs))


def policy_for(target: TargetProtocol, config: PathDrafterConfig, costs: Costs) -> PathPolicy:
    """Return the path policy of the drafter that `config` describes.

    Raises:
        UserError: its options do not fit the model.
    """
    use = Use(config.longest, warm=config.state == "warm", reuse=config.reuses)
    return PATHS[config.path.name](target, config.path, costs, use)


def is_tree_parallel(config: DrafterConfig) -> bool:
    """Return whether several processes can share this drafter's trees; see `Drafter.tree_parallel`."""
    paths = config.path.name if isinstance(config, PathDrafterConfig) else "full"
    return PROPOSALS[config.name].tree_parallel and PATHS[paths].tree_parallel


def is_tensor_parallel(config: DrafterConfig) -> bool:
    """Return whether the drafter works where each process has a part of every matrix; see `Drafter.tensor_parallel`."""
    path = config.path.name if isinstance(config, PathDrafterConfig) else "full"
    return PROPOSALS[config.name].tensor_parallel and PATHS[path].tensor_parallel
