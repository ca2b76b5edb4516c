"""Choose the engine that runs a target's layers (`model.engine`), and check that it computes what the model does.

- `eager`: layers run one by one, in Python. Works with every model, dtype and device.
- `native`: all layers in one call of our C++, and every path that is made of their sublayers. For families of the Llama
  kind in float32 on a CPU; the fastest one there.
- `compiled`: all layers as one graph of OpenVINO. Float32 on a CPU; other paths are compiled if they will be used for
  long (`settled`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from selfdraft.core.errors import Unsupported, UserError
from selfdraft.core.messages import one_line
from selfdraft.models.engines.compiled import CompiledHead, CompiledLayers
from selfdraft.models.engines.graph import HOW_TO_INSTALL
from selfdraft.models.families.dispatch import is_placed
from selfdraft.models.forward.driver import Driver
from selfdraft.models.forward.layered import layered
from selfdraft.models.forward.path import Graph, Path
from selfdraft.models.forward.protocol import TargetProtocol
from selfdraft.models.forward.stateful import StatefulTarget
from selfdraft.models.forward.target import Target
from selfdraft.models.kernels.native.engine import NativeEngine
from selfdraft.models.kernels.packing import PackedLinear
from selfdraft.models.kernels.weights import SAME
from selfdraft.models.measuring.memory import available, give_back
from selfdraft.models.paths.feature import FeaturePath
from selfdraft.models.paths.jump import JumpPath
from selfdraft.models.paths.sparse import without

AUTO, EAGER, COMPILED, NATIVE = "auto", "eager", "compiled", "native"
ENGINES = (AUTO, EAGER, NATIVE, COMPILED)
# The layers that paths have, the stock layers that they were made of, and their types.
Part = tuple[Sequence[nn.Module], Sequence[nn.Module], Sequence[str]]


def use_engine(
    target: Target,
    engine: str,
    one_by_one: str = "",
    tell: Callable[[str], object] = lambda line: None,
    weights: str = SAME,
    invariant: bool = False,
) -> str:
    """Make `target` run its layers by an engine; return one line that says which engine and why.

    Args:
        engine: one of `ENGINES`; `auto` takes the native one, else the compiled one, else the eager one.
        one_by_one: why this target's layers have to be run one by one (eager); empty if they need not.
        tell: called with a line before something that takes seconds.
        weights: one of `weights.WEIGHTS`: how a graph stores matrices; the model's are rounded already.
        invariant: whether a token's bits must not depend on the block that computes it (see `invariance`).

    Raises:
        UserError: the engine that is asked for is not possible here, or packed layers differ from the model's own
            forward.
    """
    if isinstance(target, StatefulTarget):
        if engine not in (AUTO, EAGER):
            raise Unsupported(f"model.engine={engine}: a model that {target.reason} runs in its own forward only")
        return f"eager: a model that {target.reason} runs in its own forward"
    if is_placed(target.model):
        one_by_one = one_by_one or "its layers lie on several devices or a disk"
    stored = "" if weights == SAME else f" with {weights} weights (the target is the model that was rounded to them)"
    if engine == EAGER:
        _pack(target)
        return f"eager{stored}"
    begun, reasons = time.perf_counter(), []
    for name, use in ((NATIVE, run_natively), (COMPILED, _compile_if_it_fits)):
        if engine not in (name, AUTO):
            continue
        try:
            if one_by_one:
                raise UserError(one_by_one)
            if invariant and name == COMPILED:
                raise UserError("decoding.shape_invariant=true pads keys, and a graph does not")
            said = use(target, weights, tell)
        except UserError as reason:
            if engine == name:
                raise Unsupported(f"model.engine={name}: {reason}") from None
            reasons.append(str(reason))
        else:
            return f"{said}{stored}, in {time.perf_counter() - begun:.1f} s"
    _pack(target)
    return f"eager{stored}: {'; '.join(dict.fromkeys(reasons))}"


def obstacle(target: Target) -> str:
    """Return why the layers of a target cannot run in one call; empty if nothing is known to be in the way."""
    if target.whole is not None:
        return f"layers of model family '{target.model.config.model_type}' run within the model's own forward"
    if target.device.type != "cpu":
        return "layers run at once in float32 on a CPU only"
    if target.dtype != torch.float32:
        return "layers run at once in float32 on a CPU only: use model.dtype=float32"
    if target.attention != "sdpa":
        return f"model.attention={target.attention} is for layers that run one by one"
    return ""


def run_natively(target: Target, weights: str = SAME, tell: Callable[[str], object] = lambda line: None) -> str:
    """Let `target` run its layers and head by our C++; return a description of that.

    Args:
        weights: see `use_engine`; matrices are stored in the fewest bits that keep their values, whatever it says.

    Raises:
        UserError: that is not possible here, with the reason.
    """
    if reason := obstacle(target):
        raise UserError(reason)
    full, stock = target.full, target.anatomy.layers
    if len(target.rotated) > 1:
        raise UserError("our C++ has one way to rotate heads, and these layers have several")
    native = NativeEngine(target.anatomy, tell)
    tell("storing the matrices for our C++ (model.engine=eager does without)")
    graph = native.add(full.layers, stock, full.types, next(iter(target.rotated)))
    head = native.product(target.anatomy.head)
    _use(target, graph, head, weights, native)
    target.norm = native.norm(target.anatomy.norm) or target.norm
    target.tell = tell
    return f"native: our C++ on {native.nbytes / 1e6:,.0f} MB of matrices in {native.formats}"


def _compile_if_it_fits(target: Target, weights: str, tell: Callable[[str], object]) -> str:
    # A graph has a copy of the weights, and OpenVINO needs memory for a second one while it makes the graph.
    copies = 2 * sum(p.nbytes for layer in target.anatomy.layers for p in layer.parameters())
    if copies > available(target.device):
        raise UserError(f"making a graph needs {copies / 1e6:,.0f} MB, which are not free")
    if not obstacle(target):
        tell("compiling the layers into one graph (model.engine=eager does without)")
        target.tell = tell
    compile_layers(target, weights)
    return "compiled by OpenVINO"


def compile_layers(target: Target, weights: str = SAME) -> None:
    """Let `target` run all its layers as one graph, and its head as another; parts of the model stay as they are.

    Args:
        weights: see `CompiledLayers`.

    Raises:
        UserError: that is not possible here, with the reason.
    """
    if reason := obstacle(target):
        raise UserError(reason)
    full = target.full
    # Layers that have run one by one before have packed copies. Most runs do not need these beside a graph; a run that
    # does packs again. They are freed before the graph is made, because the graph needs as much memory.
    for linear in target.linears():
        if isinstance(linear, PackedLinear):
            linear.release()
    give_back()
    with _told_in_one_line():
        graph = CompiledLayers(target, target.anatomy.layers, full.types, weights, of=full.layers)
        head = CompiledHead(target.anatomy.head, weights)
    _use(target, graph, head, weights)
    give_back()  # what tracing and converting used


def _use(
    target: Target,
    graph: Graph,
    head: Callable[[Tensor], Tensor],
    weights: str,
    native: NativeEngine | None = None,
) -> None:
    """Let `target` use this graph and head, if its logits are then those of the model's own forward.

    Raises:
        UserError: they are not.
    """
    target.compiled[tuple(map(id, target.full.layers))] = graph
    target.compiled_head, target.weights, target.native = head, weights, native
    try:
        target.compare_with_stock_forward()
    except UserError:
        target.compiled.clear()
        target.compiled_head, target.weights, target.native = None, SAME, None
        raise


def settled(
    target: TargetProtocol,
    path: Path,
    *,
    trained: Mapping[int, nn.Module] | None = None,
    reuse: bool = False,
    why: str = "",
) -> Path:
    """Compile the layers of a draft path that will not change any more, if the target's are compiled; return the path.

    Compiling takes seconds, so this is not for paths that change with the prompt or within it: those of `clasp`,
    `dynamic_exit`, `width_skip` and `sparse_kv`, and of `swift` while it searches. Their layers run one by one.

    Args:
        trained: by index, the stock layers whose weights the path has in place of the model's.
        reuse: whether verification goes on from the states after the path's leading layers. The leading layers then are
            compiled by themselves, and so are the layers after them, both the path's and the model's.
        why: the beginning of the line that says that layers are compiled.
    """
    if not target.compiled or type(path) not in (Path, FeaturePath, JumpPath):
        return path
    driver = layered(target)
    if driver.native is not None and not trained:
        return path  # runs as it is
    full, stock, types = driver.full, driver.anatomy.layers, path.types
    own = [(trained or {}).get(index, layer) for index, layer in enumerate(stock)]
    sparse = without(own, driver.anatomy, path.skip)
    cut = path.leading if reuse or isinstance(path, FeaturePath) else 0  # the feature is added after the leading layers
    parts: list[Part] = [
        (path.layers[:cut], sparse[:cut], types[:cut]),
        (path.layers[cut:], sparse[cut:], types[cut:]),
    ]
    if reuse:
        parts.append((full.layers[cut:], stock[cut:], full.types[cut:]))
    compile_parts(driver, parts, why=why)
    return path


def compile_parts(driver: Driver, parts: Sequence[Part], weights: str | None = None, why: str = "") -> None:
    """Compile parts of a model, for the paths that run them; where that fails, the layers run one by one.

    Args:
        weights: see `CompiledLayers`; None for the driver's own.
        why: see `settled`.
    """
    by_key = {tuple(map(id, part[0])): part for part in parts}
    new = {key: part for key, part in by_key.items() if key and key not in driver.compiled}
    if new and driver.native is None:
        driver.tell(f"{why}compiling {' + '.join(str(len(key)) for key in new)} layers that draft")
    for key, (layers, stock, types) in new.items():
        try:
            graph: Graph
            if driver.native is not None:
                graph = driver.native.add(layers, stock, types, next(iter(driver.rotated)))
            else:
                with _told_in_one_line():
                    graph = CompiledLayers(driver, stock, types, weights or driver.weights, of=layers)
        except UserError as reason:
            driver.tell(f"they run one by one: {reason}")
        else:
            driver.compiled[key] = graph


def _pack(target: Target) -> None:
    """Pack the matrices before anything is timed, as the layers will be run one by one, and check what they compute."""
    packed = [linear for linear in target.linears() if isinstance(linear, PackedLinear)]
    for linear in packed:
        linear.pack()
    if packed:
        target.compare_with_stock_forward()


def runs_as_graphs(driver: Driver, path: Path) -> bool:
    """Return whether every layer of a path is in a graph that the path runs through."""
    whole, leading, later = path.graphs(driver)
    return whole is not None or (later is not None and (leading is not None or not path.leading))


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise UserError(f"OpenVINO, which compiles layers, is not installed: {HOW_TO_INSTALL}") from None
    except Exception as error:  # of transformers, torch or OpenVINO: the family has something that they cannot trace
        said = one_line(str(error))
        raise UserError(f"the layers of this family cannot be compiled ({type(error).__name__}: {said})") from error
