"""The schemas of all options from a file: what there is to choose is known without importing what it configures.

The config classes stand beside what they configure, and importing all of that takes seconds: torch, transformers,
Lightning. So `app.options.option_help` writes their fields to conf/options.json, and here they become dataclasses
again, with the same names, types, defaults, ranges and descriptions, but without methods. `--help` and the check of
what was typed use these; a run that begins imports the real ones, which are registered in their place.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, field, fields, is_dataclass, make_dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from selfdraft.core.options import Options

FILE = "options.json"  # in the folder of the configuration's groups
PLAIN: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool, "None": NoneType, "Any": Any}
# Tasks whose run folders are named by the task: they have many drafters, or none.
WITHOUT_DRAFTER = frozenset({"compare", "advise", "audit", "profile", "distill_data", "report", "doctor"})


def written(schemas: Mapping[str, Sequence[type[Options]]], whole: type[Options]) -> str:
    """Return the text of the file.

    Args:
        schemas: the config classes by group. whole: the class of the whole configuration.
    """
    classes: dict[str, Any] = {}
    for config in (*(config for each in schemas.values() for config in each), whole):
        _describe(config, classes)
    groups = {group: [config.__name__ for config in each] for group, each in schemas.items()}
    return json.dumps({"classes": classes, "groups": groups, "whole": whole.__name__}, indent=1) + "\n"


def _describe(cls: type[Options], classes: dict[str, Any]) -> None:
    """Add a class to those that are described, after its base and the classes of its groups."""
    if cls is Options or cls.__name__ in classes:
        return
    hints, own = get_type_hints(cls), inspect.get_annotations(cls)
    (base,) = cls.__bases__
    for needed in (base, *(hints[f.name] for f in fields(cls))):
        if isinstance(needed, type) and issubclass(needed, Options):
            _describe(needed, classes)
    options = {f.name: _option(f, hints[f.name]) for f in fields(cls) if f.name in own}
    classes[cls.__name__] = {"base": base.__name__, "group": cls.config_group, "options": options}


def _option(f: Field[Any], hint: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"type": _type_text(hint)}
    if f.default is not NO_DEFAULT:
        out["default"] = f.default
    elif f.default_factory is not NO_DEFAULT:
        made = f.default_factory()
        out["made"] = type(made).__name__ if is_dataclass(made) else made
    return out | {name: value for name, value in f.metadata.items() if value is not None}


def _type_text(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(map(_type_text, get_args(hint)))
    if get_origin(hint) is list:
        return f"list[{_type_text(get_args(hint)[0])}]"
    return next((name for name, known in PLAIN.items() if hint is known), None) or str(hint.__name__)


def register_index(conf: Path) -> None:
    """Register the schemas that the file in the folder `conf` describes."""
    read = json.loads((conf / FILE).read_text(encoding="utf-8"))
    classes: dict[str, type[Any]] = {Options.__name__: Options}
    for name, described in read["classes"].items():
        options = [(option, *_field(entry, classes)) for option, entry in described["options"].items()]
        base = classes[described["base"]]
        classes[name] = make_dataclass(name, options, bases=(base,), namespace={"config_group": described["group"]})
    register(
        {group: [classes[name] for name in each] for group, each in read["groups"].items()}, classes[read["whole"]]
    )


def _field(entry: Mapping[str, Any], classes: Mapping[str, type[Any]]) -> tuple[Any, Any]:
    limits = {name: entry.get(name) for name in ("at_least", "at_most", "below", "choices")}
    metadata = {"help": entry["help"], **limits} if "help" in entry else {}
    if "default" in entry:
        made: Any = field(default=entry["default"], metadata=metadata)
    elif "made" in entry:
        value = entry["made"]
        factory = classes[value] if isinstance(value, str) else lambda: list(value)
        made = field(default_factory=factory, metadata=metadata)
    else:
        made = field(metadata=metadata)
    return _type_of(entry["type"], classes), made


def _type_of(text: str, classes: Mapping[str, type[Any]]) -> Any:
    if " | " in text:
        return reduce(or_, (_type_of(part, classes) for part in text.split(" | ")))
    if text.startswith("list["):
        return list[_type_of(text[5:-1], classes)]  # type: ignore[misc]
    return PLAIN[text] if text in PLAIN else classes[text]


def register(schemas: Mapping[str, Sequence[type[Options]]], whole: type[Options]) -> None:
    """Register schemas under the names that the defaults lists in conf/ use, e.g. `schema/JacobiConfig`."""
    store = ConfigStore.instance()
    store.store(name="schema", node=whole)
    for group, each in schemas.items():
        for schema in each:
            store.store(group=f"{group}/schema", name=schema.__name__, node=schema)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def run_name(task: str, drafter: str) -> str:
    """Return the end of the name of a run's folder: its task if that has many drafters or none, else its drafter."""
    return task if task in WITHOUT_DRAFTER else drafter
