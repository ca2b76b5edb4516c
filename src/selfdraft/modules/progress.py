"""Progress of long tasks: how much is done, the time left, and the results so far."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from selfdraft.core.heartbeat import EVERY_S, Heartbeat
from selfdraft.data.prompts import sampled
from selfdraft.models.families.parts import attribute
from selfdraft.tracking.display.table import number
from selfdraft.tracking.numbers.lines import CONTENDERS, measured
from selfdraft.tracking.numbers.pace import Pace, ratio

PLAIN_EVERY_S = EVERY_S  # seconds between two lines where there is no terminal for a bar


def bar_of(unit: str, console: Console, field: str = "so_far") -> Progress:
    """Return a bar that counts something, with the time left and a field of each task at its end."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn(f"{{task.fields[{field}]}}"),
        console=console,
    )


class EvaluationProgress(pl.Callback):
    """Shows rank 0's prompts: as a bar on a terminal, as a line every few seconds elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = bar_of("prompts", console)
        self.heartbeat = Heartbeat(self._beat)

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Show an empty bar."""
        self.begin = time.monotonic()
        self.begin_counting()
        assert trainer.test_dataloaders is not None
        self.total, self.done = len(trainer.test_dataloaders.dataset), 0
        self.line = f"0/{self.total} prompts"
        if not trainer.is_global_zero:
            return
        if self.console.is_terminal:
            self.bar.start()
            self.task = self.bar.add_task("evaluating", total=self.total, so_far="")
        else:
            self.heartbeat.begin()

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Count the prompts of a step."""
        self.done += len(batch)
        for line in measured(outputs):
            self.count(line)
        if not trainer.is_global_zero:
            return
        if self.console.is_terminal:
            self.bar.update(self.task, completed=self.done, so_far=self._so_far())
        left = (time.monotonic() - self.begin) / self.done * (self.total - self.done)
        self.line = f"{self.done}/{self.total} prompts, about {left:.0f} s left; {self._so_far()}"

    def _beat(self, seconds: float) -> None:
        """Print the last line, which is the same until the next prompt is done."""
        self.console.print(f"{seconds:.0f} s: {self.line}")

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave the bar as it is."""
        self.heartbeat.end()
        self.bar.stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.heartbeat.end()
        self.bar.stop()

    def begin_counting(self) -> None:
        """Set all counts to zero."""
        self.tokens = self.plain_tokens = self.forwards = 0
        self.drafter_s = self.baseline_s = 0.0
        self.verdicts: Counter[str] = Counter()

    def count(self, line: Mapping[str, Any]) -> None:
        """Count a line of prompts.jsonl."""
        self.tokens += line["new_tokens"]
        self.forwards += line["target_forwards"]
        self.plain_tokens += line["baseline_new_tokens"]
        self.drafter_s += line["decode_s"]
        self.baseline_s += line["baseline_decode_s"]
        self.verdicts[line["lossless"]["verdict"]] += 1

    def _so_far(self) -> str:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in self.verdicts.items())
        speedup = ratio(Pace(self.tokens, self.drafter_s), Pace(self.plain_tokens, self.baseline_s))
        return (
            f"{self.tokens / max(self.forwards, 1):.2f} tokens/forward, speedup {number(speedup, 2, '×')}, {verdicts}"
        )


class ComparisonProgress(EvaluationProgress):
    """The same, with the three contenders that are the fastest so far."""

    def begin_counting(self) -> None:
        """Set all counts to zero."""
        self.by_name: dict[str, list[float]] = {}
        self.verdicts = Counter()

    def count(self, line: Mapping[str, Any]) -> None:
        """Count a line of prompts.jsonl."""
        for name, part in line[CONTENDERS].items():
            total = self.by_name.setdefault(name, [0.0, 0.0])
            total[0] += part["new_tokens"]
            total[1] += part["decode_s"]
            self.verdicts[part["lossless"]["verdict"]] += 1

    def _so_far(self) -> str:
        rates = {name: tokens / seconds for name, (tokens, seconds) in self.by_name.items() if seconds}
        fastest = sorted(rates, key=lambda name: -rates[name])[:3]
        parts = [f"{name} {rates[name]:.1f} tokens/s" for name in fastest]
        return ", ".join(parts + [f"{count} {verdict}" for verdict, count in self.verdicts.items()])


