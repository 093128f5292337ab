"""The reference: a bundle's own ONNX graph, executed node by node with torch operators in fp32.

Golden images are made by torch from the student itself. This runs the exported graph with the same operators, from the
bundle alone, wherever torch runs (CPU, CUDA, MPS): it tells a fault of the graph from a fault of a runtime. It is not
meant to be fast. Operators follow the ONNX specification (onnx.ai/onnx/operators), as far as our graphs use them.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from csg_edge.cache import BlobCache
from csg_edge.errors import EngineError, RuntimeUnavailableError
from csg_edge.runtimes.base import Call, Feeds, Results, Runtime, TensorSpec, ThreadCall, first_line
from csg_edge.runtimes.blame import cannot_open
from csg_edge.runtimes.torch_operators import OPERATORS


class TorchRuntime(Runtime):
    """An ONNX graph on torch."""

    name: ClassVar[str] = "torch"
    extra: ClassVar[str] = "csg-edge[export]"
    depth = 1  # two at once would share the same threads

    def __init__(self, graph: Any, constants: dict[str, Any], *, device: str) -> None:
        inputs = tuple(_spec(item) for item in graph.input)
        super().__init__(inputs, tuple(_spec(item) for item in graph.output), device=device)
        self._constants = constants
        self._nodes = [
            (node.op_type, tuple(node.input), tuple(node.output), _attributes(node), node.name) for node in graph.node
        ]

    @classmethod
    def why_not(cls, device: str, precision: str) -> str | None:
        missing = [name for name in ("torch", "onnx") if find_spec(name) is None]
        if missing:
            return f"{' and '.join(missing)} not installed; pip install '{cls.extra}'"
        if precision != "fp32":
            return f"the torch reference computes in fp32, not {precision}; use --precision fp32"
        devices = _devices()
        return None if device in devices else f"torch finds no device {device} here; choose {', '.join(devices)}"

    @classmethod
    def version(cls) -> str:
        try:
            import torch
        except ImportError as error:
            raise RuntimeUnavailableError(f"torch: {error}; pip install '{cls.extra}'") from None
        return str(torch.__version__)

    @classmethod
    def devices(cls) -> dict[str, dict[str, Any]]:
        return {device: {"name": device.lower(), "precisions": ["fp32"]} for device in _devices()}

    @classmethod
    def open(
        cls, path: Path, *, device: str, precision: str, threads: int | None = None, streams: int = 1,
        cache: BlobCache | None = None, identity: str = "",
    ) -> Self:  # fmt: skip
        if reason := cls.why_not(device, precision):
            raise RuntimeUnavailableError(reason)
        import onnx
        import torch

        if threads is not None:
            torch.set_num_threads(threads)  # torch has one number for the whole process
        try:
            graph = onnx.load(path).graph
        except Exception as error:  # protobuf's, onnx's and the system's exceptions
            raise cannot_open(path, "the torch reference", error) from error
        unknown = sorted({node.op_type for node in graph.node} - OPERATORS.keys())
        if unknown:
            raise EngineError(f"{path}: the torch reference has no operator {', '.join(unknown)}; use another runtime")
        constants = {
            item.name: torch.from_numpy(onnx.numpy_helper.to_array(item).copy()).to(device.lower())
            for item in graph.initializer
        }
        return cls(graph, constants, device=device)

    @property
    def effective_precision(self) -> str:
        # Weights stored in fp16, where that is exact, are widened in the graph before use; TF32 is off, see _execute.
        return "fp32"

    def _run(self, feeds: Feeds, results: Results) -> None:
        self._execute(feeds, results, threading.Event())

    def _start(self, feeds: Feeds, results: Results) -> Call:
        stop = threading.Event()
        return ThreadCall(lambda: self._execute(feeds, results, stop), stop.set)

    def _execute(self, feeds: Feeds, results: Results, stop: threading.Event) -> None:
        import torch

        values: dict[str, Any] = dict(self._constants)
        values[""] = None  # an optional input left out
        # On CUDA torch lets convolutions round their inputs to TF32 unless told otherwise.
        exact = torch.backends.cudnn.flags(allow_tf32=False) if self.device == "CUDA" else nullcontext()
        with torch.inference_mode(), exact:
            for name, array in feeds.items():
                readable = array if array.flags.writeable else array.copy()  # torch shares only writeable memory
                values[name] = torch.from_numpy(readable).to(self.device.lower())
            for kind, inputs, outputs, attributes, node in self._nodes:
                if stop.is_set():
                    raise EngineError("torch: cancelled; start it again")
                try:
                    made = OPERATORS[kind](torch, attributes, *(values[name] for name in inputs))
                except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
                    raise EngineError(
                        f"torch: node {node} ({kind}) failed: {first_line(error)}; export again"
                    ) from error
                values.update(zip(outputs, made if isinstance(made, tuple) else (made,), strict=False))
            for name, array in results.items():
                np.copyto(array, values[name].cpu().numpy())

    def _close(self) -> None:
        self._constants, self._nodes = {}, []


def _devices() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    found = {"CPU": True, "CUDA": torch.cuda.is_available(), "MPS": torch.backends.mps.is_available()}
    return [device for device, here in found.items() if here]


def _spec(item: Any) -> TensorSpec:
    import onnx

    kind = item.type.tensor_type
    shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)
    return TensorSpec(item.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
