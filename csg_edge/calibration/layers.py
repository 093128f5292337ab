"""What may be left out of int8: the layers of a graph, found by what they compute and never by their names."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from csg_edge.errors import BundleError
from csg_edge.export.inspect import node_macs
from csg_edge.export.weights import WIDEN

QUANTISED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """Convolutions or matrix products that use the same weights: one per denoiser evaluation.

    name: that of the first node. stages: where they lie (`context`, `step_1`, ..., `decode`). macs: of all of them.
    """

    name: str
    operator: str
    nodes: tuple[str, ...]
    stages: tuple[str, ...]
    macs: int


def layers_of(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """The layers of a graph for batch 1, in order of computation. Raises BundleError if there is none."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {node.output[0] for node in model.graph.node if node.name.startswith(WIDEN)}
    macs = node_macs(model)
    groups: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type in QUANTISED:
            weight = next((name for name in node.input[:2] if name in constants), node.name)
            groups.setdefault(weight, []).append(node)
    if not groups:
        raise BundleError("the graph has no convolution and no matrix product; export the student again")
    return tuple(
        Layer(
            nodes[0].name, nodes[0].op_type, tuple(node.name for node in nodes),
            tuple(dict.fromkeys(node.name.split("/")[0] for node in nodes)), sum(macs[node.name] for node in nodes),
        )
        for nodes in groups.values()
    )  # fmt: skip
