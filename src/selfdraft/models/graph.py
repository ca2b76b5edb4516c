"""Compile a torch module into a graph of OpenVINO's, whose matrices may be stored in fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfdraft.models.weights import SAME, Codes, exactly_encoded

HOW_TO_INSTALL = "pip install openvino"


def compiled(module: nn.Module, example: Sequence[Tensor], shapes: Sequence[Sequence[int]], weights: str = SAME) -> Any:
    """Return an OpenVINO request that computes a module's forward.

    Args:
        example: inputs to trace with. shapes: of every input, with -1 for sizes that may be any.
        weights: one of `weights.WEIGHTS`: how matrices are stored, where that keeps their values.

    Raises:
        ImportError: OpenVINO is not installed. Exception: of many types, if the module cannot be traced.
    """
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    traced = torch.jit.trace(module, tuple(example), check_trace=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    # Not openvino.convert_model, which reports to its makers that it was called.
    decoder = TorchScriptPythonDecoder(traced, example_input=tuple(example))  # must outlive the conversion
    model = frontend.convert(frontend.load(decoder))
    for parameter, shape in zip(model.get_parameters(), shapes, strict=True):
        parameter.set_element_type(openvino.Type.f32)
        parameter.set_partial_shape(openvino.PartialShape(list(shape)))
    model.validate_nodes_and_infer_types()
    _store(model, weights)
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # or states would be rounded to 8 bits wherever weights have fewer
    }
    return openvino.Core().compile_model(model, "CPU", options).create_infer_request()


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
