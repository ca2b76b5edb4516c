"""Started requests on tiny models: one prompt longer than the sliding window, and one shorter."""

from __future__ import annotations

from selfdraft.models.forward.target import Target

LONG = [7, 33, 81, 2, 14, 27, 55, 90, 1, 68, 12, 44, 9, 23, 71, 38, 6, 50, 19, 85]  # well past the window of 8
SHORT = [5, 17, 3, 60]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # rounding, where the logits' spread is about 1 to 10


def begin(target: Target, *prompts: list[int]) -> None:
    """Prefill a row a prompt, but for each one's last token, which is the root of the first tree."""
    target.allocate(len(prompts), 0)
    for row, prompt in enumerate(prompts):
        target.prefill(row, prompt[:-1])
