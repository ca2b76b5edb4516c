"""`--model selfdraft` of lm-evaluation-harness: on a stand-in for its model `hf`, and on the package itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import StoppingCriteriaList

from selfdraft.app import lm_eval
from selfdraft.app.terminal.errors import FULL_ERROR, TERSE
from selfdraft.core.errors import UserError
from selfdraft.models.loading.tiny import tiny_model, tiny_tokenizer

MODEL = "selfdraft.app.lm_eval_model"
PROMPTS = ["One and one and one and", "Why, oh why?"]
LONGEST = 24  # tokens of an answer


class HFLM:
    """What the harness's class of this name does with a loaded model, as far as ours needs it."""

    def __init__(self, pretrained: Any, tokenizer: Any = None, device: str = "cuda", **options: Any) -> None:
        self.pretrained, self.model, self.tokenizer = pretrained, pretrained, tokenizer
        self.device, self.options = device, options

    def get_model_info(self) -> dict[str, Any]:
        return {"model_revision": "main"}

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        assert stop == []  # its own criteria keep state
        return self.model.generate(
            input_ids=context,
            max_length=max_length,
            stopping_criteria=StoppingCriteriaList(),
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            **options,
        )

    def generate_until(self, prompts: list[str], until: list[str], **options: Any) -> list[str]:
        given = self.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        length = given["input_ids"].shape[1]
        written = self._model_generate(
            context=given["input_ids"],
            attention_mask=given["attention_mask"],
            stop=[*until, self.tokenizer.eos_token],
            max_length=length + LONGEST,
            **{"do_sample": False, **options},
        )
        texts = [self.tokenizer.decode(row[length:], skip_special_tokens=True) for row in written]
        return [cut(text, until) for text in texts]


def cut(text: str, until: list[str]) -> str:
    for stop in until:
        text = text.split(stop)[0]
    return text


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, type]]:
    """Stand-ins for the modules of the harness that ours imports; the models that are registered with them."""
    found: dict[str, type] = {}

    def register_model(name: str) -> Any:
        return lambda model: found.setdefault(name, model)

    contents = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.models": {},
        "lm_eval.api.registry": {"register_model": register_model},
        "lm_eval.models.huggingface": {"HFLM": HFLM},
        "lm_eval.__main__": {"cli_evaluate": lambda: print(*found, *sys.argv[1:])},
    }
    for name, names in contents.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    before = sys.modules.pop(MODEL, None)
    yield found
    sys.modules.pop(MODEL, None)
    if before is not None:
        sys.modules[MODEL] = before


def made(registry: dict[str, type], **options: Any) -> Any:
    """The model on a tiny random one."""
    import_module(MODEL)
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_positions=512)
    return registry["selfdraft"](model, tokenizer=tokenizer, engine="eager", **options)


def test_answers_are_those_of_generate_up_to_a_stop_string(registry: dict[str, type]) -> None:
    lm = made(registry, drafter="suffix costs=flat")
    stock = [
        lm.model.generate(**lm.tokenizer(prompt, return_tensors="pt"), max_new_tokens=LONGEST, do_sample=False)
        for prompt in PROMPTS
    ]
    answers = [row[0, -LONGEST:] for row in stock]
    whole = [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    assert lm.generate_until(PROMPTS, []) == whole
    counted = lm.get_model_info()["selfdraft"]
    assert counted["drafter"] == "suffix costs=flat"
    assert (counted["answers"], counted["new_tokens"]) == (2, 2 * LONGEST)
    assert counted["tokens_per_forward"] == counted["new_tokens"] / counted["target_forwards"] >= 1

    stop = lm.tokenizer.decode(answers[0][3:5])  # two tokens of the first answer
    assert stop in whole[0]
    assert lm.generate_until(PROMPTS, [stop]) == [cut(text, [stop]) for text in whole]
    assert lm.counts["new_tokens"] - counted["new_tokens"] < 2 * LONGEST  # it ended there
    assert lm.get_model_info()["model_revision"] == "main"


def test_options_of_a_task_are_passed_on_or_refused(registry: dict[str, type]) -> None:
    lm = made(registry, drafter="suffix costs=flat")
    sampled = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        sampled.append(lm.generate_until(PROMPTS, [], do_sample=True, temperature=1.5))
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(UserError, match="generation by beam_search cannot be drafted for"):
        lm.generate_until(PROMPTS, [], num_beams=2)


def test_arguments_are_those_of_the_harness_and_a_drafter(
    registry: dict[str, type], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lm = made(registry)
    assert lm.drafting.config.label == "pool"
    assert lm.device == ("cuda" if torch.cuda.is_available() else "cpu")
    lm = made(registry, drafter="layer_skip sparsity=0.3", dtype="bfloat16", device="cpu")
    assert lm.drafting.config.path.sparsity == 0.3 and lm.options == {"dtype": "bfloat16"}
    monkeypatch.setattr(import_module(MODEL), "smollm2_135m", lambda: tmp_path)
    assert registry["selfdraft"](drafter="suffix").pretrained == str(tmp_path)
    for options, said in [
        ({"drafter": "polo"}, "there is no drafter 'polo'"),
        ({"drafter": "guarded pool"}, "drafter=guarded pool: guarded drafters are for task=compare"),
        ({"drafter": "pool", "artifact": "run"}, "give drafter or artifact, not both"),
        ({"artifact": str(tmp_path)}, "drafter.yaml"),
        ({"mixed_precision_dtype": "bfloat16"}, "mixed_precision_dtype does not go with drafts"),
    ]:
        with pytest.raises(UserError, match=said):
            made(registry, **options)


def test_the_command_registers_the_model_and_runs_that_of_the_harness(
    registry: dict[str, type], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lm_eval", "--model", "selfdraft"])
    lm_eval.main()
    assert capsys.readouterr().out == "selfdraft --model selfdraft\n"


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(lm_eval, "find_spec", lambda name: None)
    for name in (FULL_ERROR, TERSE):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit) as ended:
        lm_eval.main()
    said = "selfdraft: lm-evaluation-harness is not installed: pip install 'selfdraft[lm_eval]'\n"
    assert ended.value.code == 2 and capsys.readouterr().err == said


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs the extra lm_eval")
def test_the_harness_scores_both_models_alike(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer), max_positions=512).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    records = [{"question": question, "answer": "a"} for question in PROMPTS]
    (tmp_path / "qa.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    task = {
        "task": "local_qa",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "qa.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": LONGEST},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "local_qa.yaml").write_text(json.dumps(task))  # JSON is YAML
    answers = {}
    for name, options in ("hf", ""), ("selfdraft", ",drafter=suffix costs=flat,engine=eager"):
        command = [sys.executable, "-m", "selfdraft.app.lm_eval", "--model", name, "--tasks", "local_qa"]
        command += ["--model_args", f"pretrained={tmp_path / 'model'}{options}", "--include_path", str(tmp_path)]
        command += ["--output_path", str(tmp_path / name), "--log_samples", "--batch_size", "2"]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **offline})
        assert done.returncode == 0, done.stderr
        assert f"{name} (" in done.stdout and "exact_match" in done.stdout
        (samples,) = (tmp_path / name).rglob("samples_local_qa*.jsonl")
        answers[name] = [json.loads(line)["resps"] for line in samples.read_text().splitlines()]
    assert answers["hf"] == answers["selfdraft"] and len(answers["hf"]) == len(PROMPTS)
    (result,) = (SimpleNamespace(**json.loads(f.read_text())) for f in (tmp_path / "selfdraft").rglob("results*.json"))
    assert result.config["selfdraft"]["answers"] == len(PROMPTS)
