"""Load each kind of user file, with a payload in it, under Python's audit hook:  python tests/audited.py FOLDER

Prints, by kind, how it ended and what happened meanwhile that only running code of others makes happen: a pickle's
look-up of a function, a process, a connection, a module or code from FOLDER. tests/app/test_no_code_is_run.py reads it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from forked import ForkedTrials, connect
from payload import Payload
from script_module import script_module
from selfdraft.app.tasks.export import finetuned
from selfdraft.core.errors import UserError
from selfdraft.data import tables
from selfdraft.data.distilled import load_texts
from selfdraft.data.sources import load_hub, load_jsonl
from selfdraft.models.loading.loading import load_pretrained, load_random
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer
from selfdraft.models.trained.adapter import FILE, Adapter
from selfdraft.modules.checkpoints import TYPES, read_checkpoint
from selfdraft.tracking.files.artifact import Artifact
from selfdraft.tracking.files.records import RecordFile
from selfdraft.tracking.files.run_folder import claim_run_dir

NEVER = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork")
CODE = (".bin", ".pkl", ".py")  # names of files that no loader has a reason to open


def planted(marker: Path) -> bytes:
    """A pickle that makes `marker`."""
    return pickle.dumps(Payload(marker))


def kinds(folder: Path, marker: Path) -> dict[str, Callable[[], Any]]:
    """By name, what loads one kind of file. Each file is in a folder of its own."""

    def made(kind: str) -> Path:
        (folder / kind).mkdir(parents=True)
        return folder / kind

    def written(kind: str, name: str, content: bytes | str) -> Path:
        path = made(kind) / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    tagged = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{str(marker)!r}]]"
    pickled, found = planted(marker), {}

    jsonl = written("a dataset", "prompts.jsonl", pickled)
    found["a dataset"] = lambda: load_jsonl(jsonl)
    line = {"prompt": "a", "py/reduce": [{"py/function": "os.system"}, [f"touch {marker}"]], "category": f"$({code})"}
    odd = written("a dataset of objects", "prompts.jsonl", json.dumps(line))
    found["a dataset of objects"] = lambda: load_jsonl(odd)

    artifact = written("a drafter.yaml", "drafter.yaml", f"drafter: {tagged}\noptions: {tagged}\n")
    found["a drafter.yaml"] = lambda: Artifact.read(artifact.parent)

    weights = written("an adapter", FILE, pickled)
    (weights.parent / "adapter_model.bin").write_bytes(pickled)
    found["an adapter"] = lambda: Adapter.read(weights.parent)

    checkpoint = made("a checkpoint") / "last.ckpt"
    torch.save({name: kind() for name, kind in TYPES.items()} | {"history": [Payload(marker)]}, checkpoint)
    found["a checkpoint"] = lambda: read_checkpoint(checkpoint)
    old = made("a checkpoint of the old format") / "last.ckpt"
    torch.save({"history": [Payload(marker)]}, old, _use_new_zipfile_serialization=False)
    found["a checkpoint of the old format"] = lambda: read_checkpoint(old)
    bare = written("a checkpoint that is a pickle", "last.ckpt", pickled)
    found["a checkpoint that is a pickle"] = lambda: read_checkpoint(bare)

    def model(kind: str) -> Path:
        path = made(kind)
        tiny_tokenizer().save_pretrained(path)
        tiny_model("llama", seed=0, vocab_size=len(tiny_tokenizer())).save_pretrained(path)
        return path

    genuine = model("a model")
    found["a model"] = lambda: load_pretrained(str(genuine), "float32", torch.device("cpu"))
    binary = model("a model of pickles")
    (binary / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload(marker)}, binary / "pytorch_model.bin")
    found["a model of pickles"] = lambda: load_pretrained(str(binary), "float32", torch.device("cpu"))
    own = model("a model with code of its own")
    config = json.loads((own / "config.json").read_text())
    maps = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    (own / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": maps}))
    tokenizer = json.loads((own / "tokenizer_config.json").read_text())
    own_tokenizer = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (own / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **own_tokenizer}))
    (own / "own.py").write_text(code)
    found["a model with code of its own"] = lambda: load_pretrained(str(own), "float32", torch.device("cpu"))
    found["a shape with code of its own"] = lambda: load_random(str(own), 0, "float32", torch.device("cpu"))
    token = Path(shutil.copytree(genuine, folder / "a tokenizer with code of its own"))
    (token / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **own_tokenizer}))
    (token / "own.py").write_text(code)
    found["a tokenizer with code of its own"] = lambda: load_pretrained(str(token), "float32", torch.device("cpu"))
    adapted = Path(shutil.copytree(genuine, folder / "a model with a peft adapter"))
    peft = {"peft_type": "LORA", "base_model_name_or_path": str(genuine), "r": 1, "target_modules": ["q_proj"]}
    (adapted / "adapter_config.json").write_text(json.dumps(peft))
    torch.save({"base_model.model.x": Payload(marker)}, adapted / "adapter_model.bin")
    found["a model with a peft adapter"] = lambda: load_pretrained(str(adapted), "float32", torch.device("cpu"))

    run = written("a run's lines", "prompts.jsonl", pickled + b"\n" + json.dumps(line).encode() + b"\n")
    found["a run's lines"] = lambda: RecordFile(run).read()
    folder_of_run = written("a run's config", "config.yaml", f"task: {tagged}\n").parent
    (folder_of_run / "selfdraft.json").write_text(json.dumps({"task": "evaluate", "version": "0", "facts": {}}))
    (folder_of_run / "prompts.jsonl").write_text('{"id": "a", "turn": 0}\n')
    found["a run's config"] = lambda: claim_run_dir(folder_of_run, {"task": {}}, task="evaluate")

    costs = written("a cost file", "costs.json", pickled)
    predicted = [str(run.parent), "--hardware", str(costs)]
    found["a cost file"] = lambda: script_module("predict").main(predicted)
    exported = written("an exported run", "drafter.yaml", artifact.read_bytes()).parent
    found["an exported run"] = lambda: finetuned(str(exported))

    scripted = written("a dataset folder with a script", "data.jsonl", '{"text": "a"}\n').parent
    (scripted / f"{scripted.name}.py").write_text(code)
    (scripted / "dataset_script.py").write_text(code)
    found["a dataset folder with a script"] = lambda: load_texts(scripted, list)
    found["prompts of a dataset folder with a script"] = lambda: load_hub(
        str(scripted), prompt_field="text", split="train"
    )
    only = written("a dataset folder of a script", "a.py", code).parent
    found["a dataset folder of a script"] = lambda: load_texts(only, list)
    tables = written("a dataset folder of pickles", "texts.pkl", pickled).parent
    found["a dataset folder of pickles"] = lambda: load_texts(tables, list)
    archive = made("a dataset folder of archives") / "texts.tar"
    with tarfile.open(archive, "w") as tar:
        for name, content in (("0.pth", pickled), ("0.pickle", pickled), ("0.npy", pickled), ("0.txt", b"a")):
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    found["a dataset folder of archives"] = lambda: load_texts(archive.parent, list)
    state = made("a saved dataset")
    (state / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "x"}))
    (state / "dataset_info.json").write_text("{}")
    (state / "data.arrow").write_bytes(pickled)
    found["a saved dataset"] = lambda: load_texts(state, list)

    # And one that does run it, or the hook would prove nothing.
    found["a payload"] = lambda: torch.load(checkpoint, weights_only=False)
    return found


def main(folder: Path) -> None:
    marker, happened, is_on = folder / "marker", [], [False]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not is_on[0]:
            return
        if event in NEVER:
            happened.append(f"{event} {arguments[:2]!r:.200}")
        elif event == "exec" and str(folder) in str(getattr(arguments[0], "co_filename", "")):
            happened.append(f"exec {arguments[0].co_filename}")
        elif event == "open" and str(folder) in (opened := str(arguments[0])) and opened.endswith(CODE):
            happened.append(f"open {opened}")

    results = {}
    loaders = kinds(folder, marker)
    # A folder of tables is first read in another process, by the calls that follow here; the marker tells what it ran.
    tables.subprocess = ForkedTrials(folder.parent)  # type: ignore[assignment]
    connect()
    sys.addaudithook(hook)
    for name, load in loaders.items():
        happened.clear()
        is_on[0] = True
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                load()
                ended = "loaded"
            except UserError as error:
                ended = f"UserError: {error}"
            except BaseException as error:
                ended = f"{type(error).__name__}: {error}"
        is_on[0] = False
        results[name] = {"ended": ended[:400], "happened": list(happened), "marked": marker.exists()}
        marker.unlink(missing_ok=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
