"""Pack texts into rows for training: several per row, so that little of a batch is padding.

Shapes: B rows of N tokens, P iterates per trajectory.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdraft.core.errors import UserError
from selfdraft.data.distilled import Text

NOTHING = -1  # in `texts`: padding; in `iterates`: no guess


@dataclass(frozen=True)
class Piece:
    """The part of one text that is kept in a row.

    Attributes:
        tokens: of the prompt, then of the answer.
        prompt_length: number of tokens that belong to the prompt.
        trajectory: iterates of the answer, each of the length of the kept part of the answer.
    """

    tokens: list[int]
    prompt_length: int
    trajectory: list[list[int]]


@dataclass(frozen=True)
class Row:
    """Texts side by side; they do not see one another."""

    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return sum(len(piece.tokens) for piece in self.pieces)


@dataclass(frozen=True)
class PackedBatch:
    """Rows of texts as tensors.

    Attributes:
        tokens: (B, N) int64.
        positions: (B, N) int64, restarting at 0 for each text.
        texts: (B, N) int64, number of the text within its row; -1 for padding.
        answers: (B, N) bool, whether the token is part of an answer.
        iterates: (B, P, N) int64, the guess of each iterate for each token; -1 without a guess: outside answers, and
            after the last iterate of a text. None if no text has a trajectory.
    """

    tokens: Tensor
    positions: Tensor
    texts: Tensor
    answers: Tensor
    iterates: Tensor | None = None

    def to(self, device: torch.device | str) -> PackedBatch:
        """Return the batch on another device."""
        iterates = None if self.iterates is None else self.iterates.to(device)
        tokens, positions, texts, answers = (
            part.to(device) for part in (self.tokens, self.positions, self.texts, self.answers)
        )
        return PackedBatch(tokens, positions, texts, answers, iterates)


def pack(texts: Sequence[Text], length: int, *, longest_prompt: int) -> list[Row]:
    """Pack texts into rows of at most `length` tokens, the longest first, each in the fullest row that has room for it.

    A prompt longer than `longest_prompt` loses its beginning, and a text longer than `length` its end. A text without
    an answer is left out, because there is nothing to learn from it.

    Raises:
        UserError: `longest_prompt` leaves no room for answers.
    """
    if not 0 <= longest_prompt < length:
        raise UserError(f"longest_prompt={longest_prompt}: must be at least 0 and below length={length}")
    pieces = [_piece(text, length, longest_prompt) for text in texts if text.answer]
    rows: list[list[Piece]] = []
    rooms: list[tuple[int, int]] = []  # (tokens free, number of the row), ascending
    for piece in sorted(pieces, key=lambda piece: -len(piece.tokens)):
        size = len(piece.tokens)
        at = bisect_left(rooms, (size, -1))
        if at == len(rooms):
            room, row = length, len(rows)
            rows.append([])
        else:
            room, row = rooms.pop(at)
        rows[row].append(piece)
        insort(rooms, (room - size, row))
    return [Row(tuple(row)) for row in rows]


def collate(rows: Sequence[Row], pad_id: int = 0) -> PackedBatch:
    """Return a batch of rows, as wide as the longest row."""
    shape = len(rows), max(map(len, rows))
    iterates = max(len(piece.trajectory) for row in rows for piece in row.pieces)
    batch = PackedBatch(
        tokens=torch.full(shape, pad_id),
        positions=torch.zeros(shape, dtype=torch.long),
        texts=torch.full(shape, NOTHING),
        answers=torch.zeros(shape, dtype=torch.bool),
        iterates=torch.full((shape[0], iterates, shape[1]), NOTHING) if iterates else None,
    )
    for b, row in enumerate(rows):
        begin = 0
        for number, piece in enumerate(row.pieces):
            end, answer = begin + len(piece.tokens), begin + piece.prompt_length
            batch.tokens[b, begin:end] = torch.tensor(piece.tokens)
            batch.positions[b, begin:end] = torch.arange(end - begin)
            batch.texts[b, begin:end] = number
            batch.answers[b, answer:end] = True
            if batch.iterates is not None and piece.trajectory:
                batch.iterates[b, : len(piece.trajectory), answer:end] = torch.tensor(piece.trajectory)
            begin = end
    return batch


def _piece(text: Text, length: int, longest_prompt: int) -> Piece:
    prompt = text.prompt[max(len(text.prompt) - longest_prompt, 0) :]
    answer = text.answer[: length - len(prompt)]
    return Piece([*prompt, *answer], len(prompt), [each[: len(answer)] for each in text.trajectory or ()])
