"""The contract every runtime honours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import EngineError, InputError

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output; None stands for a size that may vary (the batch)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def check(self, array: NDArray[Any]) -> None:
        """Raise InputError unless the array fits."""
        fits = len(array.shape) == len(self.shape) and all(
            want is None or want == have for want, have in zip(self.shape, array.shape, strict=True)
        )
        if array.dtype != self.dtype or not fits:
            shape = tuple("N" if size is None else size for size in self.shape)
            raise InputError(f"{self.name}: got {array.dtype} {array.shape}; the engine takes {self.dtype} {shape}")


class Runtime(ABC):
    """An open engine. Use it as a context manager; `run` may be called from one thread at a time.

    Feeds are read, never written or kept; the arrays returned belong to the caller.
    """

    name: ClassVar[str]
    extra: ClassVar[str]  # what to pip install

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._closed = False

    @classmethod
    @abstractmethod
    def why_not(cls, device: str, precision: str) -> str | None:
        """None if this machine can run (device, precision), else the reason with the remedy."""

    @classmethod
    @abstractmethod
    def machine(cls) -> dict[str, Any]:
        """What `doctor` reports: version and devices. Raises RuntimeUnavailableError if not installed."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, *, device: str, precision: str, threads: int | None = None) -> Self:
        """Compile an engine file. Raises RuntimeUnavailableError or EngineError."""

    @property
    @abstractmethod
    def effective_precision(self) -> str:
        """The precision in force, as read back from the runtime."""

    @abstractmethod
    def _run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Run checked feeds."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of the engine."""

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """One inference.

        Raises InputError for feeds that do not fit, EngineError when closed or when the runtime fails.
        """
        if self._closed:
            raise EngineError(f"{self.name}: this runtime is closed; open it again")
        names = {spec.name for spec in self.inputs}
        if set(feeds) != names:
            raise InputError(f"{self.name}: feeds {sorted(feeds)}; the engine takes {sorted(names)}")
        for spec in self.inputs:
            spec.check(feeds[spec.name])
        return self._run(feeds)

    def close(self) -> None:
        """Release the engine; closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
