"""A CUDA driver and a TensorRT of straw: device memory is host memory, streams are threads, engines are ONNX Runtime.

They take the calls that `csg_edge/runtimes/cuda.py` and `trt.py` make, in the order and with the checks of the real
ones: work on a stream is done later and in order, a captured launch runs only when its graph is launched, memory must
have been allocated and be large enough. So the code path runs without a GPU; of a GPU's numbers and speed it says
nothing.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

NOT_READY = 600


class StandInCuda:
    """The functions of `cuda.bindings.runtime` that we call; each returns (error, results...)."""

    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=0, cudaDevAttrComputeCapabilityMinor=1)  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815
    cudaError_t = SimpleNamespace(cudaErrorNotReady=NOT_READY)  # noqa: N815
    cudaEventDisableTiming = 2  # noqa: N815

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}  # address -> buffer
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, _Stream] = {}
        self.events: dict[int, Future[None]] = {}
        self.graphs: dict[int, list[Any]] = {}
        self.launched = 0
        self._last = 0
        self._lock = threading.Lock()

    def _name(self) -> int:
        with self._lock:
            self._last += 1
            return self._last

    def __getattr__(self, name: str) -> Any:
        if name in ("cudaGraphDestroy", "cudaEventDestroy", "cudaSetDevice"):
            return lambda *arguments: (0,)
        raise AttributeError(name)

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return 0, 1

    def cudaDeviceGetAttribute(self, kind: int, index: int) -> Any:  # noqa: N802
        return 0, (8, 6)[kind]

    def cudaGetErrorString(self, error: int) -> Any:  # noqa: N802
        return 0, f"error {error}".encode()

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        return (0 if self.memory.pop(address, None) is not None else 1,)

    def cudaHostAlloc(self, size: int, flags: int) -> Any:  # noqa: N802
        buffer = ctypes.create_string_buffer(size)
        self.pinned[ctypes.addressof(buffer)] = buffer
        return 0, ctypes.addressof(buffer)

    def cudaFreeHost(self, address: int) -> Any:  # noqa: N802
        return (0 if self.pinned.pop(address, None) is not None else 1,)

    def cudaStreamCreate(self) -> Any:  # noqa: N802
        name = self._name()
        self.streams[name] = _Stream()
        return 0, name

    def cudaStreamDestroy(self, stream: int) -> Any:  # noqa: N802
        self.streams.pop(stream).worker.shutdown()
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> Any:  # noqa: N802
        device = target if kind == 1 else source
        if device not in self.memory or len(self.memory[device]) < size:
            return (700,)
        self.streams[stream].do(lambda: ctypes.memmove(target, source, size) and None)
        return (0,)

    def cudaEventCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        return 0, self._name()

    def cudaEventRecord(self, event: int, stream: int) -> Any:  # noqa: N802
        self.events[event] = self.streams[stream].do(lambda: None)
        return (0,)

    def cudaEventSynchronize(self, event: int) -> Any:  # noqa: N802
        self.events[event].result()
        return (0,)

    def cudaEventQuery(self, event: int) -> Any:  # noqa: N802
        return (0 if self.events[event].done() else NOT_READY,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> Any:  # noqa: N802
        self.streams[stream].captured = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> Any:  # noqa: N802
        captured, self.streams[stream].captured = self.streams[stream].captured, None
        return 0, captured

    def cudaGraphInstantiate(self, captured: list[Any], flags: int) -> Any:  # noqa: N802
        name = self._name()
        self.graphs[name] = captured
        return 0, name

    def cudaGraphExecDestroy(self, graph: int) -> Any:  # noqa: N802
        del self.graphs[graph]
        return (0,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> Any:  # noqa: N802
        self.launched += 1
        for work in self.graphs[graph]:
            self.streams[stream].do(work)
        return (0,)


class _Stream:
    def __init__(self) -> None:
        self.worker = ThreadPoolExecutor(1)
        self.captured: list[Any] | None = None

    def do(self, work: Any) -> Any:
        if self.captured is not None:
            self.captured.append(work)
            return None
        return self.worker.submit(work)


def tensorrt_of(cuda: StandInCuda, name: str, *, rtx: bool) -> ModuleType:
    """A module to stand in `sys.modules` under `name`; its plans are files that hold the path of an ONNX graph."""
    module: Any = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__version__ = "1.0-straw"
    module.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    module.TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
    module.nptype = lambda kind: kind
    module.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: _deserialise(cuda, plan))
    if rtx:
        module.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE=1)
    sys.modules[name] = module
    return module


def _deserialise(cuda: StandInCuda, plan: bytes) -> Any:
    import onnxruntime

    path = Path(plan.decode(errors="replace"))
    if not plan.startswith(b"/") or not path.is_file():
        return None  # as TensorRT does
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return _Engine(cuda, onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))


class _Engine:
    def __init__(self, cuda: StandInCuda, session: Any) -> None:
        self.cuda, self.session = cuda, session
        self.tensors = {item.name: item for item in (*session.get_inputs(), *session.get_outputs())}
        self.outputs = [item.name for item in session.get_outputs()]  # in the order in which the session returns them
        self.num_io_tensors = len(self.tensors)
        self.kernels = _Kernels()

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (1, *self.tensors[name].shape[1:])  # built for batch 1

    def get_tensor_dtype(self, name: str) -> type:
        return {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}[self.tensors[name].type]

    def get_tensor_mode(self, name: str) -> int:
        return 2 if name in self.outputs else 1

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(create_runtime_cache=lambda: self.kernels, set_runtime_cache=lambda kernels: True)

    def create_execution_context(self, config: Any = None) -> Any:
        return _Context(self)


class _Kernels:
    loaded = b""

    def deserialize(self, blob: bytes) -> bool:
        self.loaded = blob
        return True

    def serialize(self) -> bytes:
        return b"kernels"


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address in self.engine.cuda.memory

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return shape == self.engine.get_tensor_shape(name)

    def execute_async_v3(self, stream: int) -> bool:
        if self.addresses.keys() != self.engine.tensors.keys():
            return False
        self.engine.cuda.streams[stream].do(self._execute)
        return True

    def _execute(self) -> None:
        feeds = {name: self._array(name) for name in self.addresses if name not in self.engine.outputs}
        for name, value in zip(self.engine.outputs, self.engine.session.run(None, feeds), strict=True):
            self._array(name)[...] = value

    def _array(self, name: str) -> Any:
        shape, kind = self.engine.get_tensor_shape(name), self.engine.get_tensor_dtype(name)
        return np.frombuffer(self.engine.cuda.memory[self.addresses[name]], kind, int(np.prod(shape))).reshape(shape)