class DistillProgress(pl.Callback):
    """Shows rank 0's texts and their tokens per second: as a bar on a terminal, as lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = bar_of("texts", console)

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Show an empty bar for the turns that are left to do."""
        self.begin = self.last_line = time.monotonic()
        self.done = self.tokens = self.forwards = 0
        assert trainer.test_dataloaders is not None
        finished, samples = attribute(module, "finished", dict), attribute(module, "samples", int)
        prompts = [each for prompt in trainer.test_dataloaders.dataset for each in sampled(prompt, samples)]
        self.total = sum((p.id, t) not in finished for p in prompts for t in range(len(p.turns)))
        self.quiet = not trainer.is_global_zero
        if not self.quiet and self.console.is_terminal:
            self.bar.start()
            self.task = self.bar.add_task("writing", total=self.total, so_far="")

    def add(self, line: dict[str, Any]) -> None:
        """Count a text."""
        self.done += 1
        self.tokens += len(line["output_ids"])
        self.forwards += line["target_forwards"]
        if self.quiet:
            return
        now = time.monotonic()
        rate = self.tokens / max(now - self.begin, 1e-9)
        so_far = f"{self.tokens / max(self.forwards, 1):.2f} tokens/forward, {rate:.1f} tokens/s"
        if self.console.is_terminal:
            self.bar.update(self.task, completed=self.done, so_far=so_far)
        elif now - self.last_line > PLAIN_EVERY_S:
            self.last_line = now
            left = (now - self.begin) / self.done * (self.total - self.done)
            self.console.print(f"{self.done}/{self.total} texts, about {left:.0f} s left; {so_far}")

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave the bar as it is."""
        self.bar.stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.bar.stop()


class SearchProgress(pl.Callback):
    """Shows rank 0's candidates and the best value so far: as a bar on a terminal, as lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console, self.best = console, float("-inf")
        self.bar = bar_of("candidates", console, "best")

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Show an empty bar."""
        self.last_line, self.total = time.monotonic(), int(trainer.num_test_batches[0])
        if trainer.is_global_zero and self.console.is_terminal:
            self.bar.start()
            self.task = self.bar.add_task("scoring", total=self.total, best="")

    def on_test_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Count a candidate."""
        self.best = max(self.best, outputs["value"])
        if not trainer.is_global_zero:
            return
        if self.console.is_terminal:
            self.bar.update(self.task, completed=batch_idx + 1, best=f"best {self.best:.3f}")
        elif time.monotonic() - self.last_line > PLAIN_EVERY_S:
            self.last_line = time.monotonic()
            self.console.print(f"{batch_idx + 1}/{self.total} candidates, best {self.best:.3f}")

    def on_test_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave the bar as it is."""
        self.bar.stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.bar.stop()


class TrainingProgress(pl.Callback):
    """Shows steps, the loss and the expected accepted tokens: as a bar on a terminal, as lines elsewhere."""

    def __init__(self, console: Console, steps: int) -> None:
        self.console, self.steps, self.loss = console, steps, float("nan")
        self.bar = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("at most"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[so_far]}"),
            console=console,
        )

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Show a bar: empty, or at the first step of a resumed training."""
        self.begin = self.last_line = time.monotonic()
        self.first = trainer.global_step
        if trainer.is_global_zero and self.console.is_terminal:
            self.bar.start()
            self.task = self.bar.add_task("training", total=self.steps, completed=self.first, so_far="")

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step; the loss is a running mean."""
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        self.loss = loss if self.loss != self.loss else 0.95 * self.loss + 0.05 * loss
        if not trainer.is_global_zero:
            return
        if self.console.is_terminal:
            self.bar.update(self.task, completed=trainer.global_step, so_far=self._so_far(trainer))
        elif time.monotonic() - self.last_line > PLAIN_EVERY_S:
            self.last_line = time.monotonic()
            done = max(trainer.global_step - self.first, 1)
            left = (self.last_line - self.begin) / done * (self.steps - trainer.global_step)
            self.console.print(
                f"{trainer.global_step}/{self.steps} steps, at most {left:.0f} s left; {self._so_far(trainer)}"
            )

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Leave the bar as it is."""
        self.bar.stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self.bar.stop()

    def _so_far(self, trainer: pl.Trainer) -> str:
        found = trainer.callback_metrics.get("expected_accepted")
        return f"loss {self.loss:.3f}" + ("" if found is None else f", {float(found):.3f} accepted")
