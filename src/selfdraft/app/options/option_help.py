"""The descriptions of all options, read from the config dataclasses, as comments in the YAML files under conf/.

An option is described once, where it is declared: `option(default, help="…")`. After a change, this command rewrites
the comments of all YAML files, and the index from which `--help` is made (a test says so if it was forgotten):

    python -m selfdraft.app.options.option_help conf

Each option's line ends with its description; further lines of a long description stand below, in the same column. A
file's first comment, which says what the choice is, is written by hand. Files in conf/experiment and conf/hparams
describe no options: they set those of other files.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import yaml

from selfdraft.app.options.schemas import SCHEMAS, Config
from selfdraft.app.terminal.errors import one_line_script
from selfdraft.app.terminal.help import WIDTH
from selfdraft.app.terminal.option_index import FILE, written
from selfdraft.core.errors import UserError
from selfdraft.core.options import Options, helps_of
from selfdraft.tracking.files.atomic import write_text_atomic

GAP = 3  # spaces between the longest value and the comments
OPTION = re.compile(r"(?P<option>(?P<name>\w+): +\S.*?)(?: +#.*| *)")
COMMENT = re.compile(r"\s*#.*")
HOW_TO_REWRITE = "python -m selfdraft.app.options.option_help conf"


def schema_of(file: Path) -> type[Options] | None:
    """Return the config class of a YAML file, which its defaults list names, perhaps by way of another choice.

    Returns:
        The class; None for a file that has none: an experiment, or values to try.
    """
    classes = {c.__name__: c for schemas in SCHEMAS.values() for c in schemas} | {"": Config}
    for entry in yaml.safe_load(file.read_text(encoding="utf-8")).get("defaults", ()):
        if not isinstance(entry, str) or entry == "_self_":
            continue
        if entry.startswith("schema"):
            return classes[entry.removeprefix("schema").removeprefix("/").partition("@")[0]]
        return schema_of(file.with_name(f"{entry}.yaml"))
    return None


def commented(text: str, helps: Mapping[str, str]) -> str:
    """Return the text of a YAML file with the descriptions of its options as the only comments after its first one.

    Args:
        text: of the file. Only options that stand at the beginning of a line are described.
        helps: the descriptions, by option.
    """
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    body = [line for line in lines[start:] if not COMMENT.fullmatch(line)]
    options = {line: found for line in body if (found := OPTION.fullmatch(line)) and found["name"] in helps}
    column = GAP + max((len(found["option"]) for found in options.values()), default=0)
    out = lines[:start]
    for line in body:
        if line not in options:
            out.append(line)
            continue
        first, *rest = textwrap.wrap(helps[options[line]["name"]], WIDTH - column - len("# "), break_on_hyphens=False)
        out.append(f"{options[line]['option']:<{column}}# {first}")
        out += [f"{'':<{column}}# {more}" for more in rest]
    written = "\n".join(out) + "\n"
    assert yaml.safe_load(written) == yaml.safe_load(text), "a value with a number sign: quote it otherwise"
    return written


def rewritten(conf: Path) -> dict[Path, str]:
    """Return what the files of the folder `conf` should contain: YAML files with a config class, and the index."""
    files = {file: schema_of(file) for file in sorted(conf.rglob("*.yaml"))}
    texts = {
        file: commented(file.read_text(encoding="utf-8"), helps_of(schema))
        for file, schema in files.items()
        if schema is not None
    }
    return texts | {conf / FILE: written(SCHEMAS, Config)}


@one_line_script("option_help")
def main(arguments: list[str]) -> None:
    """Rewrite the YAML files in the folder given, and name those that changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conf", type=Path, nargs="?", default=Path("conf"), help="folder of the groups (default: conf)")
    conf = parser.parse_args(arguments).conf
    if not (conf / "config.yaml").is_file():
        raise UserError(f"{conf} has no config.yaml: give the folder conf of SelfDraft")
    for file, text in rewritten(conf).items():
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text_atomic(file, text)
            print(f"rewritten: {file}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
