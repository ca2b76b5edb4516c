"""Compile a torch module into a graph of OpenVINO, whose matrices may be stored in fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfdraft.models.engines.graph_cache import KeptGraph
from selfdraft.models.kernels.weights import SAME, Codes, exactly_encoded

HOW_TO_INSTALL = "pip install openvino"
DIFFERENCE = 1e-3  # as a share of the outputs' spread: more than rounding makes between a graph and its module


def compiled(module: nn.Module, example: Sequence[Tensor], shapes: Sequence[Sequence[int]], weights: str = SAME) -> Any:
    """Return an OpenVINO request that computes a module's forward.

    Where an earlier process has kept the graph (see `graph_cache`), the module is not traced.

    Args:
        example: inputs to trace with. shapes: of every input, with -1 for sizes that may be any.
        weights: one of `weights.WEIGHTS`: how matrices are stored, where that keeps their values.

    Raises:
        ImportError: OpenVINO is not installed. Exception: of many types, if the module cannot be traced.
    """
    kept = KeptGraph.of(module, example, shapes)
    if kept is not None and (model := kept.read()) is not None:
        with suppress(Exception):  # OpenVINO raises many types; the graph is then made anew
            request = _request(model, weights)
            if _computes(request, module, example):
                return request
        kept.remove()
    model, decoder = _converted(module, example, shapes)
    if kept is not None:
        try:
            model = kept.write(model)
        except Exception:  # likewise; the graph may be changed in part
            model, decoder = _converted(module, example, shapes)
    request = _request(model, weights)
    del decoder  # whose memory the graph may use until it is compiled
    return request


def _converted(module: nn.Module, example: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Trace a module; return the trace as a graph, and the decoder that made it. See `compiled`."""
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    traced = torch.jit.trace(module, tuple(example), check_trace=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    # Not openvino.convert_model, which reports to its makers that it was called.
    decoder = TorchScriptPythonDecoder(traced, example_input=tuple(example))
    model = frontend.convert(frontend.load(decoder))
    for parameter, shape in zip(model.get_parameters(), shapes, strict=True):
        parameter.set_element_type(openvino.Type.f32)
        parameter.set_partial_shape(openvino.PartialShape(list(shape)))
    model.validate_nodes_and_infer_types()
    return model, decoder


def _request(model: Any, weights: str) -> Any:
    """Compile a graph, and return a request that runs it. See `compiled`."""
    import openvino

    _store(model, weights)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # or states would be rounded to 8 bits wherever weights have fewer
    }
    return openvino.Core().compile_model(model, "CPU", options).create_infer_request()


def _computes(request: Any, module: nn.Module, example: Sequence[Tensor]) -> bool:
    """Whether a kept graph returns what the module itself does, up to rounding, for random inputs.

    Masks and rotations are random too: in the example all keys are zero and visible, which would hide some faults.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(tensor.shape, generator=generator) for tensor in example]
    expected = module(*inputs)
    request.infer([tensor.numpy() for tensor in inputs])
    for at, theirs in enumerate([expected] if isinstance(expected, Tensor) else expected):
        ours = torch.from_numpy(request.get_output_tensor(at).data)
        # Written so that NaN counts as a difference.
        if ours.shape != theirs.shape or not float((ours - theirs).abs().mean() / theirs.std()) < DIFFERENCE:
            return False
    return True


def _store(model: Any, weights: str) -> None:
    """Store the matrices of a graph in codes, where that keeps their values."""
    if weights == SAME:  # a matrix would be copied to find out that nothing is to be done
        return
    for node in _products(model):
        codes = exactly_encoded(_weight(node), weights)
        if codes is not None:
            node.input(1).replace_source_output(_decoded(codes).output(0))


def _products(model: Any) -> list[Any]:
    """Return the nodes that multiply by a constant matrix (O, I)."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "MatMul"
        and node.input_value(1).get_node().get_type_name() == "Constant"
        and node.get_attributes()["transpose_b"]
        and len(node.input_value(1).get_shape()) == 2
    ]


def _weight(product: Any) -> Tensor:
    return torch.from_numpy(np.array(product.input_value(1).get_node().data))


def _decoded(codes: Codes) -> Any:
    """Return the node of a matrix that is stored in codes, in the form in which OpenVINO decodes as it multiplies."""
    from openvino import Shape, Type, op, opset13
    from openvino import Tensor as Stored

    shape = list(codes.codes.shape)
    if codes.bits == 4:
        pairs = codes.codes.flatten().view(-1, 2)
        octets = (pairs[:, 0] | pairs[:, 1] << 4).numpy()  # the first code is in the lower half
        stored = op.Constant(Stored(octets, Shape(shape), Type.u4), shared_memory=False)
    else:
        stored = op.Constant(codes.codes.numpy())
    out = opset13.convert(stored, "f32")
    if codes.zeros is not None:
        out = opset13.subtract(out, op.Constant(codes.zeros.numpy()))
    out = opset13.multiply(out, op.Constant(codes.scales.numpy()))
    return opset13.reshape(out, np.array([shape[0], -1]), special_zero=False)
