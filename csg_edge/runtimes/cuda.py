"""The few calls of the CUDA runtime that an engine needs, with errors that say what failed.

cuda-bindings returns a tuple that begins with the error. Source of names and meanings: NVIDIA CUDA Runtime API.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from csg_edge.errors import EngineError, RuntimeUnavailableError
from csg_edge.runtimes.base import Array


class Cuda:
    """The CUDA runtime of this process."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.trouble = ""  # why there is no GPU, in CUDA's words

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> Cuda:
        """Raises RuntimeUnavailableError if cuda-bindings is not installed."""
        try:
            from cuda.bindings import runtime as api
        except ImportError as error:
            raise RuntimeUnavailableError(f"cuda-bindings: {error}; pip install 'csg-edge[tensorrt-rtx]'") from None
        return cls(api)

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the CUDA runtime; its result without the error. Raises EngineError."""
        error, *results = getattr(self.api, name)(*arguments)
        if int(error):
            raise EngineError(f"{name}: {self._text(error)}; check the driver and free GPU memory")
        return results[0] if len(results) == 1 else tuple(results)

    def architectures(self) -> list[str]:
        """`smMN` of each GPU, in CUDA's order; empty without a GPU or driver, and `trouble` then says why."""
        error, count = self.api.cudaGetDeviceCount()
        if int(error) or not count:
            self.trouble = self._text(error) if int(error) else "no device"
            return []
        kinds = self.api.cudaDeviceAttr
        pair = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        return [
            "sm" + "".join(str(self.call("cudaDeviceGetAttribute", kind, index)) for kind in pair)
            for index in range(count)
        ]

    def select(self, architecture: str) -> None:
        """Make the first GPU of that architecture the current one of this thread."""
        self.call("cudaSetDevice", self.architectures().index(architecture))

    def stream(self) -> Stream:
        return Stream(self)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array in page-locked memory, which the GPU copies from and to without staging; freed with the array."""
        size = math.prod(shape) * dtype.itemsize
        address = int(self.call("cudaHostAlloc", size, 0))
        memory = (ctypes.c_char * size).from_address(address)
        weakref.finalize(memory, self.api.cudaFreeHost, address)
        array: Array = np.frombuffer(memoryview(memory), dtype).reshape(shape)  # keeps `memory` alive
        return array

    def _text(self, error: Any) -> str:
        _, text = self.api.cudaGetErrorString(error)
        return text.decode() if isinstance(text, bytes) else str(text)


class Stream:
    """A CUDA stream with its device buffers by name, and a graph of what was launched on it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream = cuda.call("cudaStreamCreate")
        self._event = cuda.call("cudaEventCreateWithFlags", cuda.api.cudaEventDisableTiming)
        self._buffers: dict[str, tuple[int, int]] = {}  # address, bytes
        self._graph: Any = None

    @property
    def handle(self) -> int:
        return int(self._stream)

    def buffer(self, name: str, size: int) -> int:
        """Address of the device buffer of that name, at least `size` bytes."""
        address, room = self._buffers.get(name, (0, 0))
        if room < size:
            if address:
                self._cuda.call("cudaFree", address)
            address = int(self._cuda.call("cudaMalloc", size))
            self._buffers[name] = (address, size)
        return address

    def copy_in(self, name: str, array: Array) -> None:
        self._copy(self._buffers[name][0], array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def copy_out(self, name: str, array: Array) -> None:
        self._copy(array.ctypes.data, self._buffers[name][0], array.nbytes, "cudaMemcpyDeviceToHost")

    def replay(self, launch: Callable[[], None]) -> None:
        """Launch by one CUDA graph, captured from `launch` the first time."""
        if self._graph is None:
            mode = self._cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._cuda.call("cudaStreamBeginCapture", self._stream, mode)
            launch()
            captured = self._cuda.call("cudaStreamEndCapture", self._stream)
            self._graph = self._cuda.call("cudaGraphInstantiate", captured, 0)
            self._cuda.call("cudaGraphDestroy", captured)
        self._cuda.call("cudaGraphLaunch", self._graph, self._stream)

    def forget(self) -> None:
        """Drop the captured graph: addresses or shapes have changed."""
        if self._graph is not None:
            self._cuda.call("cudaGraphExecDestroy", self._graph)
            self._graph = None

    def mark(self) -> None:
        """Remember this point of the stream, for `wait` and `reached`."""
        self._cuda.call("cudaEventRecord", self._event, self._stream)

    def wait(self) -> None:
        """Until the mark is reached."""
        self._cuda.call("cudaEventSynchronize", self._event)

    def reached(self) -> bool:
        """Whether the mark is reached."""
        (error,) = self._cuda.api.cudaEventQuery(self._event)
        if error == self._cuda.api.cudaError_t.cudaErrorNotReady:
            return False
        if int(error):
            raise EngineError(f"the GPU failed: {self._cuda._text(error)}; check the driver")
        return True

    def close(self) -> None:
        """Release everything; nothing is under way."""
        self.forget()
        for address, _ in self._buffers.values():
            self._cuda.call("cudaFree", address)
        self._buffers.clear()
        self._cuda.call("cudaEventDestroy", self._event)
        self._cuda.call("cudaStreamDestroy", self._stream)

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        kinds = self._cuda.api.cudaMemcpyKind
        self._cuda.call("cudaMemcpyAsync", target, source, size, getattr(kinds, kind), self._stream)
