"""Q/DQ graphs by ONNX Runtime's static quantiser: one scheme for ONNX Runtime's CPU kernels, one for TensorRT.

ONNX Runtime's own `quantize_static` measures ranges anew for every graph it writes. A precision search writes dozens
from the same ranges, so its two halves, calibrater and quantiser, are called apart here.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, create_calibrator
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from csg_edge.calibration.layers import QUANTISED
from csg_edge.calibration.recipes import PERCENTILE, Recipe
from csg_edge.export.precision import PRECISION_KEY, to_half
from csg_edge.export.weights import WIDEN, widen_weights
from csg_edge.runtimes.base import Results

CHUNK = 4  # samples whose activations are in memory at once where histograms are made

Ranges = dict[str, tuple[float, float]]
"""`NODE:input:0` or `NODE:output:0` -> smallest and largest value there. Nodes have one name in every graph of a
student, with a fixed batch or a free one; tensors do not."""


@dataclass(frozen=True)
class Scheme:
    """How numbers become int8. `tensorrt`: zero points of zero, no int32 biases, the rest of the graph in fp16."""

    name: str
    activations: QuantType
    symmetric: bool


# uint8 activations with int8 weights are what AVX512-VNNI multiplies; TensorRT takes nothing but zero points of zero.
ORT_CPU = Scheme("onnxruntime", QuantType.QUInt8, symmetric=False)
TENSORRT = Scheme("tensorrt", QuantType.QInt8, symmetric=True)


def float_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose weights are plain fp32 constants, as the quantiser wants them."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    widen_weights(plain)
    return plain


def measure_ranges(
    model: onnx.ModelProto, feeds: Iterable[Results], recipe: Recipe, *, note: Callable[[], None] = lambda: None
) -> Ranges:
    """Ranges of every tensor at a convolution or matrix product, over the samples; `note` is called for each one."""
    percentile = {"percentile": PERCENTILE, "num_bins": 2048} if recipe.percentile else {}
    # Its histograms are announced on stdout, which is the caller's.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        path = Path(folder) / "float.onnx"
        onnx.save(float_graph(model), path)
        calibrater = create_calibrator(
            path, list(QUANTISED), augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Percentile if percentile else CalibrationMethod.MinMax,
            extra_options=percentile,
        )  # fmt: skip
        left = iter(feeds)
        while chunk := list(islice(left, CHUNK)):
            calibrater.collect_data(_Reader(chunk, note))
        found = calibrater.compute_data()
    ranges = {}
    for place, name in _places(model).items():
        if name in found.keys():  # noqa: SIM118 (no mapping)
            low, high = (float(np.asarray(end).item()) for end in found[name].range_value)
            ranges[place] = (low, high)
    return ranges


def _places(model: onnx.ModelProto) -> dict[str, str]:
    """`NODE:input:0` -> tensor name, for the nodes that are quantised."""
    return {
        f"{node.name}:{side}:{index}": name
        for node in model.graph.node
        if node.op_type in QUANTISED
        for side, names in (("input", node.input), ("output", node.output))
        for index, name in enumerate(names)
    }


def save_ranges(ranges: Ranges, path: Path) -> None:
    """Write ranges as JSON."""
    path.write_text(json.dumps(ranges, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def load_ranges(path: Path) -> Ranges:
    """Read what `save_ranges` wrote."""
    return {name: (float(low), float(high)) for name, (low, high) in json.loads(path.read_text()).items()}


def quantise(
    model: onnx.ModelProto,
    ranges: Ranges,
    scheme: Scheme,
    *,
    only: Collection[str] = (),
    kept: Collection[str] = (),
) -> onnx.ModelProto:
    """A copy of an fp32 graph with Q/DQ nodes round its layers; per-channel symmetric weights.

    only: names of the nodes to quantise, all if empty. kept: names of nodes left as they are. Weights that stay in
    floating point are stored as they were.
    """
    plain = float_graph(model)
    known = {
        name: TensorData(lowest=np.float32(ranges[place][0]), highest=np.float32(ranges[place][1]))
        for place, name in _places(model).items()
        if place in ranges
    }
    data = TensorsData(CalibrationMethod.MinMax, known)
    options: dict[str, Any] = {"ActivationSymmetric": scheme.symmetric, "WeightSymmetric": True}
    if scheme is TENSORRT:
        # What follows a layer takes its fp16 sums as they are; ONNX Runtime's int8 kernels can only give int8.
        options |= {"QuantizeBias": False, "OpTypesToExcludeOutputQuantization": list(QUANTISED)}
    quantiser = QDQQuantizer(
        plain,
        True,
        False,
        QuantType.QInt8,
        scheme.activations,
        data,
        list(only),
        sorted(kept),
        list(QUANTISED),
        options,
    )
    quantiser.quantize_model()
    quantiser.model.topological_sort()
    result: onnx.ModelProto = quantiser.model.model
    _store_as_before(result, model)
    _name_by_stage(result)
    for item in result.metadata_props:
        if item.key == PRECISION_KEY:
            item.value = "int8"
    if scheme is TENSORRT:
        result = to_half(result)
        for item in result.metadata_props:
            if item.key == PRECISION_KEY:
                item.value = "int8"
    return result


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no annotations
    def __init__(self, feeds: Iterable[Results], note: Callable[[], None]) -> None:
        self._feeds, self._note = iter(feeds), note

    def get_next(self) -> Results | None:
        found = next(self._feeds, None)
        if found is not None:
            self._note()
        return found


def _store_as_before(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Give back to weights that were not quantised the form that the shared weights file holds."""
    left = {tensor.name for tensor in model.graph.initializer}
    widen = [node for node in original.graph.node if node.name.startswith(WIDEN) and node.output[0] in left]
    stored = {tensor.name: tensor for tensor in original.graph.initializer}
    wide = {node.output[0]: node for node in widen}
    constants = [tensor for tensor in model.graph.initializer if tensor.name not in wide]
    constants += [stored[node.input[0]] for node in widen]
    nodes = [*widen, *model.graph.node]
    _put(model.graph.initializer, constants)
    _put(model.graph.node, nodes)


def _name_by_stage(model: onnx.ModelProto) -> None:
    """Name every Q and DQ node after the stage of what it feeds: the fp16 conversion and the inspector go by stages."""
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    names = {"QuantizeLinear": "quantise", "DequantizeLinear": "dequantise"}
    for node in reversed(model.graph.node):
        if node.op_type in names:
            following = consumers.get(node.output[0], [])
            stage = following[0].name.split("/")[0] if following else "decode"
            node.name = f"{stage}/{names[node.op_type]}/{node.output[0]}"


def _put(field: Any, items: Iterable[Any]) -> None:
    copies: Iterator[Any] = [type(item).FromString(item.SerializeToString()) for item in items]  # type: ignore[assignment]
    del field[:]
    field.extend(copies)
