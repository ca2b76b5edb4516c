"""The cost of one model's forwards on one machine, as the sum of its parts: attentions, MLPs, head and so on.

So the cost of a model that skips any sublayers is known without running it.

The parts are measured by `task=profile`, or computed from published figures by `roofline`. Both give the same
structure, so decisions and predictions can be made for another machine in the same way as for this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfdraft.core.costs import CostCurve
from selfdraft.core.errors import UserError
from selfdraft.core.skipset import SkipSet

PARTS = ("base", "layer", "attention", "mlp", "head")


@dataclass(frozen=True)
class CostModel:
    """Seconds of a forward of one row, by its number of tokens (the root included), in total and for each part.

    Attributes:
        device, model, dtype: the machine and the model that the costs are for.
        source: where the numbers come from: a command, or published figures.
        layers: number of layers of the model.
        forward: a whole forward, ending with the argmax on the host.
        base: a forward without any layer: embedding, masks, final norm, head and argmax.
        layer: the rest of one layer besides its two sublayers (norms, sums); a layer that is not called costs nothing.
        attention, mlp: one sublayer.
        head: the head by itself; it is a part of `base`.
        confidence_s: computing a drafted token's probability: a softmax over the vocabulary and a transfer.
        by_context: ``{context, sizes, seconds}`` of whole forwards after prefixes of other lengths.
        by_batch: ``{rows, sizes, seconds}`` of whole forwards of several rows.
    """

    device: str
    model: str
    dtype: str
    source: str
    layers: int
    forward: CostCurve
    base: CostCurve
    layer: CostCurve
    attention: CostCurve
    mlp: CostCurve
    head: CostCurve
    confidence_s: float = 0.0
    by_context: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    by_batch: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def sparse(self, skip: SkipSet) -> CostCurve:
        """Return the cost of a forward through the path that bypasses `skip`; layers skipped entirely cost nothing."""
        return self.kept(
            layers=self.layers - len(skip.whole_layers()),
            attentions=self.layers - len(skip.attention),
            mlps=self.layers - len(skip.mlp),
        )

    def kept(self, layers: float, attentions: float, mlps: float) -> CostCurve:
        """Return the cost of a forward through these numbers of layers and sublayers, which may be fractional."""
        sizes = self.base.sizes
        return CostCurve.measured(
            sizes,
            [
                self.base(n) + layers * self.layer(n) + attentions * self.attention(n) + mlps * self.mlp(n)
                for n in sizes
            ],
        )

    @staticmethod
    def from_parts(
        full: CostCurve, without: Mapping[str, CostCurve], layers: int, head: CostCurve, **labels: Any
    ) -> CostModel:
        """Compute the parts from the costs of whole forwards.

        These are four measurements for four unknowns: a forward that calls all L layers costs
        base + L (layer + attention + mlp). Differences of whole forwards include a cost that timing one sublayer
        repeatedly would miss: its weights have to be read into the caches again.

        Args:
            full: forwards through everything.
            without: forwards without any ``attention``, without any ``mlp``, and without any layer (``all``).
            layers: number of layers of the model.
            head: the head by itself.
            labels: the other fields of the result.
        """
        sizes = without["all"].sizes

        def part(seconds: Sequence[float]) -> CostCurve:
            return CostCurve.measured(sizes, [max(s, 0.0) / layers for s in seconds])

        no_attention, no_mlp, nothing = without["attention"], without["mlp"], without["all"]
        return CostModel(
            layers=layers,
            forward=full,
            base=nothing,
            layer=part([no_attention(n) + no_mlp(n) - full(n) - nothing(n) for n in sizes]),
            attention=part([full(n) - no_attention(n) for n in sizes]),
            mlp=part([full(n) - no_mlp(n) for n in sizes]),
            head=head,
            **labels,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the model as plain values, for a JSON file."""
        curves = {name: getattr(self, name) for name in ("forward", *PARTS)}
        return {
            "device": self.device,
            "model": self.model,
            "dtype": self.dtype,
            "source": self.source,
            "layers": self.layers,
            **{name: {"sizes": list(c.sizes), "seconds": list(c.seconds)} for name, c in curves.items()},
            "confidence_s": self.confidence_s,
            "by_context": [dict(row) for row in self.by_context],
            "by_batch": [dict(row) for row in self.by_batch],
        }

    @staticmethod
    def from_dict(plain: Mapping[str, Any], where: str = "cost file") -> CostModel:
        """Read back what `to_dict` wrote.

        Raises:
            UserError: something is missing or is no cost model.
        """
        try:
            curves: dict[str, Any] = {
                name: CostCurve(_numbers(plain[name]["sizes"]), _numbers(plain[name]["seconds"]))
                for name in ("forward", *PARTS)
            }
            labels: dict[str, Any] = {name: str(plain[name]) for name in ("device", "model", "dtype", "source")}
            return CostModel(
                **labels,
                **curves,
                layers=int(plain["layers"]),
                confidence_s=float(plain["confidence_s"]),
                by_context=tuple(plain.get("by_context", ())),
                by_batch=tuple(plain.get("by_batch", ())),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{where} is no cost model ({type(error).__name__}: {error}); give a profile.json of task=profile"
            ) from None


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    """Check that values from a file are numbers, and return them as a tuple.

    Raises:
        ValueError: one of them is not a finite number.
    """
    if odd := [value for value in values if type(value) not in (int, float) or not abs(value) < 2**63]:
        raise ValueError(f"{odd[0]!r:.40} is no number")
    return tuple(values)


def roofline(
    *,
    device: str,
    model: str,
    source: str,
    bytes_per_s: float,
    flops_per_s: float,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    context: int = 512,
    bytes_per_number: int = 2,
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
) -> CostModel:
    """Return the ideal cost of a Llama-shaped model's forwards: each part takes as long as its slower resource needs.

    Weights and the `context` keys and values are read once, and products run at peak. Kernel launches, the host and
    everything else are free, so real forwards take longer. As the omitted costs hardly grow with the number of tokens,
    real costs also rise less with it, relative to a forward of one token: real drafts cost rather less than predicted,
    in forwards. (Williams et al. 2009.)

    Args:
        bytes_per_s: memory bandwidth.
        flops_per_s: peak rate of dense products in the dtype.
    """
    size = hidden // heads
    projections = 2 * hidden * hidden + 2 * hidden * kv_heads * size  # q and o, k and v
    matrices = {"attention": projections, "mlp": 3 * hidden * intermediate, "head": vocabulary * hidden}

    def seconds(part: str, n: int) -> float:
        read, products = matrices[part] * bytes_per_number, 2 * matrices[part] * n
        if part == "attention":
            read += 2 * (context + n) * kv_heads * size * bytes_per_number
            products += 4 * n * (context + n) * hidden  # scores, and sums of values
        return max(read / bytes_per_s, products / flops_per_s)

    def curve(of: Sequence[float]) -> CostCurve:
        return CostCurve.measured(sizes, of)

    attention, mlp, head = (curve([seconds(part, n) for n in sizes]) for part in ("attention", "mlp", "head"))
    return CostModel(
        device=device,
        model=model,
        dtype="bfloat16",
        source=source,
        layers=layers,
        forward=curve([head(n) + layers * (attention(n) + mlp(n)) for n in sizes]),
        base=head,
        layer=curve([0.0] * len(sizes)),
        attention=attention,
        mlp=mlp,
        head=head,
    )
