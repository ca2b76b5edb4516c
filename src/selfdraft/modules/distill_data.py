"""Writing texts to train on, under a Lightning Trainer: the target's own answers, decoded with a drafter for speed."""

from __future__ import annotations

import heapq
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from selfdraft.data.prompts import Prompt, sampled
from selfdraft.decoding.loop import Request
from selfdraft.decoding.record import Generation
from selfdraft.decoding.trajectories import Trajectories
from selfdraft.models.loading.chat import Chat
from selfdraft.modules.bench import Bench
from selfdraft.modules.resuming import History, Resumed, keep_current
from selfdraft.tracking.files.records import TEXTS, RecordFile, key, record_path
from selfdraft.tracking.files.run_folder import confirm


@dataclass
class Conversation:
    """A prompt and the conversation so far; `invented_s`: seconds that it took to invent its turn."""

    prompt: Prompt
    history: History = field(default_factory=list)
    invented_s: float = 0.0

    @property
    def turn(self) -> int:
        """Index of the turn to be answered next."""
        return len(self.history) // 2

    @property
    def name(self) -> str:
        """Name of that turn; the same as in evaluations, so that the same texts are drawn."""
        return f"{self.prompt.id} (turn {self.turn + 1})"

    @property
    def length(self) -> int:
        """Number of characters up to the turn to be answered next."""
        known = [text for _, text in (*self.prompt.history, *self.history)]
        return sum(map(len, known)) + (len(self.prompt.turns[self.turn]) if self.left() else 0)

    def __str__(self) -> str:
        return self.name

    def answered(self, text: str) -> None:
        """Add an answer, and go on to the next turn."""
        self.history += [("user", self.prompt.turns[self.turn]), ("assistant", text)]

    @property
    def unasked(self) -> bool:
        """Whether the model still has to invent the next turn."""
        return self.left() and not self.prompt.turns[self.turn]

    def left(self) -> bool:
        """Return whether a turn is left to answer."""
        return self.turn < len(self.prompt.turns)


class Requests:
    """Iterator of requests for a decoder: shorter conversations come first, and prompts to invent last.

    All rows of a forward attend to as many keys as the longest one has, so rows of similar length belong together. An
    invented prompt is answered at once, while its keys are in the cache, and so are the other answers to a prompt. It
    may be exhausted and yield again after an answer has come: a decoder asks it again at every step.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        finished: Mapping[tuple[str, int], str],
        chat: Chat,
        positions: int,
        seed: int,
        samples: int = 1,
    ) -> None:
        """Begin with all prompts.

        Args:
            finished: answers of an earlier run, by prompt and turn: used instead of decoding the turn again.
            positions: number of the model's positions. A conversation that needs more ends before that turn.
            seed: the run's seed. Each turn's own seed follows from it and the turn's name only.
            samples: number of answers to each prompt. Each goes on with its own conversation.
        """
        # A heap: whether the turn is to be invented, length in characters, order of arrival.
        self.waiting: list[tuple[bool, int, int, Conversation]] = []
        self.arrived, self.samples = 0, samples
        self.finished, self.chat, self.positions, self.seed = finished, chat, positions, seed
        for prompt in prompts:
            if (talk := Conversation(prompt)).unasked:  # one invention serves all answers
                self._wait(talk)
            else:
                self._ask(prompt)

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        while self.waiting:
            *_, talk = heapq.heappop(self.waiting)
            if talk.unasked and all((each.id, 0) in self.finished for each in sampled(talk.prompt, self.samples)):
                continue
            while (
                talk.left()
                and not talk.unasked
                and (answer := self.finished.get((talk.prompt.id, talk.turn))) is not None
            ):
                talk.answered(answer)
            if not talk.left():
                continue
            asked = [*talk.prompt.history, *talk.history, ("user", talk.prompt.turns[talk.turn])]
            ids = self.chat.opening() if talk.unasked else self.chat.encode(asked)
            if len(ids) < self.positions:
                return Request(ids, zlib.crc32(f"{self.seed}/{talk.name}{'?' * talk.unasked}".encode()), talk)
        raise StopIteration

    def answer(self, request: Request, text: str, seconds: float = 0.0) -> None:
        """Continue a request's conversation with `text`: a turn that was invented in `seconds`, or an answer."""
        talk = request.key
        if talk.unasked:
            self._ask(replace(talk.prompt, turns=(text,) if text.strip() else ()), seconds)
        else:
            talk.answered(text)
            self._wait(talk)

    def _ask(self, prompt: Prompt, invented_s: float = 0.0) -> None:
        """Begin a conversation for each answer to a prompt; the first one accounts for the seconds of inventing it."""
        for number, each in enumerate(sampled(prompt, self.samples)):
            self._wait(Conversation(each, invented_s=0.0 if number else invented_s))

    def _wait(self, talk: Conversation) -> None:
        """Put a conversation among the others."""
        self.arrived += 1
        heapq.heappush(self.waiting, (talk.unasked, talk.length, self.arrived, talk))


