"""task=audit: check the answers of any engine against the model itself."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.text import Text

from selfdraft.app.options.schema_audit import AuditConfig
from selfdraft.app.options.schemas import Config, DecodingConfig, SampleConfig
from selfdraft.app.runs.build import build_target, refuse_a_run_that_cannot_fit
from selfdraft.app.runs.lifecycle import Run
from selfdraft.app.runs.session import shown
from selfdraft.core.errors import UserError
from selfdraft.core.messages import warn
from selfdraft.core.sampling import NextToken
from selfdraft.data.answers import Answer, load_answers
from selfdraft.decoding.audit import Auditor, Finding
from selfdraft.decoding.certify import Certifier
from selfdraft.models.engines.choice import EAGER
from selfdraft.models.loading.chat import Chat
from selfdraft.models.loading.fingerprint import fingerprint
from selfdraft.models.loading.loading import LoadedModel
from selfdraft.models.loading.spelling import Speller
from selfdraft.models.reference.processors import repetition_penalty
from selfdraft.modules.audit_progress import AuditProgress
from selfdraft.tracking.files.atomic import write_json_atomic
from selfdraft.tracking.files.records import AUDIT, RecordFile, record_path
from selfdraft.tracking.files.run_folder import confirm, digest_of_file
from selfdraft.tracking.numbers.audited import LEFT_OUT, print_audit, read_audited, summarize_audit

BEFORE = 8  # tokens before a difference that a line shows


def audit(run: Run) -> None:
    """Audit the answers of a file, or resume an audit that was interrupted in the run's folder.

    Raises:
        UserError: something in configuration, model, file or folder cannot be used.
        SystemExit: status 1 after a mismatch.
    """
    config, folder, options = _settled(run.config), run.folder, run.config.audit
    answers = load_answers(options.path)[: options.limit]
    refuse_a_run_that_cannot_fit(config, certify=True, rows=1)
    announcement = (
        f"auditing {len(answers)} answers of {options.path.name} by {config.model.label} in {config.model.dtype}"
    )
    run.begin([announcement], name="audit", records=AUDIT, facts={"audit.file": digest_of_file(options.path)})
    with run.console.status(f"loading {config.model.label}"):
        desk = Desk(config, answers)
    confirm(folder, {"model": desk.fingerprint})
    record = RecordFile(record_path(folder, name=AUDIT))
    finished = {(line["id"], line["turn"]) for line in read_audited(folder)}
    if finished:
        run.console.print(f"resuming {shown(folder)}: {len(finished)} of {len(answers)} answers were judged before")
    with AuditProgress(run.console, len(answers), len(finished)) as progress:
        for answer in answers:
            if (answer.id, answer.turn) not in finished:
                line = desk.line(answer)
                record.append(line)
                progress.add(line)
    _conclude(run, options)


def _settled(config: Config) -> Config:
    """Return the configuration with layers run one by one, because a graph would be used for few forwards."""
    if isinstance(config.decoding, SampleConfig):
        raise UserError("task=audit checks greedy answers; there is no right answer to sampling: use decoding=greedy")
    if config.decoding.stop:
        raise UserError(
            "decoding.stop: an audit does not know where a text would have ended; give the lines that ended so "
            "finish_reason stop_sequence instead"
        )
    if config.hardware.devices > 1:
        raise UserError(f"task=audit runs in one process: leave hardware.devices={config.hardware.devices} out")
    return replace(config, model=replace(config.model, engine=EAGER))


class Desk:
    """Makes a line of audit.jsonl from an answer."""

    def __init__(self, config: Config, answers: Sequence[Answer]) -> None:
        """Load the model, and turn all prompts and outputs into token ids.

        Raises:
            UserError: the model cannot be loaded or is not supported; an answer does not fit it.
        """
        loaded = config.model.load(torch.device(config.hardware.torch_device))
        self.options, self.chat, self.speller = config.audit, Chat(loaded.tokenizer), Speller(loaded.tokenizer)
        self.fingerprint = fingerprint(loaded.model)
        target, _ = build_target(config.model, loaded.model)
        ends = loaded.eos if self.options.stop_ids is None else frozenset(self.options.stop_ids)
        certifier = Certifier(target, _rule(config.decoding, ends), batch_size=self.options.batch_size)
        self.auditor = Auditor(certifier, ends, _padding(loaded))
        self.positions, self.vocab_size = target.max_positions, target.vocab_size
        self.texts = {(answer.id, answer.turn): self._encoded(answer) for answer in answers}
        self.longest = max(len(output) for _, output, _, _ in self.texts.values())

    def line(self, answer: Answer) -> dict[str, Any]:
        """Judge an answer, and return its line."""
        prompt, output, warning, is_cut = self.texts[answer.id, answer.turn]
        line: dict[str, Any] = {"id": answer.id, "turn": answer.turn, "where": answer.where, "tokens": len(output)}
        if len(prompt) + len(output) > self.positions:
            return line | {LEFT_OUT: f"longer than the model's {self.positions} positions"}
        limit = self._limit(answer)
        if self.options.tokens is not None and len(output) > self.options.tokens:
            output, limit = output[: self.options.tokens], 0
        text, respell = answer.output, None
        if isinstance(text, str):
            if self.options.tokens is None:
                respell = lambda tokens, token: self.speller.respelt(prompt, text, tokens, token)  # noqa: E731
            if not warning and answer.ended is None and limit:
                warning = "the length of a text in tokens is a guess: give finish_reason"
        found = self.auditor.audit(prompt, output, limit=0 if is_cut else limit, respell=respell)
        return line | self._found(found) | ({"warning": warning} if warning else {})

    def _limit(self, answer: Answer) -> int | None:
        """Return the number of tokens from which on the answer may end without an end of sequence."""
        if answer.ended is not None:
            return None if answer.ended == "stop" else 0
        return answer.max_new_tokens or self.options.max_new_tokens or self.longest

    def _found(self, found: Finding) -> dict[str, Any]:
        index = found.index
        return {
            "verdict": found.verdict,
            "reason": found.reason,
            "tokens": len(found.output),
            "first_divergence": index,
            "before": None if index is None else self.speller.text(found.output[max(index - BEFORE, 0) : index]),
            "written_id": found.written,
            "written": None if found.written is None else self.speller.text([found.written]),
            "model_id": found.model,
            "model": None if found.model is None else self.speller.text([found.model]),
            "margin": _finite(found.margin),
            "margin_in_dtype": _finite(found.margin_in_dtype),
            "control": _finite(found.control),
            "ties": found.ties,
        }

    def _encoded(self, answer: Answer) -> tuple[list[int], list[int], str, bool]:
        """Return prompt and output as ids, a warning if they are uncertain, and whether the output's end is cut off.

        Raises:
            UserError: an id is not in the vocabulary; a prompt has no token; the chat template fails.
        """
        try:
            prompt = self._prompt(answer)
        except UserError as error:
            raise UserError(f"{answer.where}: {error}") from None
        if not prompt:
            raise UserError(f"{answer.where}: `prompt` gives no token; a prompt has at least one")
        if isinstance(answer.output, str):
            spelt = self.speller.answer(prompt, answer.output)
            output, warning, is_cut = spelt.ids, spelt.warning, spelt.is_cut
        else:
            output, warning, is_cut = answer.output, "", False
        for key, ids in (("prompt_ids", prompt), ("output_ids", output)):
            if (largest := max(ids, default=0)) >= self.vocab_size:
                raise UserError(f"{answer.where}: `{key}` holds {largest}, but the model has {self.vocab_size} tokens")
        return prompt, output, warning, is_cut

    def _prompt(self, answer: Answer) -> list[int]:
        if isinstance(answer.prompt, list):
            return answer.prompt
        if isinstance(answer.prompt, str):
            return self.speller.prompt(answer.prompt)
        if self.chat.tokenizer.chat_template is None:
            raise UserError("`messages` need a chat template, and this model's tokenizer has none: give prompt_ids")
        return self.chat.encode([(message.role, message.content) for message in answer.prompt])


def _rule(decoding: DecodingConfig, ends: frozenset[int]) -> NextToken:
    penalty = decoding.repetition_penalty
    processors = () if penalty is None else (repetition_penalty(penalty),)
    return NextToken(eos=ends, min_new_tokens=decoding.min_new_tokens, processors=processors)


def _padding(loaded: LoadedModel) -> set[int]:
    return set() if loaded.tokenizer.pad_token_id is None else {int(loaded.tokenizer.pad_token_id)}


def _finite(value: float | None) -> float | None:
    """Return a value that JSON can hold."""
    return value if value is not None and math.isfinite(value) else None


def _conclude(run: Run, options: AuditConfig) -> None:
    config, folder, console = run.config, run.folder, run.console
    lines = read_audited(folder)
    result = {
        "task": config.task.name,
        "model": config.model.label,
        "dtype": config.model.dtype,
        "file": str(options.path),
        **summarize_audit(lines),
    }
    write_json_atomic(folder / "result.json", result)
    print_audit(result, lines, console)
    run.log(result)
    if result["warnings"]:
        warn(f"{result['warnings']} texts are uncertain in tokens: see `warning` in {shown(folder / 'audit.jsonl')}")
    if wrong := [line["id"] for line in lines if line.get("verdict") == "mismatch"]:
        console.print(
            Text("NOT THE MODEL'S OUTPUT", "bold red"),
            f": mismatch in {'; '.join(wrong[:5])}; see {shown(folder)}/audit.jsonl",
            sep="",
        )
        sys.exit(1)
