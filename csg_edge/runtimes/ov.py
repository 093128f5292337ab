"""OpenVINO: CPU, and GPU and NPU where OpenVINO finds them."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from csg_edge.cache import BlobCache, key_of
from csg_edge.errors import CancelledError, EngineError, RuntimeUnavailableError
from csg_edge.runtimes.base import Array, Call, Feeds, Results, Runtime, TensorSpec
from csg_edge.runtimes.blame import cannot_open

# The type that layers compute in unless the graph is quantised. OpenVINO takes bf16 for fp32 models on CPUs that have
# it unless told otherwise. An int8 engine leaves some layers in floating point: those take the fastest type there is.
HINTS = {"fp32": ("f32",), "bf16": ("bf16",), "fp16": ("f16",), "int8": ("bf16", "f16", "f32")}
CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16", "int8": "INT8"}
EXECUTED = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
HEAVY_LAYERS = ("Convolution", "FullyConnected", "MatMul", "Deconvolution")


Place = tuple[str, tuple[tuple[str, Any], ...]]
"""A device and the options of an engine on it."""


class OpenVinoRuntime(Runtime):
    """An ONNX graph or IR compiled by OpenVINO for batch 1, for latency or, with several streams, throughput."""

    name: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "csg-edge[openvino]"

    def __init__(
        self, compiled: Any, *, device: str, mapped: Any = None, streams: int = 1, place: Place | None = None
    ) -> None:  # fmt: skip
        super().__init__(_specs(compiled.inputs), _specs(compiled.outputs), device=device)
        self._compiled, self.depth = compiled, streams + 1  # one call is made ready while the streams work
        place = place if device.startswith("CPU") else None
        if place is not None and _IDLE[place]:
            _IDLE[place] -= 1
        # Also where nobody closes it.
        self._falls_idle = weakref.finalize(self, _IDLE.update, [place] if place is not None else [])
        self._falls_idle.atexit = False
        self._mapped = mapped  # an imported model may read its weights from the file it came from
        self._requests: list[Any] = []  # idle ones, the last used on top
        self._lock = threading.Lock()

    @classmethod
    def why_not(cls, device: str, precision: str) -> str | None:
        if find_spec("openvino") is None:
            return f"openvino is not installed; pip install '{cls.extra}'"
        core = _core()
        # The CPU is always there; looking for other devices loads every plugin.
        if device != "CPU" and device not in {
            name for full in core.available_devices for name in (full, full.split(".")[0])
        }:
            return f"OpenVINO finds no device {device} here; choose one of {', '.join(core.available_devices)}"
        capabilities = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        if precision not in HINTS or _hint(precision, capabilities) is None:
            return f"{device} does not compute in {precision} natively; use --precision auto or fp32"
        return None

    @classmethod
    def version(cls) -> str:
        try:
            import openvino
        except ImportError as error:
            raise RuntimeUnavailableError(f"openvino: {error}; pip install '{cls.extra}'") from None
        return str(openvino.get_version())

    @classmethod
    def devices(cls) -> dict[str, dict[str, Any]]:
        core = _core()
        return {
            device: {
                "name": core.get_property(device, "FULL_DEVICE_NAME"),
                "precisions": [name for name in HINTS if cls.why_not(device, name) is None],
            }
            for device in core.available_devices
        }

    @classmethod
    def open(
        cls, path: Path, *, device: str, precision: str, threads: int | None = None, streams: int = 1,
        cache: BlobCache | None = None, identity: str = "",
    ) -> Self:  # fmt: skip
        if reason := cls.why_not(device, precision):
            raise RuntimeUnavailableError(reason)
        core = _core()
        capabilities = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _hint(precision, capabilities),
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        if streams > 1:
            options |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": streams}
        place = device, tuple(options.items())
        if cache is None or not identity:
            return cls(_compile(core, path, device, options), device=device, streams=streams, place=place)
        name = core.get_property(device, "FULL_DEVICE_NAME")
        key = key_of(
            engine=identity, file=path.name, runtime=f"openvino {cls.version()}", device=[device, name],
            capabilities=sorted(capabilities), options=options,
        )  # fmt: skip
        if (blob := cache.load(key)) is not None:
            import openvino

            try:
                tensor = openvino.Tensor(np.frombuffer(blob, np.uint8), shared_memory=True)
                imported = core.import_model(tensor, device, options)
                return cls(imported, device=device, mapped=blob, streams=streams, place=place)
            except RuntimeError:  # whole, but not to this OpenVINO's taste
                cache.discard(key)
        compiled = _compile(core, path, device, options)
        with suppress(RuntimeError):  # a device that cannot export is compiled for each time
            cache.store(key, compiled.export_model().getbuffer())
        return cls(compiled, device=device, streams=streams, place=place)

    @property
    def effective_precision(self) -> str:
        """What convolutions and matrix products are executed in: the narrowest type with a tenth of them or more."""
        executed = [precision for layer, precision in self.layers() if layer in HEAVY_LAYERS]
        for precision in ("int8", "bf16", "fp16"):
            if 10 * executed.count(precision) >= max(1, len(executed)):
                return precision
        return "fp32"

    def layers(self) -> list[tuple[str, str]]:
        """Kind of layer and the precision it is executed in, of every node of the compiled model."""
        about = [node.get_rt_info() for node in self._compiled.get_runtime_model().get_ordered_ops()]
        return [
            (item["layerType"].astype(str), EXECUTED.get(item["runtimePrecision"].astype(str).lower(), "fp32"))
            for item in about
        ]

    def _run(self, feeds: Feeds, results: Results) -> None:
        request = self._request(feeds, results)
        try:
            request.infer()
        except RuntimeError as error:
            raise EngineError(f"openvino: inference failed ({_last_line(error)}); run `csg-edge verify`") from error
        finally:
            self._give_back(request)

    def _start(self, feeds: Feeds, results: Results) -> Call:
        request = self._request(feeds, results)
        request.start_async()
        return _RequestCall(self, request, (feeds, results))

    def _request(self, feeds: Feeds, results: Results) -> Any:
        with self._lock:
            request = self._requests.pop() if self._requests else self._compiled.create_infer_request()
        for name, array in (*feeds.items(), *results.items()):
            request.set_tensor(name, _tensor(array))
        return request

    def _give_back(self, request: Any) -> None:
        with self._lock:
            self._requests.append(request)

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        if self.device.startswith("CPU"):
            return super()._allocate(shape, dtype)
        import openvino

        try:  # host memory that the GPU reads and writes itself
            context = self._compiled.get_default_context()
            tensor = context.create_host_tensor(openvino.Type(dtype), openvino.Shape(shape))
        except (RuntimeError, AttributeError):  # a device without shared memory
            return super()._allocate(shape, dtype)
        array: Array = tensor.data
        return array

    def _close(self) -> None:
        self._requests.clear()
        self._compiled = self._mapped = None
        self._falls_idle()


class _RequestCall(Call):
    """An OpenVINO infer request between `start_async` and its end."""

    def __init__(self, runtime: OpenVinoRuntime, request: Any, arrays: Any) -> None:
        self._runtime, self._request, self._arrays = runtime, request, arrays
        self._lock = threading.Lock()  # one thread waits; once given back, the request may be another call's
        self._error: EngineError | None = None
        self._cancelled = False

    def finished(self, seconds: float | None) -> bool:
        if not self._lock.acquire(timeout=-1 if seconds is None else seconds):
            return False
        try:
            if self._request is not None:
                if seconds is None:
                    self._request.wait()
                elif not self._request.wait_for(int(1e3 * seconds)):
                    return False
                self._end()
        except RuntimeError as error:
            cancelled = CancelledError("openvino: cancelled; start it again")
            self._error = (
                cancelled if self._cancelled else EngineError(f"openvino: inference failed ({_last_line(error)})")
            )
            self._end()
        finally:
            self._lock.release()
        if self._error is not None:
            raise self._error
        return True

    def cancel(self) -> None:
        request = self._request
        if request is not None:
            self._cancelled = True
            request.cancel()

    def _end(self) -> None:
        self._runtime._give_back(self._request)
        self._request = self._arrays = None


def _core() -> Any:
    return _core_of(os.getpid())


@functools.cache
def _core_of(pid: int) -> Any:
    # One per process: making a Core reads its plugins' configuration. A forked child needs its own, because threads do
    # not survive a fork; the parent's stays in this table, since taking it apart in the child would wait for them.
    import openvino

    return openvino.Core()


# OpenVINO keeps the threads of an engine that was closed for the next engine with the same options, also in a forked
# child, where they do not run: opening an engine there waited for ever. So before a fork whatever lies idle is taken by
# engines of one operation, which the child keeps and the parent gives back.
_IDLE: Counter[Place] = Counter()
_TAKEN: list[Any] = []
_KEPT: list[Any] = []


def _before_fork() -> None:
    for (device, options), count in _IDLE.items():
        with suppress(Exception):  # a fork must not fail for it
            _TAKEN.extend(_core().compile_model(_one_operation(), device, dict(options)) for _ in range(count))


def _after_fork_in_child() -> None:
    _IDLE.clear()
    _KEPT.extend(_TAKEN)
    _TAKEN.clear()


def _one_operation() -> Any:
    import openvino
    from openvino import opset13

    value = opset13.parameter([1], openvino.Type.f32)
    return openvino.Model([opset13.relu(value)], [value], "idle")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_TAKEN.clear, after_in_child=_after_fork_in_child
    )  # fmt: skip


def _compile(core: Any, path: Path, device: str, options: dict[str, Any]) -> Any:
    try:
        model = core.read_model(path)
        # A fixed batch lets the compiler plan memory and choose kernels ahead of time.
        model.reshape({port.any_name: _with_batch(port.partial_shape) for port in model.inputs})
        return core.compile_model(model, device, options)
    except RuntimeError as error:
        raise cannot_open(path, "OpenVINO", error) from error


def _with_batch(shape: Any) -> list[int]:
    return [1 if size.is_dynamic else size.get_length() for size in shape]


def _hint(precision: str, capabilities: list[str]) -> str | None:
    if precision == "int8" and CAPABILITIES["int8"] not in capabilities:
        return None
    return next((hint for hint in HINTS[precision] if CAPABILITIES[hint] in capabilities), None)


def _tensor(array: Array) -> Any:
    import openvino

    # OpenVINO shares only memory that it may write; it is given none of the caller's read-only arrays.
    return openvino.Tensor(array if array.flags.writeable else array.copy(), shared_memory=array.flags.writeable)


def _specs(ports: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(port.any_name, np.dtype(port.element_type.to_dtype()), tuple(port.shape)) for port in ports)


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].strip()
