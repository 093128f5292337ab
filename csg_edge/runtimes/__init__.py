"""Runtimes: code that runs an engine. One contract (`base`), one table, each framework imported on use."""

from __future__ import annotations

from importlib import import_module

from csg_edge.errors import InputError
from csg_edge.runtimes.base import Runtime

RUNTIMES = {
    "openvino": "csg_edge.runtimes.ov:OpenVinoRuntime",
    "onnxruntime": "csg_edge.runtimes.ort:OnnxRuntime",
    "tensorrt-rtx": "csg_edge.runtimes.trt:TensorRtRtxRuntime",
    "tensorrt": "csg_edge.runtimes.trt:TensorRtRuntime",
    "torch": "csg_edge.runtimes.torch_reference:TorchRuntime",
}


def runtime_class(name: str) -> type[Runtime]:
    """The class behind a runtime's name; importing it does not import the framework.

    Raises InputError for an unknown name.
    """
    try:
        module, attribute = RUNTIMES[name].split(":")
    except KeyError:
        raise InputError(f"runtime {name!r} is unknown; choose auto, {', '.join(RUNTIMES)}") from None
    found: type[Runtime] = getattr(import_module(module), attribute)
    return found


__all__ = ["RUNTIMES", "Runtime", "runtime_class"]
