"""Check a checkpoint's files before they are used: they come from others, and may be damaged, huge or hostile.

These checks run before transformers reads a folder or a hub id, so that nothing in it runs code or takes for ever:

1. Files have plausible sizes, and `config.json` is an object with a plausible number of layers.
2. Weights are safetensors: pickles (.bin) can hold code, and are never loaded.
3. No other code or model is asked for: no Python of the checkpoint, no kernels of a hub, no base model of an adapter.

If transformers, tokenizers or safetensors then raise an error about a file, it becomes one line that names the file.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from selfdraft.core.errors import Unsupported, UserError
from selfdraft.core.json_text import parse_json
from selfdraft.core.paths import expanded

MAX_LAYERS = 2_000  # the deepest existing models have about two hundred
MAX_BYTES = {
    "config.json": 10_000_000,
    "generation_config.json": 10_000_000,
    "special_tokens_map.json": 10_000_000,
    "added_tokens.json": 100_000_000,
    "tokenizer_config.json": 100_000_000,
    "tokenizer.json": 1_000_000_000,
    "model.safetensors.index.json": 100_000_000,
}
MAX_TEMPLATE = 1_000_000  # bytes of a chat template; long ones have about 30,000
INDEX = "model.safetensors.index.json"
REASON = 240  # characters of an error message that are shown

_NAMED = (AttributeError, IndexError, KeyError, TypeError)  # their messages are clear only with the class name


@contextmanager
def told_in_one_line(path: str, part: str) -> Iterator[None]:
    """Report an exception in one line while a user's file is read, where any exception is the file's fault.

    Args:
        path: the user's name for the checkpoint. part: the file or the part of it that is read.

    Raises:
        UserError: instead of any exception but UserError itself, Ctrl-C and exits.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # A panic within tokenizers comes as a BaseException, of a class that cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = f"{type(error).__name__}: {error}" if isinstance(error, _NAMED) else str(error)
        reason = textwrap.shorten(reason or type(error).__name__, REASON, placeholder=" …")
        raise UserError(f"model.path={path}: cannot be loaded as a causal language model ({part}: {reason})") from error


def located(path: str) -> str:
    """Return what to pass to transformers for a user's path: the full path of a folder, or a hub id as it is.

    Raises:
        UserError: there is no such folder, it holds no model, or it cannot be read.
    """
    folder = expanded(path, "model.path")
    with told_in_one_line(path, "folder"):
        if not folder.is_dir():
            if path.startswith(("/", ".", "~")) or path.count("/") > 1:
                raise UserError(
                    f"model.path={path}: no such folder; give a Hugging Face model folder or a hub id (owner/name)"
                )
            return path
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"model.path={path}: the folder holds a PEFT adapter; give a folder in which it is merged")
        if not (folder / "config.json").is_file():
            raise UserError(f"model.path={path}: the folder has no config.json; give a Hugging Face model folder")
        _refuse_huge_files(path, folder)
        _refuse_damaged_json(path, folder)
        return str(folder)


def read_config(path: str, source: str, revision: str | None = None) -> PreTrainedConfig:
    """Read the configuration of a decoder-only model.

    Args:
        path: the user's name for it. source: what `located` returned for that.

    Raises:
        UserError: it cannot be read, or it asks for code or a size that is never loaded.
    """
    with told_in_one_line(path, "config.json"):
        content = _object(_text(source, "config.json", revision) or "")
        for key, value in _entries(content):
            _refuse_entry(path, key, value)
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        if getattr(config, "is_encoder_decoder", False):
            raise Unsupported(f"model family '{config.model_type}' is not supported: it is an encoder-decoder")
        return config


def refuse_pickles(path: str, source: str, revision: str | None = None) -> None:
    """Refuse weights that are not safetensors, and an index that names other files.

    Raises:
        UserError: there are such files; the message names the first.
    """
    with told_in_one_line(path, INDEX):
        if (text := _text(source, INDEX, revision)) is not None:
            named = _object(text).get("weight_map")
            if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
                raise ValueError("it has no weight_map from names to files")
            if odd := [name for name in named.values() if name != Path(name).name or not name.endswith(".safetensors")]:
                raise ValueError(f"it names {odd[0]!r}, which is no safetensors file of this folder")
            return
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    if pickles := sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(kind)):
        raise UserError(
            f"model.path={path}: the weights are pickles ({pickles[0]}), which can hold code and are never loaded: "
            "give a folder with safetensors, e.g. written by save_pretrained where you trust them"
        )


def has_file(source: str, name: str, revision: str | None = None) -> bool:
    """Whether the folder or the hub's repository has a file."""
    return _path(source, name, revision) is not None


def _text(source: str, name: str, revision: str | None) -> str | None:
    found = _path(source, name, revision)
    return None if found is None else Path(found).read_text(encoding="utf-8")


def _path(source: str, name: str, revision: str | None) -> str | None:
    """Return the path of a file, or None if the checkpoint has none; raise OSError if that cannot be known."""
    if (folder := Path(source)).is_dir():
        return str(folder / name) if (folder / name).is_file() else None
    return cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=name == "config.json")


def _object(text: str) -> dict[str, Any]:
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError("it is not an object")
    return content


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of nested objects and lists."""
    waiting = [content]
    while waiting:
        inside = waiting.pop()
        if isinstance(inside, dict):
            yield from inside.items()
        waiting += inside.values() if isinstance(inside, dict) else inside if isinstance(inside, list) else ()


def _refuse_entry(path: str, key: str, value: Any) -> None:
    """Refuse one entry of config.json, at any depth, if it has too many layers or asks for code."""
    if "layer" in key:
        count = len(value) if isinstance(value, list) else value if isinstance(value, int) else 0
        if count > MAX_LAYERS:
            raise UserError(
                f"model.path={path}: config.json says {key}={count if count < 10**18 else '10^18 or more'}: "
                f"more than {MAX_LAYERS} layers are not loaded"
            )
    if key.endswith("_implementation") and "/" in str(value):
        raise UserError(
            f"model.path={path}: config.json asks for code of a hub ({key}={str(value)[:REASON]}), which is never "
            "loaded: leave that entry out"
        )


def _refuse_damaged_json(path: str, folder: Path) -> None:
    """Refuse damaged JSON by file name, because the errors of transformers do not name the file."""
    for name in MAX_BYTES:
        if (folder / name).is_file():
            with told_in_one_line(path, name):
                _object((folder / name).read_text(encoding="utf-8"))


def _refuse_huge_files(path: str, folder: Path) -> None:
    limits = {folder / name: limit for name, limit in MAX_BYTES.items()}
    limits |= dict.fromkeys([*folder.glob("*.jinja"), *folder.glob("*/*.jinja")], MAX_TEMPLATE)
    for file, limit in limits.items():
        if file.is_file() and file.stat().st_size > limit:
            raise UserError(
                f"model.path={path}: {file.name} has {file.stat().st_size / 1e6:,.1f} MB, and more than "
                f"{limit / 1e6:,.0f} MB are not read"
            )
