"""TensorRT-RTX and TensorRT: one code path over two packages with one Python interface.

An engine is built ahead of time for one version and GPU architecture (`csg-edge build`); here it is only run. Never run
on a GPU so far: what CI runs is this code against a stand-in for the driver (tests/stand_in_cuda.py).

Names and their order of use: NVIDIA's TensorRT Python API reference (IExecutionContext.set_tensor_address,
execute_async_v3) and CUDA runtime API.
"""

from __future__ import annotations

import threading
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from csg_edge.cache import BlobCache, key_of
from csg_edge.errors import CancelledError, EngineError, RuntimeUnavailableError
from csg_edge.runtimes.base import Array, Call, Feeds, Results, Runtime, TensorSpec, first_line
from csg_edge.runtimes.cuda import Cuda, Stream

POLL = 0.0002  # seconds between looks at an event while waiting with a time limit


class TensorRtRtxRuntime(Runtime):
    """A serialised TensorRT-RTX engine. Devices are `smMN`, the compute capability M.N that it was built for."""

    name: ClassVar[str] = "tensorrt-rtx"
    extra: ClassVar[str] = "csg-edge[tensorrt-rtx]"
    module: ClassVar[str] = "tensorrt_rtx"
    portable: ClassVar[tuple[str, ...]] = ()  # csg-edge build makes its engines
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "fp16", "int8")

    def __init__(self, engine: Any, cuda: Cuda, *, device: str, precision: str, setting: _Setting) -> None:
        inputs, outputs = _specs(import_module(self.module), engine)
        super().__init__(inputs, outputs, device=device)
        self._engine, self._cuda, self._precision, self._setting = engine, cuda, precision, setting
        self._lanes: list[_Lane] = []
        self._lock = threading.Lock()

    @classmethod
    def why_not(cls, device: str, precision: str) -> str | None:
        if find_spec(cls.module) is None or find_spec("cuda") is None:
            return f"{cls.module} or cuda-bindings is not installed; pip install '{cls.extra}'"
        if precision not in cls.precisions:
            return f"precision {precision} is unknown to {cls.name}; use {', '.join(cls.precisions)}"
        here = Cuda.load().architectures()
        if not here:
            return f"no NVIDIA GPU with a driver here ({Cuda.load().trouble}); use another runtime"
        if device not in here:
            return f"no GPU of architecture {device} here but {', '.join(here)}; csg-edge build for that one"
        return None

    @classmethod
    def version(cls) -> str:
        try:
            return str(import_module(cls.module).__version__)
        except (ImportError, OSError, RuntimeError) as error:  # the package loads NVIDIA's libraries
            raise RuntimeUnavailableError(f"{cls.module}: {first_line(error)}; pip install '{cls.extra}'") from None

    @classmethod
    def devices(cls) -> dict[str, dict[str, Any]]:
        if find_spec("cuda") is None:
            raise RuntimeUnavailableError(f"cuda-bindings is not installed; pip install '{cls.extra}'")
        return {name: {"name": name, "precisions": list(cls.precisions)} for name in Cuda.load().architectures()}

    @classmethod
    def machine(cls) -> dict[str, Any]:
        found = super().machine()
        return found if found["devices"] else {**found, "note": Cuda.load().trouble}

    @classmethod
    def open(
        cls, path: Path, *, device: str, precision: str, threads: int | None = None, streams: int = 1,
        cache: BlobCache | None = None, identity: str = "",
    ) -> Self:  # fmt: skip
        if reason := cls.why_not(device, precision):
            raise RuntimeUnavailableError(reason)
        tensorrt, cuda = import_module(cls.module), Cuda.load()
        cuda.select(device)
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise EngineError(f"{path}: cannot read ({error.strerror}); copy the bundle again") from None
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        runtime = tensorrt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{path}: {cls.name} {cls.version()} on {device} refuses it; csg-edge build BUNDLE "
                f"--target {cls.name}:{device}:{precision}"
            )
        key = key_of(engine=identity, runtime=f"{cls.name} {cls.version()}", device=device) if identity else ""
        setting = _Setting(tensorrt, engine, cache if key else None, key)
        opened = cls(engine, cuda, device=device, precision=precision, setting=setting)
        opened._keep = (logger, runtime)  # must outlive the engine
        opened._give_back(opened._lane())  # allocates, and makes kernels, now rather than at the first image
        setting.keep()
        return opened

    @property
    def effective_precision(self) -> str:
        """As built: these networks are strongly typed, so an engine computes in the types of its graph."""
        return self._precision

    def _run(self, feeds: Feeds, results: Results) -> None:
        self._start(feeds, results).finished(None)

    def _start(self, feeds: Feeds, results: Results) -> Call:
        lane = self._lane()
        lane.begin(feeds, results)
        return _LaneCall(self, lane, (feeds, results))

    def _lane(self) -> _Lane:
        with self._lock:
            if self._lanes:
                return self._lanes.pop()
        return _Lane(self._setting.context(), self._cuda, self.inputs, self.outputs, captures=self._setting.by_hand)

    def _give_back(self, lane: _Lane) -> None:
        with self._lock:
            self._lanes.append(lane)

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self._cuda.pinned(shape, dtype)

    def _close(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()
        self._setting = self._engine = self._keep = None  # type: ignore[assignment]

    _keep: Any = None


class TensorRtRuntime(TensorRtRtxRuntime):
    """A serialised TensorRT engine: the same interface under another name."""

    name: ClassVar[str] = "tensorrt"
    extra: ClassVar[str] = "csg-edge[tensorrt]"
    module: ClassVar[str] = "tensorrt"


class _Setting:
    """How contexts of an engine are made.

    RTX compiles kernels on the target: they are kept in the blob cache, and it captures CUDA graphs itself. TensorRT
    has neither; its launches are captured by hand.
    """

    def __init__(self, tensorrt: Any, engine: Any, cache: BlobCache | None, key: str) -> None:
        self._engine, self._cache, self._key = engine, cache, key
        self._config = self._kernels = None
        self.by_hand = not hasattr(tensorrt, "CudaGraphStrategy")
        if not self.by_hand:
            self._config = engine.create_runtime_config()
            self._config.cuda_graph_strategy = tensorrt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._kernels = self._config.create_runtime_cache()
            if cache is not None and (blob := cache.load(key)) is not None:
                self._kernels.deserialize(bytes(blob))  # refused, and made anew, if it is of another machine
            self._config.set_runtime_cache(self._kernels)

    def context(self) -> Any:
        context = self._engine.create_execution_context(*([] if self._config is None else [self._config]))
        if context is None:
            raise EngineError(
                "no execution context: not enough GPU memory? Close other programs, or use smaller engines"
            )
        return context

    def keep(self) -> None:
        """Put the kernels made so far into the cache."""
        if self._cache is not None and self._kernels is not None:
            self._cache.store(self._key, bytes(self._kernels.serialize()))


class _Lane:
    """One execution context with its stream and device buffers; two of them overlap copies with computing."""

    def __init__(
        self, context: Any, cuda: Cuda, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *,
        captures: bool,
    ) -> None:  # fmt: skip
        self._context, self._inputs, self._outputs = context, inputs, outputs
        self._captures = captures
        self.stream: Stream = cuda.stream()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._launches = 0

    def begin(self, feeds: Feeds, results: Results) -> None:
        """Enqueue copies in, the engine, copies out."""
        for name, array in feeds.items():
            self._place(name, array)
            self.stream.copy_in(name, array)
        for name, array in results.items():
            self._place(name, array)
        self._launches += 1
        # The first launch sets itself up, which a captured graph must not contain.
        if self._captures and self._launches > 1:
            self.stream.replay(self._launch)
        else:
            self._launch()
        for name, array in results.items():
            self.stream.copy_out(name, array)
        self.stream.mark()

    def close(self) -> None:
        self.stream.close()
        self._context = None

    def _launch(self) -> None:
        if not self._context.execute_async_v3(self.stream.handle):
            raise EngineError("TensorRT: the engine did not start; run `csg-edge verify`")

    def _place(self, name: str, array: Array) -> None:
        if self._shapes.get(name) == array.shape:
            return
        address = self.stream.buffer(name, array.nbytes)
        placed = self._context.set_tensor_address(name, address)
        if any(spec.name == name for spec in self._inputs):
            placed = placed and self._context.set_input_shape(name, array.shape)
        if not placed:
            raise EngineError(f"TensorRT: {name} {array.shape} is not what the engine was built for; build it again")
        self._shapes[name] = array.shape
        self._launches = 0  # a captured graph holds the old addresses
        self.stream.forget()


class _LaneCall(Call):
    """An inference enqueued on a lane. What the GPU has begun runs to its end; cancelling drops the results."""

    def __init__(self, runtime: TensorRtRtxRuntime, lane: _Lane, arrays: Any) -> None:
        self._runtime, self._arrays = runtime, arrays
        self._lane: _Lane | None = lane
        self._lock = threading.Lock()
        self._cancelled = False
        self._error: EngineError | None = None

    def finished(self, seconds: float | None) -> bool:
        deadline = None if seconds is None else time.monotonic() + seconds
        if not self._lock.acquire(timeout=-1 if seconds is None else seconds):
            return False
        try:
            if self._lane is not None:
                try:
                    if deadline is None:
                        self._lane.stream.wait()
                    while deadline is not None and not self._lane.stream.reached():
                        if time.monotonic() >= deadline:
                            return False
                        time.sleep(POLL)
                except EngineError as error:
                    self._error = error
                if self._cancelled:
                    self._error = CancelledError(f"{self._runtime.name}: cancelled; start it again")
                self._runtime._give_back(self._lane)
                self._lane = self._arrays = None
        finally:
            self._lock.release()
        if self._error is not None:
            raise self._error
        return True

    def cancel(self) -> None:
        if self._lane is not None:
            self._cancelled = True


def _specs(tensorrt: Any, engine: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        shape = tuple(None if size < 0 else int(size) for size in engine.get_tensor_shape(name))
        spec = TensorSpec(name, np.dtype(tensorrt.nptype(engine.get_tensor_dtype(name))), shape)
        is_input = engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(spec)
    return tuple(inputs), tuple(outputs)
