"""`python run.py --help`: the choices of every group, commands to start from, and every option with its description.

The page is made from the configuration with the overrides that were given: `python run.py drafter=swift --help` shows
the options of swift. `print_help` composes and prints it. Hydra's own `--help`, the template of its group `hydra/help`,
gives the same page, but takes seconds more: it also lists every group, and copies all schemas for each.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from selfdraft.core.messages import one_line
from selfdraft.core.options import CHOICE_NAME, Options, helps_of
from selfdraft.tracking.files.entry_point import RUN, entry_point

WIDTH = 120  # columns of a line; fewer in a narrower terminal
MIN_WIDTH = 72
CONFIG = "config"  # name of the configuration that has the groups
RESOLVER = "selfdraft.help"  # the interpolation that stands for the page
GROUP_COLUMN = 14  # characters for the name of a group
VALUE_COLUMN = 24  # characters for a value; the description of a longer one begins on the next line
MAX_SHOWN = 90  # characters of a value that are shown

ABOUT_OPTIONS = (
    "The options of this configuration, with their values (??? has to be given). Other choices have other options: "
    "python run.py drafter=swift --help shows those of swift. python run.py --cfg job shows all values as YAML."
)
EXAMPLES = """\
python run.py drafter=jacobi                                     compare with plain decoding
python run.py drafter=layer_skip model.dtype=float32             another drafter, another dtype
python run.py task=compare 'task.contenders=[none, jacobi, pool, transformers_greedy]'     many in one run, ranked
python run.py drafter=jacobi drafter/path=swift                  another path: a part of the model refines the block
python run.py dataset=jsonl dataset.path=F dataset.per_category=4
python run.py task=generate prompt="Why is the sky blue?"        stream one answer
python run.py task=trace drafter=lookahead                       show every step of one
python run.py task=calibrate drafter=layer_skip                  search what to skip; take it with drafter.from
python run.py task=distill_data drafter=prompt_lookup decoding.batch_size=8      texts to learn from
python run.py task=audit audit.file=answers.jsonl                check what another engine answered
python run.py -m drafter.window=4,8 drafter.refine_steps=1,2     a sweep: one process and folder a job
"""


def groups_under(conf: Path) -> list[str]:
    """Return the names of all groups, those in another group included, such as drafter/path."""
    return sorted(folder.relative_to(conf).as_posix() for folder in conf.rglob("*") if folder.is_dir())


def choices_in(group: Path) -> list[str]:
    """Return the names of a group's choices."""
    return sorted(file.stem for file in group.glob("*.yaml"))


def register_help(conf: Path) -> None:
    """Store the help page as Hydra's `hydra/help: selfdraft`.

    Args:
        conf: the folder of the groups.
    """

    def template(*, _root_: DictConfig) -> str:
        # Hydra fills in the page's variables, which begin with a dollar sign; it has none.
        return page(conf, _root_).replace("$", "$$")

    OmegaConf.register_new_resolver(RESOLVER, template, replace=True)
    node = {"app_name": "selfdraft", "header": "", "footer": "", "template": f"${{{RESOLVER}:}}"}
    ConfigStore.instance().store(group="hydra/help", name="selfdraft", node=node)


def head_of(file: Path) -> str:
    """Return the comment that a YAML file begins with, as one line without a number sign."""
    head = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line.removeprefix("#").strip())
    return " ".join(head)


def print_help(arguments: Sequence[str], conf: Path) -> bool:
    """Print the help page if the arguments ask for it; return whether they do.

    Arguments that name another folder of configurations are left to Hydra, which then prints the same page.

    Args:
        arguments: of the command line, checked.
        conf: the folder of the groups.

    Raises:
        HydraException, OmegaConfBaseException: the overrides cannot be composed.
    """
    given = get_args_parser().parse_args(list(arguments))
    if not given.help or given.config_path is not None or given.config_dir is not None:
        return False
    with initialize_config_dir(str(conf.absolute()), version_base="1.3"):
        config = compose(given.config_name or CONFIG, given.overrides, return_hydra_config=True)
    print(page(conf, config))
    return True


def page(conf: Path, config: DictConfig) -> str:
    """Return the help page of a configuration that Hydra composed, as wide as the terminal."""
    width = max(MIN_WIDTH, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    lines = [
        "SelfDraft: lossless self-speculative decoding, configured, certified and timed.",
        "",
        "Choose a group's file with group=choice, an option with group.option=value:",
    ]
    for group in groups_under(conf):
        lines += _row([(group, GROUP_COLUMN)], ", ".join(choices_in(conf / group)), width)
    lines += ["", "For example:", *(f"  {line}" for line in EXAMPLES.splitlines())]
    lines += [
        "",
        *textwrap.wrap(ABOUT_OPTIONS, width),
    ]
    choices = config.hydra.runtime.choices
    whole = OmegaConf.get_type(config)
    assert whole is not None
    for schema, key, node in _groups(whole, "", config):
        group = key.replace(".", "/")
        title = f"{group}={choices.get(group)}" if group else "Options of no group"
        if (file := conf / group / f"{choices.get(group)}.yaml").is_file():
            title += f": {head_of(file)}"
        lines += ["", *textwrap.wrap(title, width, break_on_hyphens=False), *_options(schema, key, node, width)]
    return "\n".join(lines).replace(RUN, entry_point(sys.argv[0]))


def _groups(schema: type[Any], key: str, node: DictConfig) -> Iterator[tuple[type[Any], str, DictConfig]]:
    """Yield a group and all groups in it: its config class, its key, such as `drafter.path`, and its values."""
    yield schema, key, node
    for name in (f.name for f in fields(schema) if "help" not in f.metadata and f.name in node):
        if is_dataclass(inner := OmegaConf.get_type(node, name)):
            yield from _groups(inner, f"{key}.{name}".lstrip("."), node[name])


def _options(schema: type[Options], key: str, node: DictConfig, columns: int) -> list[str]:
    """Return the lines of a group's options, each of at most so many columns."""
    plain: Any = OmegaConf.to_container(node, resolve=False)
    values = {name: _shown(value) for name, value in plain.items()}
    helps = {name: text for name, text in helps_of(schema).items() if text != CHOICE_NAME and name in values}
    names = {name: f"{key}.{name}".lstrip(".") for name in helps}
    width = max((len(name) for name in names.values()), default=0) + 2
    column = min(max((len(values[name]) for name in helps), default=0) + 2, VALUE_COLUMN)
    rows = [_row([(names[name], width), (values[name], column)], text, columns) for name, text in helps.items()]
    return [line for row in rows for line in row]


def _row(cells: Sequence[tuple[str, int]], text: str, columns: int) -> list[str]:
    """Return the lines of a table's row: cells of given widths, then a text in what is left of the columns."""
    start = "  " + "".join(f"{cell:<{width}}" for cell, width in cells)
    column = 2 + sum(width for _, width in cells)
    lines = textwrap.wrap(text, columns - column, break_on_hyphens=False)
    if len(start) > column or start[-1] != " ":  # the last cell is too long
        return [start, *(f"{'':<{column}}{line}" for line in lines)]
    return [start + lines[0], *(f"{'':<{column}}{line}" for line in lines[1:])]


def _shown(value: Any) -> str:
    """Return a value as one would type it, on one line."""
    if isinstance(value, list):
        shown = f"[{', '.join(_shown(item) for item in value)}]"
    else:
        shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else one_line(value)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