class DistillModule(pl.LightningModule):
    """Answers every prompt it is given, and appends a line of texts.jsonl for each turn as soon as it is done.

    A step is a list of prompts. A longer list is better: the batch's rows stay full until its last prompts.
    """

    def __init__(
        self,
        build: Callable[[torch.device], Bench],
        *,
        folder: Path,
        seed: int,
        width: int | None,
        passes: int,
        prompts: Sequence[Prompt],
        samples: int = 1,
        tell: Callable[[dict[str, Any]], None] = lambda line: None,
        tell_resumed: Callable[[Resumed], None] = lambda resumed: None,
    ) -> None:
        """Prepare to write.

        Args:
            build: makes the bench on this process's device; only its drafter is used.
            folder: the run's folder. Turns that its texts.jsonl holds already are not answered again.
            seed: the run's seed.
            width, passes: of trajectories (see `decoding.trajectories`); width None records none.
            prompts: those of all ranks. Lines that an interrupted run wrote for other prompts do not count.
            samples: number of answers to each prompt.
            tell: called with every line after it is written.
            tell_resumed: called on rank 0 with the counts of an interrupted run's turns.
        """
        super().__init__()
        self.build, self.folder, self.seed, self.width, self.passes = build, folder, seed, width, passes
        self.prompts, self.samples, self.tell, self.tell_resumed = prompts, samples, tell, tell_resumed

    def setup(self, stage: str) -> None:
        """Load the model on this rank's device, and read what an interrupted run has finished."""
        bench = self.build(self.trainer.strategy.root_device)
        self.chat, self.decoder = bench.chat, bench.drafter
        self.decoder.shares_prefixes = True  # an invented prompt is in the cache already, the template in other rows
        target, rows = self.decoder.target, self.decoder.batch_size
        self.trajectories = None
        if self.width is not None:
            target.allocate(rows + 1, 0)  # one row more: the decoder's rows may hold answers in progress
            self.trajectories = Trajectories(target, self.decoder.rule, width=self.width, passes=self.passes, row=rows)
        if self.global_rank == 0:
            confirm(self.folder, {"model": bench.fingerprint})
            prompts = [each for prompt in self.prompts for each in sampled(prompt, self.samples)]
            self.tell_resumed(
                keep_current(self.folder, prompts, self.chat.encode, lambda line: line["text"], name=TEXTS)
            )
        barrier = self.trainer.strategy.barrier
        barrier("rank 0 has gathered the finished lines")
        lines = RecordFile(record_path(self.folder, name=TEXTS)).read()
        self.finished = {key(line): line["text"] for line in lines}
        barrier("every rank has read them, and rank 0 may append")
        self.record = RecordFile(record_path(self.folder, self.global_rank, name=TEXTS))

    def test_step(self, prompts: list[Prompt], batch_idx: int) -> None:
        """Answer all turns of these prompts; conversations continue with the answers just written."""
        positions = self.decoder.target.max_positions
        requests = Requests(prompts, self.finished, self.chat, positions, self.seed, self.samples)
        for request, generation in self.decoder.run(requests):
            if generation.ended and request.key.unasked:
                seconds = generation.clock.seconds["prefill"] + generation.clock.decode_s
                requests.answer(request, self.chat.decode(generation.output), seconds)
            elif generation.ended:
                line = self._line(request, generation)
                self.record.append(line)
                self.tell(line)
                requests.answer(request, line["text"])

    def _line(self, request: Request, generation: Generation) -> dict[str, Any]:
        talk, counts, clock = request.key, generation.counts, generation.clock
        line = {
            "id": talk.prompt.id,
            "category": talk.prompt.category,
            "turn": talk.turn,
            "prompt_ids": generation.prompt,
            "output_ids": generation.output,
            "text": self.chat.decode(generation.output),
            "ended": generation.ended,
            "target_forwards": counts.target_forwards,
            "prefill_s": clock.seconds["prefill"],
            "decode_s": clock.decode_s,
            "rank": self.global_rank,
        }
        if talk.invented_s:
            line["invented_s"] = talk.invented_s
        if self.trajectories is not None:
            begin = time.perf_counter()
            line["trajectories"] = self.trajectories.record(generation.prompt, generation.output, request.seed)
            line["trajectories_s"] = time.perf_counter() - begin
        return line
