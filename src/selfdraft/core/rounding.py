"""How far may rounding move logits? Measure a difference, and set the limits above which it is a fault.

Two forwards of one text round differently, so their logits are never quite equal. A difference is measured in sigmas:
the standard deviation of a position's logits over the vocabulary. Two unrelated logits differ by 1.4 sigmas. There are
two limits: for the mean difference over a stretch of text, and for the change of a single *margin*, the difference
between two tokens' logits.

**float32.** The effect of rounding is calculated. A product of `width` terms, summed in float32, has a relative error
of about u * sqrt(width) (u = 2^-24; Higham and Mary 2019, a random walk of roundings), and rounding its result adds the
dtype's own unit roundoff. The errors of the `2 * layers` sublayers and of the head add up like independent ones, with
the square root of their number:

    expected = (u_dtype + u_float32 * sqrt(width)) * sqrt(2 * layers + 1)        1e-6 (4 layers) to 3e-5 (7B) of a sigma

Sharp softmaxes amplify this. Among 81 random models (9 families, 4 and 12 layers, widths 32 and 128), single positions
reached 54 times as much and margins 60 times, within 50 tokens. `AMPLIFIED` allows for 100 on average over a stretch,
some 1e-4 to 3e-3 of a sigma, and `AMPLIFIED_MARGIN` for 300 in the worst margin of hundreds of tokens.

**bfloat16 and float16.** Calculated like that, the limit would be a whole sigma and hide faults. Rounding is measured
instead, on the same text, by forwards that are not ours: the distance between the stock model in its dtype and its
float32 copy. Over stretches of 50 tokens, our own forwards were 0.9 to 1.1 times as far from that copy (108 random
models; SmolLM2-135M: 0.02 of a sigma, 0.9 to 1.0 times as far), and margins of single positions changed by up to 12
times that distance (SmolLM2: 10). `AS_FAR` allows for 2, `MARGINS` for 20.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

AMPLIFIED = 100.0
AMPLIFIED_MARGIN = 300.0
AS_FAR = 2.0
MARGINS = 20.0
STEPS, NARROW_STEPS = 1e-3, 0.1  # sigmas by which steps may differ from one forward, in float32 and narrower dtypes
BANNED = 1e5  # a logit of larger magnitude marks a token that the model bans

# Unit roundoff of a float32 product, by torch's setting.
_PRECISIONS = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}


@dataclass(frozen=True)
class Distance:
    """The distance between the logits of two forwards of a stretch of text.

    Attributes:
        sigmas: root mean square over positions and vocabulary, each position in its own sigmas.
        sigma: mean of the positions' sigmas, in logits.
    """

    sigmas: float
    sigma: float


def distance(logits: Tensor, reference: Tensor) -> Distance:
    """Measure how far (n, V) logits are from the (n, V) logits of a reference.

    A shift of all logits of a position changes no probability, so it does not count.
    """
    real = reference.float().abs() < BANNED
    reference = torch.where(real, reference.float(), 0.0)
    change = torch.where(real, logits.float(), 0.0) - reference
    sigmas = reference.std(-1)
    each = (change - change.mean(-1, keepdim=True)).square().mean(-1).sqrt() / sigmas
    return Distance(float(each.square().mean().sqrt()), float(sigmas.mean()))


def expected(dtype: torch.dtype, layers: int, width: int) -> float:
    """Calculate the usual effect of rounding on the logits of a model, in sigmas.

    Args:
        dtype: of the model.
        layers: number of its layers.
        width: of its residual stream.
    """
    product = _PRECISIONS[torch.get_float32_matmul_precision()]
    unit = max(torch.finfo(dtype).eps / 2, product)
    return (unit + 2.0**-24 * math.sqrt(width)) * math.sqrt(2 * layers + 1)


@dataclass(frozen=True)
class Ceiling:
    """The largest differences that rounding can make.

    Attributes:
        sigmas: the largest distance between our forward and the reference.
        margin: the largest change of a margin between two tokens, in logits.
    """

    sigmas: float
    margin: float

    def or_larger(self, other: Ceiling) -> Ceiling:
        """Return the larger ones of the limits of two ceilings."""
        return Ceiling(max(self.sigmas, other.sigmas), max(self.margin, other.margin))

    @staticmethod
    def reckoned(usual: float, sigma: float) -> Ceiling:
        """Return the ceiling for a dtype that is compared with itself.

        Args:
            usual: the usual effect of rounding, in sigmas (see `expected`).
            sigma: of the text, in logits.
        """
        return Ceiling(AMPLIFIED * usual, AMPLIFIED_MARGIN * usual * sigma)

    @staticmethod
    def measured(stock: Distance, usual: float) -> Ceiling:
        """Return the ceiling for a dtype or a family whose rounding is measured.

        Args:
            stock: the distance between two forwards of the stock model: that of its dtype, or in steps, and the truth.
            usual: the usual effect of rounding in float32, in sigmas; a smaller measured distance counts as this.
        """
        noise = max(stock.sigmas, usual)
        return Ceiling(AS_FAR * noise, MARGINS * noise * stock.sigma)
