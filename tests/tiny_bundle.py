"""A bundle small enough to calibrate in a test: four convolutions instead of a student, and data to calibrate it on."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from csg_edge.bundle.manifest import FORMAT, Bundle, Engine, GoldenCase, Graph, Manifest, read_bundle, write_manifest
from csg_edge.conditions.files import write_png
from csg_edge.datasets.phantom import write_phantoms
from csg_edge.export.targets import EXACT, SIXTEEN_BIT
from csg_edge.export.weights import share_weights, write_graphs
from csg_edge.labels import MSK_SCHEMA
from csg_edge.noise import noise_for
from csg_edge.runtimes.ort import OnnxRuntime

NOISE = (4, 64, 64)
LARGE, SMALL = "step_1/wide/Conv", "context/tiny/Conv"


def tiny_graph(*, batch: int | None, channels: int = 32) -> onnx.ModelProto:
    """mask, context, noise -> image: an image that shows all three. `context/tiny/Conv` has hardly any work."""
    random = np.random.default_rng(0)
    rows: Any = "N" if batch is None else batch

    def weights(name: str, *shape: int) -> Any:
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 1 else 1e4)
        return numpy_helper.from_array(values.astype(np.float16).astype(np.float32), name)  # as a bundle stores them

    constants = [
        weights("w0", channels, 6, 3, 3), weights("b0", channels), weights("w1", channels, channels, 3, 3),
        weights("b1", channels), weights("w2", 16, channels, 3, 3), weights("b2", 16), weights("w3", 1, 1, 1, 1),
        numpy_helper.from_array(np.array(0.02, np.float32), "mask_scale"),
        numpy_helper.from_array(np.array(1 / 255, np.float32), "grey_scale"),
        numpy_helper.from_array(np.array(40, np.float32), "gain"),
        numpy_helper.from_array(np.array(110, np.float32), "offset"),
        numpy_helper.from_array(np.array(0, np.float32), "low"),
        numpy_helper.from_array(np.array(255, np.float32), "high"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]  # fmt: skip
    pool = {"kernel_shape": [4, 4], "strides": [4, 4]}
    around = {"kernel_shape": [3, 3], "pads": [1] * 4}
    nodes = [
        helper.make_node("Cast", ["mask"], ["mask_f"], name="context/Cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_f", "axis"], ["mask_4"], name="context/Unsqueeze"),
        helper.make_node("Mul", ["mask_4", "mask_scale"], ["mask_s"], name="context/Mul"),
        helper.make_node("AveragePool", ["mask_s"], ["mask_p"], name="context/AveragePool", **pool),
        helper.make_node("Cast", ["context"], ["context_f"], name="context/Cast_1", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["context_f", "axis"], ["context_4"], name="context/Unsqueeze_1"),
        helper.make_node("Mul", ["context_4", "grey_scale"], ["context_s"], name="context/Mul_1"),
        helper.make_node("AveragePool", ["context_s"], ["context_p"], name="context/AveragePool_1", **pool),
        helper.make_node("Conv", ["context_p", "w3"], ["context_c"], name=SMALL, kernel_shape=[1, 1]),
        helper.make_node("Concat", ["noise", "mask_p", "context_c"], ["x"], name="step_1/Concat", axis=1),
        helper.make_node("Conv", ["x", "w0", "b0"], ["h0"], name="step_1/in/Conv", **around),
        helper.make_node("Relu", ["h0"], ["r0"], name="step_1/Relu"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["h1"], name=LARGE, **around),
        helper.make_node("Relu", ["h1"], ["r1"], name="step_1/Relu_1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["h2"], name="step_1/out/Conv", **around),
        helper.make_node("DepthToSpace", ["h2"], ["wide"], name="decode/DepthToSpace", blocksize=4),
        helper.make_node("Squeeze", ["wide", "axis"], ["flat"], name="decode/Squeeze"),
        helper.make_node("Mul", ["flat", "gain"], ["scaled"], name="decode/Mul"),
        helper.make_node("Add", ["scaled", "offset"], ["grey"], name="decode/Add"),
        helper.make_node("Clip", ["grey", "low", "high"], ["clipped"], name="decode/Clip"),
        helper.make_node("Round", ["clipped"], ["round"], name="decode/Round"),
        helper.make_node("Cast", ["round"], ["image"], name="decode/Cast", to=TensorProto.UINT8),
    ]
    inputs = [
        helper.make_tensor_value_info("mask", TensorProto.UINT8, [rows, 256, 256]),
        helper.make_tensor_value_info("context", TensorProto.UINT8, [rows, 256, 256]),
        helper.make_tensor_value_info("noise", TensorProto.FLOAT, [rows, *NOISE]),
    ]
    outputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, [rows, 256, 256])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def tiny_bundle(folder: Path, *, channels: int = 32) -> Bundle:
    """Write the bundle: one step, two golden cases, OpenVINO and ONNX Runtime on the CPU."""
    graphs = {"steps-1.onnx": None, "steps-1.batch-1.onnx": 1}
    models = {name: tiny_graph(batch=batch, channels=channels) for name, batch in graphs.items()}
    tensors: dict[str, NDArray[Any]] = {}
    for model in models.values():
        tensors |= share_weights(model)
    write_graphs(models, tensors, folder / "graphs")
    random = np.random.default_rng(1)
    golden = []
    (folder / "golden").mkdir()
    with OnnxRuntime.open(folder / "graphs/steps-1.onnx", device="CPU", precision="fp32") as runtime:
        for name in ("a", "b"):
            mask = np.repeat(random.integers(0, 5, (256, 1), dtype=np.uint8), 256, axis=1)
            context = random.integers(0, 256, (256, 256), dtype=np.uint8)
            feeds = {"mask": mask[None], "context": context[None], "noise": noise_for(7, NOISE)[None]}
            image = runtime.run(feeds)["image"][0]
            for kind, pixels in (("mask", mask), ("context", context), ("steps-1", image)):
                write_png(folder / f"golden/{name}.{kind}.png", pixels)
            golden.append(
                GoldenCase(
                    name, f"golden/{name}.mask.png", f"golden/{name}.context.png", 7,
                    {"1": f"golden/{name}.steps-1.png"},
                )
            )  # fmt: skip
    engines = (
        Engine("openvino:CPU:bf16", 1, "graphs/steps-1.onnx", SIXTEEN_BIT),
        Engine("openvino:CPU:fp32", 1, "graphs/steps-1.onnx", EXACT),
        Engine("onnxruntime:CPU:fp32", 1, "graphs/steps-1.onnx", EXACT),
    )
    manifest = Manifest(
        format=FORMAT, name="tiny", producer="test", image_size=(256, 256), noise_shape=NOISE, labels=MSK_SCHEMA.names,
        graphs=tuple(Graph(1, "fp32", batch, f"graphs/{name}", {}) for name, batch in graphs.items()),
        engines=engines, golden=tuple(golden), files={}, export={},
    )  # fmt: skip
    write_manifest(folder, manifest)
    return read_bundle(folder)


def tiny_data(folder: Path, *, train: int = 6, val: int = 6) -> Path:
    """Phantoms, each of a group of its own; the last `val` are held out."""
    write_phantoms(folder, count=train + val, seed=3)
    path = folder / "manifest.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        row |= {"group": f"g{index}", "split": "train" if index < train else "val"}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder
