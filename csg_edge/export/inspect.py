"""What a bundle computes, stage by stage, and in which precision each engine really computes it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from csg_edge.bundle.manifest import Bundle, Engine, Graph, Target
from csg_edge.export.precision import without_weights
from csg_edge.export.weights import WEIGHTS_NAME, WIDEN, read_graph
from csg_edge.generation.selection import why_not

Shapes = Mapping[str, tuple[int, tuple[int, ...]]]
"""Tensor name -> ONNX element type, shape."""

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
VIEWS = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Shape"})
# Operators that do the work, as runtimes group their layers; the others move or point-wise change what these make.
HEAVY = {
    "Conv": "convolution",
    "Gemm": "matrix_multiply",
    "MatMul": "matrix_multiply",
    "InstanceNormalization": "normalization",
    "Softmax": "softmax",
}
WIDTHS = {"int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}
NAMES: dict[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.INT8: "int8",
}
NUMPY_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8"}


def inspect_bundle(bundle: Bundle) -> dict[str, Any]:
    """A JSON-ready report: per graph of batch 1 its stages, per engine size, precision in force and layers above it."""
    graphs = [graph for graph in bundle.manifest.graphs if graph.batch == 1]
    return {
        "name": bundle.manifest.name,
        "graphs": [_graph_report(bundle, graph) for graph in graphs],
        "engines": [_engine_report(bundle, engine) for engine in bundle.manifest.engines],
    }


def stages_of(model: onnx.ModelProto) -> dict[str, dict[str, Any]]:
    """Per stage of a graph with fixed shapes: parameters, MACs, activations and operators.

    MACs are those of convolutions and matrix products (half their FLOPs). Activations are the elements and bytes that
    operators write, views left out. Parameters are floating-point constants; the same ones serve every step.
    """
    shapes = _shapes(model)
    constants = _constants(model)
    stages: dict[str, dict[str, Any]] = {}
    used: dict[str, set[str]] = {}
    for node in model.graph.node:
        if node.name.startswith(WIDEN):
            continue
        stage = node.name.split("/")[0]
        row = stages.setdefault(
            stage, {"parameters": 0, "macs": 0, "activations": 0, "activation_bytes": 0, "operators": Counter()}
        )
        row["operators"][node.op_type] += 1
        row["macs"] += _macs(node, shapes)
        used.setdefault(stage, set()).update(name for name in node.input if name in constants)
        if node.op_type not in VIEWS:
            for name in node.output:
                kind, shape = shapes[name]
                row["activations"] += math.prod(shape)
                row["activation_bytes"] += math.prod(shape) * helper.tensor_dtype_to_np_dtype(kind).itemsize
    for stage, row in stages.items():
        row["parameters"] = sum(constants[name] for name in used[stage])
        row["operators"] = dict(row["operators"].most_common())
    return stages


def node_macs(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates of every node of a graph with fixed shapes, by name."""
    shapes = _shapes(model)
    return {node.name: _macs(node, shapes) for node in model.graph.node}


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """The report for people."""
    lines = []
    for graph in report["graphs"]:
        lines.append(
            f"graph     {graph['file']}: {graph['parameters'] / 1e6:.2f} M parameters, {graph['macs'] / 1e9:.2f} GMAC"
        )
        lines.append(f"  {'stage':<10}{'parameters':>12}{'MMAC':>10}{'activations':>14}{'MB':>8}  operators")
        for name, row in graph["stages"].items():
            operators = ", ".join(f"{count} {kind}" for kind, count in row["operators"].items())
            lines.append(
                f"  {name:<10}{row['parameters']:>12,}{row['macs'] / 1e6:>10.1f}{row['activations']:>14,}"
                f"{row['activation_bytes'] / 1e6:>8.1f}  {operators}"
            )
    for engine in report["engines"]:
        force = engine["precision_in_force"]
        line = f"engine    {engine['target']}, {engine['steps']} step{'s' * (engine['steps'] > 1)}: "
        line += f"{engine['bytes'] / 1e6:.1f} MB, "
        line += f"computes in {force}" if force else f"not run here ({engine['why_not']})"
        above = [f"{count} {kind} in {name}" for name, row in engine["above"].items() for kind, count in row.items()]
        lines.append(line + (f"; left in higher precision: {', '.join(above)}" if above else ""))
    return lines


