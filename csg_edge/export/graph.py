"""A student becomes one ONNX graph per number of steps: mask, context, noise -> image.

Condition encoder, one-hot, every denoiser evaluation, decoder and uint8 conversion are all inside. Timesteps are
constants, so the time embedding is computed here and its network never enters the graph.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from torch import Tensor, nn

from csg_edge.errors import EngineError
from csg_edge.training.model import CsgModel
from csg_edge.training.process import STUDENT_TIMESTEPS

OPSET = 20  # ONNX Runtime 1.32 fails on quantised graphs of opset 21 and later
WEIGHTS_NAME = "weights.safetensors"
SHARED_ELEMENTS = 256  # smaller constants stay inside the graph


class FewStepGraph(nn.Module):
    """The student with its sampler unrolled.

    (B, H, W) uint8, (B, H, W) uint8, (B, C, h, w) float32 -> (B, H, W) uint8.
    """

    time_embeddings: Tensor

    def __init__(self, model: CsgModel, steps: int) -> None:
        super().__init__()
        self.model = model
        self.timesteps = STUDENT_TIMESTEPS[steps]
        with torch.no_grad():
            embeddings = [model.network.embed_time(torch.tensor([timestep])) for timestep in self.timesteps[:-1]]
        self.register_buffer("time_embeddings", torch.stack(embeddings))  # (steps, 1, E)

    def forward(self, mask: Tensor, context: Tensor, noise: Tensor) -> Tensor:
        conditions = self.model.conditions(mask, context)
        latent = noise
        for index, (now, then) in enumerate(pairwise(self.timesteps)):
            latent = latent + (then - now) * self.model.network(latent, self.time_embeddings[index], conditions)
        return self.model.autoencoder.decode(latent)


def export_graphs(model: CsgModel, steps: Sequence[int], directory: Path) -> dict[int, Path]:
    """Write `steps-N.onnx` for each N and one weights file they share; returns their paths.

    The weights file is a safetensors file that the graphs address by offset, as ONNX external data. Weights that fp16
    holds exactly are stored in fp16 and widened in the graph: half the size, not one bit lost.
    """
    model = model.cpu().eval()
    graphs = {count: _trace(FewStepGraph(model, count).eval(), model) for count in steps}
    tensors: dict[str, NDArray[Any]] = {}
    for graph in graphs.values():
        tensors |= _share_weights(graph)
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / WEIGHTS_NAME
    save_file(tensors, weights)
    weights.chmod(0o644)  # safetensors writes for the owner alone; a bundle may be shared
    offsets = _offsets(weights)
    paths = {}
    for count, graph in graphs.items():
        for tensor in graph.graph.initializer:
            if tensor.name in offsets:
                _point_to(tensor, *offsets[tensor.name])
        metadata = {"csg_edge.steps": str(count), "csg_edge.labels": json.dumps(model.schema.names)}
        helper.set_model_props(graph, metadata)
        paths[count] = directory / f"steps-{count}.onnx"
        paths[count].write_bytes(graph.SerializeToString(deterministic=True))
        onnx.checker.check_model(paths[count])
    return paths


def _trace(module: FewStepGraph, model: CsgModel) -> onnx.ModelProto:
    size = (2, model.image_size, model.image_size)
    example = (
        torch.zeros(size, dtype=torch.uint8),
        torch.ones(size, dtype=torch.uint8),
        torch.zeros(model.latent_shape(2)),
    )
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad(), _quiet_exporter():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["mask", "context", "noise"],
            output_names=["image"],
            dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
            verbose=False,
        )
    if program is None:
        raise EngineError("torch.onnx.export returned no program")
    graph = program.model_proto
    graph.producer_version = ""
    for node in graph.graph.node:  # stack traces of the exporting machine say nothing to a reader, and change the hash
        del node.metadata_props[:]
    return graph


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    # It reports at length on torchvision operators and its own deprecations, neither of which a user can act on.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _share_weights(graph: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Rename large initializers by content, in fp16 where that is exact; returns name -> array for the shared file."""
    tensors, names, casts = {}, {}, []
    for tensor in graph.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size < SHARED_ELEMENTS or array.dtype != np.float32:
            continue
        narrow = array.astype(np.float16)
        exact = np.array_equal(narrow.astype(np.float32), array)
        stored = narrow if exact else array
        name = f"w.{hashlib.sha256(stored.tobytes() + str(stored.shape).encode()).hexdigest()[:16]}"
        tensors[name] = stored
        if exact:
            names[tensor.name] = f"{name}.wide"
            casts.append((name, f"{name}.wide"))
        else:
            names[tensor.name] = name
        tensor.CopyFrom(numpy_helper.from_array(stored, name))
    unique = {tensor.name: tensor for tensor in graph.graph.initializer}
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(unique.values())
    for node in graph.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    widen = [
        helper.make_node("Cast", [name], [wide], name=wide, to=TensorProto.FLOAT) for name, wide in dict(casts).items()
    ]
    nodes = [*widen, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return tensors


def _offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Tensor name -> (byte offset in the file, length), from the safetensors header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: (8 + length + item["data_offsets"][0], item["data_offsets"][1] - item["data_offsets"][0])
        for name, item in header.items()
    }


def _point_to(tensor: TensorProto, offset: int, length: int) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", WEIGHTS_NAME), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
