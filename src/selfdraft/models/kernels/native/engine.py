"""The native engine of one model: reads its sublayers for our C++, and checks that C++ and transformers agree.

The layers of a path may be copies, but their sublayers (attention, MLP, norms) are the model's own or trained ones. So
each sublayer is read once, and each matrix is stored once. Any path whose sublayers were read can then be run at once;
nothing is compiled for it.

Shapes: B rows of one forward, N tokens a row, C hidden size, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from selfdraft.core.errors import UserError
from selfdraft.models.cache.cache import KVCache
from selfdraft.models.families.anatomy import Anatomy
from selfdraft.models.families.lightcopy import SkippedAttention, SkippedMLP
from selfdraft.models.kernels.native.build import is_built, library
from selfdraft.models.kernels.native.layers import NativeLayer, NativeLayers, NativeNorm, NativeProduct
from selfdraft.models.kernels.native.parts import MLP, NORMS, Attention, Norm, OtherKind, attention_of, mlp_of, norm_of
from selfdraft.models.kernels.native.stored import (
    BFLOAT16,
    CODES4,
    CODES8,
    FLOAT32,
    INTEGERS4,
    INTEGERS8,
    Stored,
    stored,
)
from selfdraft.models.kernels.packing import is_plain

Form = Attention | MLP | Norm | None
LANES = 16  # numbers of the widest vector
DIFFERENCE = 1e-4  # of the outputs' spread, by which ours may differ from a module's: more than rounding makes
NAMES = {
    INTEGERS4: "4 bits",
    INTEGERS8: "8 bits",
    CODES4: "4 bits",
    CODES8: "8 bits",
    BFLOAT16: "bfloat16",
    FLOAT32: "float32",
}
KEPT = 64  # assembled rows of layers: a search for a path tries many


class NativeEngine:
    """The sublayers of one model, and of what was trained beside it, in the form that our C++ takes.

    Attributes:
        threads: how many threads a forward uses.
    """

    def __init__(self, anatomy: Anatomy, tell: Callable[[str], object] = lambda line: None) -> None:
        """Compile the C++ if no earlier process has.

        Args:
            tell: called with a line before something that takes seconds.

        Raises:
            UserError: it cannot be compiled here.
        """
        if not is_built():
            tell("compiling the C++ that runs layers, once for this processor")
        self._integers = bool(library().selfdraft_prefers_integers())
        self._anatomy = anatomy
        self.threads = torch.get_num_threads()
        self._names = (anatomy.attention_name, anatomy.mlp_name, *NORMS)
        self._forms: dict[int, tuple[nn.Module, Form]] = {}  # by the identity of the sublayer, which it keeps
        self._stored: dict[tuple[int, ...], tuple[Tensor, Stored]] = {}  # by the place of a weight, which it keeps
        # What was assembled last, by the identities of layers, which it keeps: the same are asked for at every step.
        self._graphs: OrderedDict[tuple[object, ...], tuple[tuple[nn.Module, ...], NativeLayers | None]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Bytes of the stored matrices."""
        return sum(each.nbytes for _, each in self._stored.values())

    @property
    def formats(self) -> str:
        """The kinds of numbers that matrices are stored in, in words."""
        found = sorted({each.format for _, each in self._stored.values()}, reverse=True)
        return " and ".join(NAMES[each] for each in found)

    def add(
        self, layers: Sequence[nn.Module], stock: Sequence[nn.Module], types: Sequence[str], rotated: int
    ) -> NativeLayers:
        """Take the layers of a path, and check what they compute.

        Args:
            layers: as the path has them. stock: the same layers as transformers made them, whose forward is the
                reference. types: see `graph`. rotated: how many numbers of a head are rotated.

        Returns:
            What runs them.

        Raises:
            UserError: these layers cannot be run, with the reason.
        """
        known = set(self._forms)
        try:
            for layer, like in zip(layers, stock, strict=True):
                self._add(layer, like)
            graph = self._assembled(layers, types)
            if graph is None:
                raise OtherKind("the heads of its layers are of several sizes")
            error = _difference(graph, stock, self._anatomy, rotated)
            if not error < DIFFERENCE:  # written so that NaN counts as large
                raise OtherKind(f"it computes something else than these layers (by {error:.2g} of the spread)")
        except OtherKind as difference:
            for new in self._forms.keys() - known:  # or other paths would be run by what has just been refused
                del self._forms[new]
            raise UserError(f"our C++ has no layers of this kind: {difference}") from None
        self._graphs.clear()  # which may say that a sublayer is unknown
        return graph

    def graph(self, layers: Sequence[nn.Module], types: Sequence[str]) -> NativeLayers | None:
        """Return what runs these layers in a row; None if a sublayer is unknown.

        Args:
            types: `full_attention` or `sliding_attention` for each of them.
        """
        key = (*map(id, layers), *types)
        if key not in self._graphs:
            while len(self._graphs) >= KEPT:
                self._graphs.popitem(last=False)
            self._graphs[key] = tuple(layers), self._assembled(layers, types)
        self._graphs.move_to_end(key)
        return self._graphs[key][1]

    def _assembled(self, layers: Sequence[nn.Module], types: Sequence[str]) -> NativeLayers | None:
        taken = []
        for at, layer in enumerate(layers):
            parts = [layer._modules.get(name) for name in self._names]
            if any(part is None or id(part) not in self._forms for part in parts if not _skipped(part)):
                return None
            attention, mlp, norm, norm_mlp = (None if _skipped(part) else self._forms[id(part)][1] for part in parts)
            taken.append(NativeLayer(norm, norm_mlp, attention, mlp, types[at]))  # type: ignore[arg-type]
        sizes = {(each.attention.heads, each.attention.groups, each.attention.size) for each in taken if each.attention}
        if len(sizes) > 1:
            return None
        return NativeLayers(taken, self.threads)

    def norm(self, module: nn.Module) -> NativeNorm | None:
        """Return what normalises as a norm of the model does; None if it is of another kind."""
        try:
            form = norm_of(module)
        except OtherKind:
            return None
        norm, states = NativeNorm(form), torch.randn(3, len(form.weight), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            alike = float((norm(states) - module(states)).abs().max()) < DIFFERENCE
        return norm if alike else None

    def product(self, linear: nn.Module) -> NativeProduct:
        """Return what multiplies by a matrix.

        Raises:
            UserError: its sizes do not fit.
        """
        try:
            return NativeProduct(self._store(linear), self.threads)
        except OtherKind as difference:
            raise UserError(str(difference)) from None

    def _add(self, layer: nn.Module, stock: nn.Module) -> None:
        names = set(dict(stock.named_children()))
        if names != set(self._names):
            raise OtherKind(f"{type(stock).__name__} consists of {', '.join(sorted(names))}")
        read: tuple[Callable[[nn.Module], Form], ...] = (
            lambda part: attention_of(part, self._store),
            lambda part: mlp_of(part, self._store),
            norm_of,
            norm_of,
        )
        for name, form in zip(self._names, read, strict=True):
            own, part = layer._modules[name], stock._modules[name]
            assert own is not None and part is not None
            if not _skipped(part) and id(own) not in self._forms:
                self._forms[id(own)] = own, form(part)

    def _store(self, linear: nn.Module) -> Stored:
        if (
            not isinstance(linear, nn.Linear)
            or not is_plain(linear.weight)
            or linear.weight.dtype != torch.float32
            or linear.weight.device.type != "cpu"
        ):
            raise OtherKind(f"{type(linear).__name__} is no plain matrix in float32")
        weight, bias = linear.weight, linear.bias
        if weight.shape[1] % LANES:
            raise OtherKind(f"{weight.shape[1]} inputs do not come in sixteens")
        key = (weight.data_ptr(), *weight.shape, 0 if bias is None else bias.data_ptr())
        if key not in self._stored:
            self._stored[key] = weight, stored(weight, bias, integers=self._integers)
        return self._stored[key][1]


def _skipped(part: nn.Module | None) -> bool:
    return isinstance(part, SkippedAttention | SkippedMLP)


class _Own:
    """The cache of a trial of stock layers, in which every token is new."""

    def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        return keys, values

    def get_seq_length(self, *_: object) -> int:
        return 0


@torch.inference_mode()
def _difference(graph: NativeLayers, stock: Sequence[nn.Module], anatomy: Anatomy, rotated: int) -> float:
    """Return how far our outputs of random states are from stock ones, as a part of the outputs' spread.

    Random rotations and a mask that no text has tell apart what would not show in usual ones.
    """
    rows, width = 2, 5
    generator = torch.Generator().manual_seed(0)
    size = next(tensor.numel() for name, tensor in stock[0].named_parameters() if name.startswith(NORMS[0]))
    hidden = torch.randn(rows, width, size, generator=generator)
    angles = torch.randn(rows, width, rotated // 2, generator=generator).repeat(1, 1, 2)
    rotation = angles.cos(), angles.sin()
    sees = torch.rand(rows, width, width, generator=generator).gt(0.5) | torch.eye(width, dtype=torch.bool)
    mask = torch.zeros(rows, 1, width, width).masked_fill_(~sees[:, None], -1e30)
    expected = hidden
    for layer in stock:
        expected = layer(
            expected, attention_mask=mask, position_embeddings=rotation, **{anatomy.cache_argument: _Own()}
        )
    cache = KVCache(max(graph.indices, default=0) + 1, rows, width)
    view = cache.window([0, 1], [0, 0], width)
    seen = torch.zeros(rows, width, view.span, dtype=torch.bool)
    seen[:, :, :width] = sees
    ours = graph(hidden, dict.fromkeys(graph.kinds, rotation), dict.fromkeys(graph.kinds, seen), view)
    return float((ours - expected).abs().mean() / expected.std())
