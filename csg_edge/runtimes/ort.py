"""ONNX Runtime on the CPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import EngineError, RuntimeUnavailableError
from csg_edge.runtimes.base import Feeds, Runtime, TensorSpec

DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


class OnnxRuntime(Runtime):
    """An ONNX graph in an `onnxruntime.InferenceSession`, CPU execution provider."""

    name: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "csg-edge[onnxruntime]"

    def __init__(self, session: Any) -> None:
        super().__init__(_specs(session.get_inputs()), _specs(session.get_outputs()))
        self._session = session

    @classmethod
    def why_not(cls, device: str, precision: str) -> str | None:
        if find_spec("onnxruntime") is None:
            return f"onnxruntime is not installed; pip install '{cls.extra}'"
        if device != "CPU":
            return f"device {device} is not supported by this runtime; use CPU"
        if precision != "fp32":
            return f"ONNX Runtime on the CPU computes these graphs in fp32, not {precision}; use --precision fp32"
        return None

    @classmethod
    def machine(cls) -> dict[str, Any]:
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeUnavailableError(f"onnxruntime: {error}; pip install '{cls.extra}'") from None
        return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}

    @classmethod
    def open(cls, path: Path, *, device: str, precision: str, threads: int | None = None) -> Self:
        if reason := cls.why_not(device, precision):
            raise RuntimeUnavailableError(reason)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            return cls(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise EngineError(f"{path}: ONNX Runtime cannot open it ({_first_line(error)}); export it again") from error

    @property
    def effective_precision(self) -> str:
        # The CPU provider keeps each node's own type, and these graphs compute in float.
        return "fp32"

    def _run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        names = [spec.name for spec in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise EngineError(f"onnxruntime: inference failed ({_first_line(error)})") from error

    def _close(self) -> None:
        self._session = None


def _specs(arguments: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            item.name,
            np.dtype(DTYPES[item.type]),
            tuple(size if isinstance(size, int) else None for size in item.shape),
        )
        for item in arguments
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
