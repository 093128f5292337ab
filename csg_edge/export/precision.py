"""fp16 by graph conversion: the denoiser's layers become fp16, what is sensitive stays fp32.

TensorRT's networks are strongly typed, so an engine computes in the types that its graph names. Left in fp32 are the
conditions, the decoder and the Euler updates, which are little of the work and where rounding goes straight into the
image; statistics, which sum over many pixels; and the softmax. Matrix products are fp16 everywhere: TensorRT-RTX has
none in fp32 for compute capability 7.5.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from csg_edge.errors import EngineError
from csg_edge.export.weights import STORED, WIDEN

STATISTICS = frozenset({"InstanceNormalization", "GroupNormalization", "LayerNormalization", "ReduceMean", "ReduceSum"})
KEPT_OPERATORS = STATISTICS | {"Softmax", "Pow", "Sqrt", "Exp", "Log"}
LINEAR_OPERATORS = frozenset({"Gemm", "MatMul"})
KEPT_INPUTS = {"Resize": (1, 2)}  # region and scales are fp32 by the operator's definition
MOVING_OPERATORS = frozenset({"Reshape", "Transpose", "Split", "Unsqueeze", "Concat", "Slice", "Resize", "Identity"})
PRECISION_KEY = "csg_edge.precision"


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an fp32 graph whose denoiser computes in fp16; inputs and outputs keep their types.

    Weights that the graph already stores in fp16 are used as they are, so both graphs share one weights file. Raises
    EngineError for a graph without stages, which this csg-edge did not export.
    """
    if not any(node.name.startswith("step_") for node in model.graph.node):
        raise EngineError("the graph names no stages; export the student again with this csg-edge")
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    _Conversion(converted).run()
    for item in converted.metadata_props:
        if item.key == PRECISION_KEY:
            item.value = "fp16"
    return converted


def simulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same arithmetic with fp32 operators, each fp16 result rounded by an explicit pair of casts.

    ONNX Runtime has few fp16 kernels on the CPU: it widens operators and then drops the roundings between them, and so
    makes fp16 look better than it is. Here every value that fp16 stores is rounded; sums inside an operator are fp32,
    as on tensor cores. Takes a graph of `to_half`, read with its weights.
    """
    simulated = onnx.ModelProto()
    simulated.CopyFrom(model)
    graph = simulated.graph
    halves = _tensors_of(model, TensorProto.FLOAT16)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type in MOVING_OPERATORS:
            continue
        for index, name in enumerate(node.output):
            if name not in halves:
                continue
            if node.op_type == "Cast":
                node.output[index] = f"{name}.rounded"
            else:
                node.output[index] = f"{name}.raw"
                nodes.append(helper.make_node("Cast", [f"{name}.raw"], [f"{name}.rounded"], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [f"{name}.rounded"], [name], to=TensorProto.FLOAT))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return simulated


def is_sensitive(node: onnx.NodeProto) -> bool:
    """Whether a node stays in fp32."""
    place = node.name.split("/")
    if place[0].startswith("step_"):
        return "update" in place or node.op_type in KEPT_OPERATORS
    return node.op_type not in LINEAR_OPERATORS


class _Conversion:
    """One pass over a graph in order; remembers in which type each tensor can be had."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.floats = _tensors_of(model, TensorProto.FLOAT)
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.narrow = {node.output[0]: node.input[0] for node in self.graph.node if node.name.startswith(WIDEN)}
        self.half: set[str] = set()  # tensors that their producer now gives in fp16
        self.casts: dict[tuple[str, int], str] = {}
        self.nodes: list[onnx.NodeProto] = []

    def run(self) -> None:
        for node in list(self.graph.node):
            if node.name.startswith(WIDEN):
                continue
            if is_sensitive(node) or not self._constants_fit(node):
                self._keep(node)
            else:
                self._convert(node)
            self.nodes.append(node)
        used = set(_names(self.nodes))
        widen = [node for node in self.graph.node if node.name.startswith(WIDEN) and node.output[0] in used]
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in (*widen, *self.nodes)]
        used |= set(_names(widen))
        constants = [tensor for name, tensor in self.constants.items() if name in used]
        constants = [TensorProto.FromString(tensor.SerializeToString()) for tensor in constants]
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(constants)

    def _keep(self, node: onnx.NodeProto) -> None:
        for index, name in enumerate(node.input):
            if name in self.half:
                node.input[index] = self._cast(name, TensorProto.FLOAT, node)

    def _convert(self, node: onnx.NodeProto) -> None:
        for index, name in enumerate(node.input):
            if name not in self.floats or name in self.half or index in KEPT_INPUTS.get(node.op_type, ()):
                continue
            if name in self.narrow:
                node.input[index] = self.narrow[name]
            elif name in self.constants:
                node.input[index] = self._half_constant(name)
            else:
                node.input[index] = self._cast(name, TensorProto.FLOAT16, node)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
        self.half |= set(node.output) & self.floats

    def _cast(self, name: str, kind: int, node: onnx.NodeProto) -> str:
        key = (name, kind)
        if key not in self.casts:
            suffix = "half" if kind == TensorProto.FLOAT16 else "float"
            self.casts[key] = f"{name}.{suffix}"
            cast = helper.make_node("Cast", [name], [self.casts[key]], name=f"{node.name}/to_{suffix}/{name}", to=kind)
            self.nodes.append(cast)
        return self.casts[key]

    def _half_constant(self, name: str) -> str:
        narrow = f"{name}.half"
        if narrow not in self.constants:
            array = numpy_helper.to_array(self.constants[name]).astype(np.float16)
            self.constants[narrow] = numpy_helper.from_array(array, narrow)
        return narrow

    def _constants_fit(self, node: onnx.NodeProto) -> bool:
        """Whether every fp32 constant of a node lies in the range of fp16."""
        limit = float(np.finfo(np.float16).max)
        found = (self.constants[name] for name in node.input if name in self.constants and name in self.floats)
        return all(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0) <= limit for tensor in found)


def _tensors_of(model: onnx.ModelProto, kind: int) -> set[str]:
    """Names of all tensors of an element type: inputs, constants, what nodes make."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    described = (*inferred.input, *inferred.value_info, *inferred.output)
    made = {item.name for item in described if item.type.tensor_type.elem_type == kind}
    return made | {tensor.name for tensor in model.graph.initializer if tensor.data_type == kind}


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its large constants as inputs; shape inference copies what it is given."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    small = [tensor for tensor in model.graph.initializer if not tensor.name.startswith(STORED)]
    large = [tensor for tensor in model.graph.initializer if tensor.name.startswith(STORED)]
    del light.graph.initializer[:]
    light.graph.initializer.extend(small)
    light.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in large
    )
    return light


def _names(nodes: Iterable[onnx.NodeProto]) -> Iterable[str]:
    return (name for node in nodes for name in node.input)