def _graph_report(bundle: Bundle, graph: Graph) -> dict[str, Any]:
    model = read_graph(bundle.file(graph.file), weights=False)
    stages = stages_of(model)
    constants = _constants(model)
    used = {name for node in model.graph.node for name in node.input if not node.name.startswith(WIDEN)}
    return {
        "file": graph.file,
        "steps": graph.steps,
        "precision": graph.precision,
        "parameters": sum(count for name, count in constants.items() if name in used),
        "macs": sum(row["macs"] for row in stages.values()),
        "stages": stages,
    }


def _engine_report(bundle: Bundle, engine: Engine) -> dict[str, Any]:
    target = Target.parse(engine.target)
    reason = why_not(engine)
    force: str | None = None
    layers: dict[str, dict[str, int]] = {}
    if "layers" in engine.report:
        layers = {NUMPY_NAMES.get(kind, kind): dict(row) for kind, row in engine.report["layers"].items()}
    if target.runtime == "onnxruntime":
        layers = _node_precisions(read_graph(bundle.file(engine.file), weights=False))
    if reason is None:
        from csg_edge.export.openvino import layer_precisions
        from csg_edge.generation.generator import open_engine

        if target.runtime == "openvino":
            force, layers = layer_precisions(bundle.file(engine.file), target.device, target.precision)
        else:
            with open_engine(bundle, engine) as generator:
                force = generator.runtime.effective_precision
    above = {kind: row for kind, row in layers.items() if WIDTHS.get(kind, 32) > WIDTHS[target.precision]}
    return {
        "target": engine.target,
        "steps": engine.steps,
        "file": engine.file,
        "bytes": sum(bundle.manifest.files[name].size for name in files_of(bundle, engine)),
        "state": engine.state,
        "precision_in_force": force,
        "why_not": reason,
        "layers": layers,
        "above": above,
    }


def files_of(bundle: Bundle, engine: Engine) -> list[str]:
    """The engine's file and what it reads beside it: the IR's weights, or those that all graphs share."""
    path = Path(engine.file)
    beside = {".xml": path.with_suffix(".bin"), ".onnx": path.with_name(WEIGHTS_NAME)}.get(path.suffix)
    names = [engine.file, *([beside.as_posix()] if beside else [])]
    return [name for name in names if name in bundle.manifest.files]


def _node_precisions(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """What each heavy node of a graph computes in: the element type of its first input, int8 behind Q/DQ nodes."""
    shapes = _shapes(model)
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    found: dict[str, Counter[str]] = {}
    for node in model.graph.node:
        if node.op_type in HEAVY:
            int8 = set(node.input[:2]) <= dequantised
            kind = "int8" if int8 else NAMES.get(shapes[node.input[0]][0], "other")
            found.setdefault(kind, Counter())[HEAVY[node.op_type]] += 1
    return {kind: dict(count) for kind, count in found.items()}


def _shapes(model: onnx.ModelProto) -> Shapes:
    inferred = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True).graph
    described: Iterable[Any] = (*inferred.input, *inferred.value_info, *inferred.output)
    shapes = {
        item.name: (
            item.type.tensor_type.elem_type,
            tuple(size.dim_value for size in item.type.tensor_type.shape.dim),
        )
        for item in described
    }
    return shapes | {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in model.graph.initializer}


def _constants(model: onnx.ModelProto) -> dict[str, int]:
    """Constants, as stored and as widened -> elements; int8 vectors are zero points, not parameters."""
    sizes = {
        tensor.name: math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type in FLOATS or (tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1)
    }
    widened = {node.output[0]: sizes[node.input[0]] for node in model.graph.node if node.name.startswith(WIDEN)}
    return sizes | widened


def _macs(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Multiply-accumulates of a convolution (each output sums over one kernel) or a matrix product."""
    if node.op_type == "Conv":
        return math.prod(shapes[node.output[0]][1]) * math.prod(shapes[node.input[1]][1][1:])
    if node.op_type == "Gemm":
        across = any(item.name == "transA" and item.i for item in node.attribute)
        return math.prod(shapes[node.output[0]][1]) * shapes[node.input[0]][1][0 if across else 1]
    if node.op_type == "MatMul":
        return math.prod(shapes[node.output[0]][1]) * shapes[node.input[0]][1][-1]
    return 0
