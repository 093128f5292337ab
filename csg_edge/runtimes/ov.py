"""OpenVINO on the CPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import EngineError, RuntimeUnavailableError
from csg_edge.runtimes.base import Feeds, Runtime, TensorSpec

# OpenVINO computes fp32 models in bf16 on CPUs that have it unless told otherwise.
HINTS = {"fp32": "f32", "bf16": "bf16"}
CAPABILITIES = {"fp32": "FP32", "bf16": "BF16"}


class OpenVinoRuntime(Runtime):
    """An ONNX graph or IR compiled by OpenVINO for batch 1, latency hint."""

    name: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "csg-edge[openvino]"

    def __init__(self, compiled: Any) -> None:
        super().__init__(_specs(compiled.inputs), _specs(compiled.outputs))
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    @classmethod
    def why_not(cls, device: str, precision: str) -> str | None:
        if find_spec("openvino") is None:
            return f"openvino is not installed; pip install '{cls.extra}'"
        core = _core()
        if device not in core.available_devices:
            return f"OpenVINO finds no device {device} here; choose one of {', '.join(core.available_devices)}"
        capabilities = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
        if CAPABILITIES.get(precision) not in capabilities:
            return f"{device} does not compute in {precision} natively; use --precision auto or fp32"
        return None

    @classmethod
    def machine(cls) -> dict[str, Any]:
        try:
            import openvino
        except ImportError as error:
            raise RuntimeUnavailableError(f"openvino: {error}; pip install '{cls.extra}'") from None
        core = _core()
        devices = {
            device: {
                "name": core.get_property(device, "FULL_DEVICE_NAME"),
                "precisions": [name for name in CAPABILITIES if cls.why_not(device, name) is None],
            }
            for device in core.available_devices
        }
        return {"version": openvino.get_version(), "devices": devices}

    @classmethod
    def open(cls, path: Path, *, device: str, precision: str, threads: int | None = None) -> Self:
        if reason := cls.why_not(device, precision):
            raise RuntimeUnavailableError(reason)
        core = _core()
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": HINTS[precision]}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(path)
            # A fixed batch lets the compiler plan memory and choose kernels ahead of time.
            model.reshape({port.any_name: _with_batch_1(port.partial_shape) for port in model.inputs})
            return cls(core.compile_model(model, device, options))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise EngineError(f"{path}: OpenVINO cannot open it ({reason}); export it again") from error

    @property
    def effective_precision(self) -> str:
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        return {"f32": "fp32", "f16": "fp16"}.get(hint, str(hint))

    def _run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        try:
            results = self._request.infer(dict(feeds), share_inputs=True)
        except RuntimeError as error:
            raise EngineError(f"openvino: inference failed ({str(error).strip().splitlines()[-1].strip()})") from error
        return {port.any_name: np.array(results[port]) for port in self._compiled.outputs}

    def _close(self) -> None:
        self._request = self._compiled = None


def _core() -> Any:
    import openvino

    return openvino.Core()


def _with_batch_1(shape: Any) -> list[int]:
    return [1, *(size.get_length() for size in list(shape)[1:])]


def _specs(ports: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(port.any_name, np.dtype(port.element_type.to_dtype()), tuple(port.shape)) for port in ports)
