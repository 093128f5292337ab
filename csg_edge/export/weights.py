"""Graphs on disk: ONNX files that share one weights file.

The weights file is a safetensors file that the graphs address by offset, as ONNX external data. Weights that fp16
holds exactly are stored in fp16 and widened in the graph: half the size, not one bit lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from csg_edge.errors import BundleError

WEIGHTS_NAME = "weights.safetensors"
SHARED_ELEMENTS = 256  # smaller constants stay inside the graph
MIN_OPSET, MAX_OPSET = 18, 20  # from 18 axes are inputs; quantised graphs beyond 20 fail in ONNX Runtime 1.32
STORED = "w."  # names of the tensors in the weights file begin so
WIDEN = "weights/"  # names of the nodes that widen stored weights begin so

Tensors = dict[str, NDArray[Any]]


def share_weights(model: onnx.ModelProto) -> Tensors:
    """Rename large initializers by content, in fp16 where that is exact; returns name -> array for the shared file."""
    tensors, names, casts = {}, {}, []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size < SHARED_ELEMENTS or array.dtype != np.float32:
            continue
        narrow = array.astype(np.float16)
        exact = np.array_equal(narrow.astype(np.float32), array)
        stored = narrow if exact else array
        name = f"{STORED}{hashlib.sha256(stored.tobytes() + str(stored.shape).encode()).hexdigest()[:16]}"
        tensors[name] = stored
        if exact:
            names[tensor.name] = f"{name}.wide"
            casts.append((name, f"{name}.wide"))
        else:
            names[tensor.name] = name
        tensor.CopyFrom(numpy_helper.from_array(stored, name))
    unique = {tensor.name: tensor for tensor in model.graph.initializer}
    _replace(model.graph.initializer, unique.values())
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    widen = [
        helper.make_node("Cast", [name], [wide], name=f"{WIDEN}{name}", to=TensorProto.FLOAT)
        for name, wide in dict(casts).items()
    ]
    _replace(model.graph.node, [*widen, *model.graph.node])
    return tensors


def write_graphs(graphs: Mapping[str, onnx.ModelProto], tensors: Tensors, directory: Path) -> None:
    """Write the weights file and, beside it, each graph under its name, pointing into it."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / WEIGHTS_NAME
    save_file(tensors, weights)
    weights.chmod(0o644)  # safetensors writes for the owner alone; a bundle may be shared
    offsets = _offsets(weights)
    for name, graph in graphs.items():
        write_graph(graph, directory / name, offsets)


def write_graph(model: onnx.ModelProto, path: Path, offsets: Mapping[str, tuple[int, int]] | None = None) -> None:
    """Write a graph whose initializers `w.*` are in the weights file beside it."""
    offsets = offsets or _offsets(path.parent / WEIGHTS_NAME)
    for tensor in model.graph.initializer:
        if tensor.name in offsets:
            _point_to(tensor, *offsets[tensor.name])
    path.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(path)


def read_graph(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read a graph of a bundle, with its weights unless told otherwise.

    Raises BundleError if it is not ONNX or its opset is one that the builders here do not take.
    """
    try:
        model = onnx.load(path, load_external_data=weights)
    except Exception as error:  # protobuf's exceptions share no public base class
        raise BundleError(f"{path}: not a readable ONNX graph ({str(error).strip()}); export it again") from None
    opset = next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)
    if not MIN_OPSET <= opset <= MAX_OPSET:
        problem = "too old" if opset < MIN_OPSET else "too new"
        raise BundleError(
            f"{path}: opset {opset} is {problem}, engines are built from opset {MIN_OPSET} to {MAX_OPSET}; "
            "export the student again with this csg-edge"
        )
    return model


def widen_weights(model: onnx.ModelProto) -> None:
    """Hold weights as fp32 constants in place of fp16 constants that the graph casts; a model read with weights."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    widened = [node for node in model.graph.node if node.name.startswith(WIDEN)]
    for node in widened:
        array = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
        stored[node.input[0]] = numpy_helper.from_array(array, node.output[0])
    _replace(model.graph.initializer, stored.values())
    _replace(model.graph.node, [node for node in model.graph.node if not node.name.startswith(WIDEN)])


def _replace(field: Any, items: Any) -> None:
    """Put other items into a repeated protobuf field."""
    items = list(items)
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del field[:]
    field.extend(copies)


def _offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Tensor name -> (byte offset in the file, length), from the safetensors header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: (8 + length + item["data_offsets"][0], item["data_offsets"][1] - item["data_offsets"][0])
        for name, item in header.items()
    }


def _point_to(tensor: TensorProto, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", WEIGHTS_NAME), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
