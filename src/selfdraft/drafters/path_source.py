"""A part of the model as one more source of `pool`: it is asked for tokens where that is expected to pay.

1. The other sources, which cost nothing, make a tree.
2. One node of that tree is chosen, at which the part of the model (the *path*) predicts the next token, then the token
   after that, and so on. This takes one forward of the path per token.
3. Its guesses become nodes of the tree.

The node and the number of tokens are those with the most expected tokens per second. That depends on three things: how
likely the text reaches the node, how often the path knows a token there that the other sources do not know (learned
while decoding), and what its forwards and the larger verification cost on this machine. If nothing pays, it is not
asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from selfdraft.core.costs import CostCurve, Costs
from selfdraft.core.estimates import Estimates
from selfdraft.core.growth import Growth
from selfdraft.core.tree import ROOT, TokenTree
from selfdraft.drafters.paths.base import PathPolicy
from selfdraft.drafters.step import Context
from selfdraft.models.forward.path import Reuse
from selfdraft.models.forward.protocol import TargetProtocol

_EMPTY = TokenTree.empty()
# A step that does not ask the path multiplies the weight of its counts by this, so a path that failed is tried again.
DECAY = 0.998
GOES_ON = 0.7  # prior probability that the path's next guess is right too, after a right one

Guesses = list[tuple[int, float]]  # tokens with their probabilities, the most probable first


@dataclass(frozen=True)
class Question:
    """A request to the path for `count` tokens after `node` of the tree that the other sources make.

    Attributes:
        branch: the tokens from the root's child down to the node.
        doubt: how unsure the other sources are after the node, see `doubt`.
        rival: their best guess after the node, if any.
    """

    node: int
    branch: tuple[int, ...]
    count: int
    doubt: int
    rival: int | None


@dataclass
class Answer:
    """The path's answer to a question.

    Attributes:
        guesses: the path's guesses, by the tokens that lead from the root to them.
        reuse: hidden states that the verification need not compute again.
    """

    question: Question
    guesses: dict[tuple[int, ...], Guesses] = field(default_factory=dict)
    reuse: Reuse | None = None


class PathSource:
    """A path, asked for tokens in a tree.

    Attributes:
        reuses: whether the verification reuses the states that the path's leading layers compute. Such a path is only
            asked for one token after the root, because the states must be those of the block's first tokens.
        costs: of full forwards; None if tokens count as free.
    """

    costs: CostCurve | None

    def __init__(
        self, target: TargetProtocol, policy: PathPolicy, costs: Costs | None, *, guesses: int, longest: int = 1
    ) -> None:
        """Measure what asking costs.

        Args:
            policy: says which path a request asks.
            costs: None if tokens are to count as free.
            guesses: number of guesses for each token asked for.
            longest: the most tokens to ask for, one after the other.
        """
        self.target, self.policy, self.costs = target, policy, None
        self.guesses, self.prior, self.longest = guesses, policy.prior, longest
        self.reuses = policy.typical.leading > 0 and longest == 1
        if costs is not None:
            self.ask_costs(costs)

    def ask_costs(self, costs: Costs) -> None:
        """Ask for the costs of the full model, of the path, and of what reusing its states saves."""
        full, path = self.target.full, self.policy.typical
        self.costs, self._own, self._spared = costs.full(), costs.of(path), 0.0
        if self.reuses:
            late = costs.of(full.part(path.leading, len(full.layers)))
            self._spared = max(self.costs(1) - late(1), 0.0)

    def expected_gain(self, learned: Estimates, best: float) -> float:
        """Return the probability that the path knows the next token and the other sources' best guess does not.

        Args:
            best: the chance of the other sources' best guess.
        """
        return learned.chance(("asked", doubt(best)), self.prior * (1 - best))

    def question(
        self, learned: Estimates, growth: Growth, size: int, room: int, rows: int = 1, longest: int | None = None
    ) -> Question | None:
        """Return the question that raises a step's expected tokens per second most; None if none raises them.

        Args:
            growth: the tree that the other sources make.
            size: number of its nodes that would be drafted.
            room: the most tokens that one branch may have.
            rows: number of requests that the step decodes together.
            longest: the most tokens that the path should draft now; None for as many as usual.
        """
        longest = self.longest if longest is None else min(longest, self.longest)
        best_token, best_chance = _best_below(growth, size)
        costs = None if self.costs is None else self.costs.shared_by(rows)
        expected = 1 + sum(growth.probabilities[:size])
        verify = [0.0] * (longest + 1) if costs is None else [costs(1 + size + n) for n in range(longest + 1)]
        goes_on = learned.chance("goes on", GOES_ON)
        best, found = 0.0 if costs is None else expected / verify[0], None
        depths = [0]
        for node in range(ROOT, 0 if self.reuses else size):
            if node != ROOT:
                depths.append(depths[growth.parents[node] + 1] + 1)
            reached = growth.probabilities[node] if node != ROOT else 1.0
            gain = reached * self.expected_gain(learned, best_chance[node + 1] / reached)
            tokens, seconds = expected, 0.0
            for count in range(1, min(longest, room - depths[-1]) + 1):
                tokens += gain
                gain *= goes_on
                if costs is not None:
                    seconds += self._own(1 if count > 1 else 1 + depths[-1])
                rate = tokens if costs is None else tokens / (verify[count] + max(seconds - self._spared, 0.0))
                if rate > best:
                    best, found = rate, (node, count)
        if found is None:
            for eighths in range(9):
                learned.fade(("asked", eighths), DECAY)
            return None
        node, count = found
        chance = best_chance[node + 1] / (growth.probabilities[node] if node != ROOT else 1.0)
        return Question(node, growth.branch(node), count, doubt(chance), best_token[node + 1])

    @torch.inference_mode()
    def ask(self, context: Context, question: Question) -> Answer:
        """Return the path's answer, by one forward per token. The guesses are not sampled, so they need no q."""
        states: list[torch.Tensor] = []
        path = self.policy.path(context)
        keep = [states] if self.reuses and path.leading else None
        answer, said = Answer(question), question.branch
        for number in range(question.count):
            first = number == 0  # then the forward also reads the branch
            tree = TokenTree.chain(said) if first else _EMPTY
            root, offset = (context.tokens[-1], 0) if first else (said[-1], len(said))
            logits = self.target.draft_forward(path, [context.row], offset, [root], [tree], keep=keep)[0][-1:]
            scores = context.rule.scores(logits, [*context.tokens, *said], context.prompt_length, _EMPTY)
            chances, tokens = scores[0].float().softmax(-1).topk(self.guesses)
            guesses = [(token, p) for token, p in zip(tokens.tolist(), chances.tolist(), strict=True) if p]
            answer.guesses[said] = guesses
            if not guesses:
                break
            said = (*said, guesses[0][0])
        answer.reuse = Reuse(path.leading, states[0]) if states else None
        return answer

    @staticmethod
    def learn(learned: Estimates, answer: Answer, emitted: tuple[int, ...]) -> None:
        """Learn whether the path knew the token where the others did not, and whether its next guesses were right."""
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
    """Return how unsure sources are whose best guess has the chance `best`, in eighths."""
    return int(8 * (1 - best))


def _best_below(growth: Growth, size: int) -> tuple[list[int | None], list[float]]:
    """Return the token and the probability from the root of each node's likeliest child, or None and 0.0.

    Both lists are indexed by node + 1, for the root and the first `size` nodes.
    """
    tokens: list[int | None] = [None] * (size + 1)
    chances = [0.0] * (size + 1)
    for token, parent, probability in zip(growth.tokens, growth.parents, growth.probabilities, strict=True):
        if parent < size and probability > chances[parent + 1]:
            tokens[parent + 1], chances[parent + 1] = token, probability
    return tokens, chances
