"""Writing texts to learn from, under a Lightning Trainer: the target's own answers, drafted for speed."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from selfdraft.data.prompts import Prompt
from selfdraft.decoding.loop import Request
from selfdraft.decoding.record import Generation
from selfdraft.decoding.trajectories import Trajectories
from selfdraft.models.chat import Chat
from selfdraft.modules.bench import Bench
from selfdraft.modules.resuming import History, Resumed, keep_current
from selfdraft.tracking.records import TEXTS, RecordFile, key, record_path
from selfdraft.tracking.run_folder import confirm


@dataclass
class Conversation:
    """A prompt and what was said so far; `invented_s`: seconds that it took to invent its turn."""

    prompt: Prompt
    history: History = field(default_factory=list)
    invented_s: float = 0.0

    @property
    def turn(self) -> int:
        """The one that is to be answered next."""
        return len(self.history) // 2

    @property
    def name(self) -> str:
        """Of that turn; the same as in evaluations, so that the same texts are drawn."""
        return f"{self.prompt.id} (turn {self.turn + 1})"

    def __str__(self) -> str:
        return self.name

    def answered(self, text: str) -> None:
        """Go on to the next turn."""
        self.history += [("user", self.prompt.turns[self.turn]), ("assistant", text)]

    @property
    def unasked(self) -> bool:
        """Whether the model is still to write the next turn."""
        return self.left() and not self.prompt.turns[self.turn]

    def invented(self, text: str, seconds: float) -> None:
        """It has, or says that there is none."""
        self.prompt, self.invented_s = replace(self.prompt, turns=(text,) if text.strip() else ()), seconds

    def left(self) -> bool:
        """Whether there is one."""
        return self.turn < len(self.prompt.turns)


class Requests:
    """What a decoder takes next: the next turn of a conversation that has begun before a conversation that has not.

    It may run dry and go on later, once an answer has come: a decoder asks it again at every step.
    """

    def __init__(
        self, prompts: Sequence[Prompt], finished: Mapping[tuple[str, int], str], chat: Chat, positions: int, seed: int
    ) -> None:
        """Begin with all prompts.

        Args:
            finished: answers of an earlier run, by prompt and turn: taken over instead of asked for.
            positions: of the model. A conversation that has grown too long for it ends before its turn.
            seed: of the run; every turn gets one of its own from it, whatever runs before or beside it.
        """
        self.waiting = deque(Conversation(prompt) for prompt in prompts)
        self.finished, self.chat, self.positions, self.seed = finished, chat, positions, seed

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        while self.waiting:
            talk = self.waiting.popleft()
            while talk.left() and (answer := self.finished.get((talk.prompt.id, talk.turn))) is not None:
                talk.answered(answer)
            if not talk.left():
                continue
            asked = [*talk.history, ("user", talk.prompt.turns[talk.turn])]
            ids = self.chat.opening() if talk.unasked else self.chat.encode(asked)
            if len(ids) < self.positions:
                return Request(ids, zlib.crc32(f"{self.seed}/{talk.name}{'?' * talk.unasked}".encode()), talk)
        raise StopIteration

    def answer(self, request: Request, text: str, seconds: float = 0.0) -> None:
        """The conversation of a request goes on, with a turn that was invented in so many seconds or with an answer."""
        talk = request.key
        if talk.unasked:
            talk.invented(text, seconds)
        else:
            talk.answered(text)
        self.waiting.appendleft(request.key)


class DistillModule(pl.LightningModule):
    """Answers every prompt it is given, and appends a line of texts.jsonl for each turn as soon as it is done.

    A step is a list of prompts, the longer the better: rows stay full until the last of them.
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
        tell: Callable[[dict[str, Any]], None] = lambda line: None,
        tell_resumed: Callable[[Resumed], None] = lambda resumed: None,
    ) -> None:
        """Prepare to write.

        Args:
            build: makes the bench on this process's device; only its drafter is used.
            folder: of the run. Turns that its texts.jsonl holds already are not answered again.
            width, passes: of trajectories (see `decoding.trajectories`); no width, none.
            prompts: all of them, of every rank: what an interrupted run has written for others does not count.
            tell: gets every line when it is written.
            tell_resumed: gets, on rank 0, what an interrupted run has left.
        """
        super().__init__()
        self.build, self.folder, self.seed, self.width, self.passes = build, folder, seed, width, passes
        self.prompts, self.tell, self.tell_resumed = prompts, tell, tell_resumed

    def setup(self, stage: str) -> None:
        """Load the model where this rank runs it, and see what an interrupted run has finished."""
        bench = self.build(self.trainer.strategy.root_device)
        self.chat, self.decoder = bench.chat, bench.drafter
        target, rows = self.decoder.target, self.decoder.batch_size
        self.trajectories = None
        if self.width is not None:
            target.allocate(rows + 1, 0)  # a row beyond those of the decoder, whose answers are still being written
            self.trajectories = Trajectories(target, self.decoder.rule, width=self.width, passes=self.passes, row=rows)
        if self.global_rank == 0:
            confirm(self.folder, {"model": bench.fingerprint})
            self.tell_resumed(
                keep_current(self.folder, self.prompts, self.chat.encode, lambda line: line["text"], name=TEXTS)
            )
        barrier = self.trainer.strategy.barrier
        barrier("rank 0 has gathered the finished lines")
        lines = RecordFile(record_path(self.folder, name=TEXTS)).read()
        self.finished = {key(line): line["text"] for line in lines}
        barrier("every rank has read them, and rank 0 may append")
        self.record = RecordFile(record_path(self.folder, self.global_rank, name=TEXTS))

    def test_step(self, prompts: list[Prompt], batch_idx: int) -> None:
        """All turns of these prompts; conversations go on with the answers just written."""
        positions = self.decoder.target.max_positions
        requests = Requests(prompts, self.finished, self.chat, positions, self.seed)
        for request, generation in self.decoder.run(requests):
            if self.trainer.received_sigterm:  # Lightning asks between steps, and this one takes as long as the run
                raise SIGTERMException
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
