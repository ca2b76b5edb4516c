"""A sparse path as one more source of guesses: what it says comes next, asked where that is expected to pay.

Asked at a node of the tree that the other sources make, it reads the branch down to there in one forward and says what
follows, then what follows that, and so on. Which node and how many tokens, or nothing, is the plan of the most expected
tokens per second: how likely the text comes by there, how often the path then knows what the others do not, and what
its forwards and the larger verification cost on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from selfdraft.core.costs import CostCurve
from selfdraft.core.estimates import Estimates
from selfdraft.core.growth import Growth
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.drafters.base import Context
from selfdraft.models.sparse import Path, Reuse
from selfdraft.models.target import Target

_EMPTY = TokenTree.empty()
REMEMBERED = 0.998  # of what is known of a path that is not asked, at every step: one that fails is tried again in 60
GOES_ON = 0.7  # how often what the path says behind its own right guess is right too, before anything is learned

Guesses = list[tuple[int, float]]  # tokens with their chances, the likeliest first


@dataclass(frozen=True)
class Question:
    """What to ask: `count` tokens behind `node` of the others' tree.

    Attributes:
        branch: the tokens from the root's child down to the node.
        doubt: of the other sources there, see `doubt`. rival: their best guess there, if any.
    """

    node: int
    branch: tuple[int, ...]
    count: int
    doubt: int
    rival: int | None


@dataclass
class Answer:
    """What the path said: by the tokens that lead from the root to a place, its guesses there.

    Attributes:
        reuse: what the verification is spared.
    """

    question: Question
    guesses: dict[tuple[int, ...], Guesses] = field(default_factory=dict)
    reuse: Reuse | None = None


class SparseSource:
    """A path, asked for tokens in a tree.

    Attributes:
        reuses: whether what its leading layers compute is left to the verification. Such a path is asked for one token
            behind the root: its states have to be those of the block's first tokens.
    """

    def __init__(
        self, target: Target, path: Path, costs: CostCurve | None, *, guesses: int, prior: float, longest: int = 1
    ) -> None:
        """Measure what asking costs.

        Args:
            costs: of full forwards; None where costs do not count. guesses: wanted in every place. longest: the most
                tokens asked for, one behind the other. prior: how often the path knows the next token where the other
                sources have no idea, before anything is learned.
        """
        self.target, self.path, self.costs = target, path, costs
        self.guesses, self.prior, self.longest = guesses, prior, longest
        self.reuses = path.leading > 0 and longest == 1
        if costs is not None:
            self._own, self._spared = target.costs_of(path), 0.0
            if self.reuses:
                late = target.costs_of(target.full.part(path.leading, len(target.full.layers)))
                self._spared = max(costs(1) - late(1), 0.0)

    def expected_gain(self, learned: Estimates, best: float) -> float:
        """How often the path is expected to know the next token where the others' best guess fails.

        Args:
            best: the chance of that guess.
        """
        return learned.chance(("asked", doubt(best)), self.prior * (1 - best))

    def question(self, learned: Estimates, growth: Growth, size: int, room: int, rows: int = 1) -> Question | None:
        """What to ask so that a step's expected tokens per second rise most; None where they would fall.

        Args:
            growth: the tree that the other sources make, of which `size` nodes would be drafted. room: the most tokens
                that one branch may have. rows: of the step.
        """
        best_token, best_chance = _best_below(growth, size)
        costs = None if self.costs is None else self.costs.shared_by(rows)
        expected = 1 + sum(growth.probabilities[:size])
        verify = [0.0] * (self.longest + 1) if costs is None else [costs(1 + size + n) for n in range(self.longest + 1)]
        goes_on = learned.chance("goes on", GOES_ON)
        best, found = 0.0 if costs is None else expected / verify[0], None
        depths = [0]
        for node in range(ROOT, 0 if self.reuses else size):
            if node != ROOT:
                depths.append(depths[growth.parents[node] + 1] + 1)
            reached = growth.probabilities[node] if node != ROOT else 1.0
            gain = reached * self.expected_gain(learned, best_chance[node + 1] / reached)
            tokens, seconds = expected, 0.0
            for count in range(1, min(self.longest, room - depths[-1]) + 1):
                tokens += gain
                gain *= goes_on
                if costs is not None:
                    seconds += self._own(1 if count > 1 else 1 + depths[-1])
                rate = tokens if costs is None else tokens / (verify[count] + max(seconds - self._spared, 0.0))
                if rate > best:
                    best, found = rate, (node, count)
        if found is None:
            for eighths in range(9):
                learned.fade(("asked", eighths), REMEMBERED)
            return None
        node, count = found
        chance = best_chance[node + 1] / (growth.probabilities[node] if node != ROOT else 1.0)
        return Question(node, growth.branch(node), count, doubt(chance), best_token[node + 1])

    @torch.inference_mode()
    def ask(self, context: Context, question: Question) -> Answer:
        """One forward for every token. The guesses are no random draws, and are verified as they stand."""
        states: list[torch.Tensor] = []
        keep = [states] if self.reuses else None
        answer, said = Answer(question), question.branch
        for number in range(question.count):
            first = number == 0  # then the branch is read, too
            tree = TokenTree.chain(said) if first else _EMPTY
            root, offset = (context.tokens[-1], 0) if first else (said[-1], len(said))
            logits = self.target.draft_forward(self.path, [context.row], offset, [root], [tree], keep=keep)[0][-1:]
            scores = context.rule.scores(logits, [*context.tokens, *said], context.prompt_length, _EMPTY)
            chances, tokens = scores[0].float().softmax(-1).topk(self.guesses)
            guesses = [(token, p) for token, p in zip(tokens.tolist(), chances.tolist(), strict=True) if p]
            answer.guesses[said] = guesses
            if not guesses:
                break
            said = (*said, guesses[0][0])
        answer.reuse = Reuse(self.path.leading, states[0]) if states else None
        return answer

    @staticmethod
    def learn(learned: Estimates, answer: Answer, emitted: tuple[int, ...]) -> None:
        """Whether the path knew what came where the others did not, and whether it went on being right."""
        question, said = answer.question, answer.question.branch
        while said in answer.guesses and len(said) < len(emitted) and emitted[: len(said)] == said:
            guesses = answer.guesses[said]
            right = bool(guesses) and guesses[0][0] == emitted[len(said)]
            if said == question.branch:
                learned.observe(("asked", question.doubt), right and question.rival != emitted[len(said)])
            else:
                learned.observe("goes on", right)
            if not right:
                return
            said = (*said, guesses[0][0])


def doubt(best: float) -> int:
    """How unsure the other sources are whose best guess has this chance, in eighths."""
    return int(8 * (1 - best))


def _best_below(growth: Growth, size: int) -> tuple[list[int | None], list[float]]:
    """By node + 1, for the root and `size` nodes: the likeliest child's token and path probability; None and 0."""
    tokens: list[int | None] = [None] * (size + 1)
    chances = [0.0] * (size + 1)
    for token, parent, probability in zip(growth.tokens, growth.parents, growth.probabilities, strict=True):
        if parent < size and probability > chances[parent + 1]:
            tokens[parent + 1], chances[parent + 1] = token, probability
    return tokens, chances
