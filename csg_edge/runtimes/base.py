"""The contract every runtime honours.

Who owns which buffer
    feeds     are the caller's: read, never written, never kept. They must not change between `start` and the end of
              `wait`. C-contiguous arrays are read in place where the runtime permits; others are copied first.
    out       arrays given by the caller are written in place and returned as they are: no other copy exists.
    results   that the caller gave no array for are fresh arrays, and the caller's from then on; the runtime keeps no
              reference and never writes to them again.
    buffers   from `allocate` belong to the caller, lie where the device reaches them without a staging copy (pinned or
              shared memory on a GPU, ordinary aligned memory on a CPU), and die with the runtime.
    device memory of an engine is the runtime's and is released by `close`, which waits for what is under way.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from csg_edge.cache import BlobCache
from csg_edge.errors import CancelledError, EngineError, InputError, TimedOutError

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Results = dict[str, Array]


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or output; None stands for a size that may vary (the batch)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def check(self, array: Array) -> None:
        """Raise InputError unless the array fits and, if it is floating point, every value is finite."""
        if not isinstance(array, np.ndarray):
            raise InputError(f"{self.name}: got {type(array).__name__}; the engine takes a NumPy array, {self}")
        fits = len(array.shape) == len(self.shape) and all(
            want is None or want == have for want, have in zip(self.shape, array.shape, strict=True)
        )
        if array.dtype != self.dtype or not fits or array.size == 0:
            raise InputError(f"{self.name}: got {array.dtype} {array.shape}; the engine takes {self}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{self.name}: holds NaN or infinity; the engine takes finite values, check their source")

    def __str__(self) -> str:
        return f"{self.dtype} {tuple('N' if size is None else size for size in self.shape)}"


class Call(ABC):
    """One inference under way, as a runtime knows it. Feeds and results stay referenced here until it ends."""

    @abstractmethod
    def finished(self, seconds: float | None) -> bool:
        """Wait at most `seconds` (None: as long as it takes); whether it has ended.

        Raises CancelledError or EngineError if it ended without results; so does every later call.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Ask it to stop; harmless when it has ended."""


class Handle:
    """What `start` returns: wait for the results, or cancel. Dropping it cancels, and waits until memory is free."""

    def __init__(self, runtime: Runtime, call: Call, results: Results) -> None:
        self._runtime, self._call, self._results = runtime, call, results
        self._open = True
        self._lock = threading.Lock()

    def wait(self, timeout: float | None = None) -> Results:
        """The results, by name. May be called again, from any thread.

        timeout: seconds; None waits as long as it takes. Raises TimedOutError (the inference goes on), CancelledError
        or EngineError.
        """
        if timeout is not None and not timeout >= 0:
            raise InputError(f"timeout {timeout!r}: give seconds, 0 or more, or None")
        try:
            ended = self._call.finished(timeout)
        except EngineError:
            self._leave()
            raise
        if not ended:
            raise TimedOutError(f"no result after {timeout} s; wait longer, or cancel this call")
        self._leave()
        return self._results

    def cancel(self) -> None:
        """Stop it if it is still running; `wait` then raises CancelledError. After the end this does nothing."""
        self._call.cancel()

    def end(self) -> None:
        """Wait until it has ended, however it ends: `wait` has the results, or raises the error."""
        with suppress(EngineError):
            self._call.finished(None)
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            left, self._open = self._open, False
        if left:
            self._runtime._left()

    def __del__(self) -> None:
        # In a forked child the runtime's threads are gone, and so is the call.
        if getattr(self, "_open", False) and self._runtime._pid == os.getpid():
            self._call.cancel()
            with suppress(EngineError):  # cancelled, as asked for
                self._call.finished(None)
            self._leave()


class Runtime(ABC):
    """An open engine. Use it as a context manager; `run` and `start` may be called from any number of threads."""

    name: ClassVar[str]
    extra: ClassVar[str]  # what to pip install
    depth: int = 2  # calls under way at once that keep the device busy
    portable: ClassVar[tuple[str, ...]] = (".onnx",)  # suffixes of files that it compiles itself

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *, device: str) -> None:
        self.inputs, self.outputs, self.device = inputs, outputs, device
        self._names = {spec.name for spec in inputs}
        self._pid = os.getpid()
        self._under_way = 0
        self._idle = threading.Condition()
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._closed = False

    @classmethod
    @abstractmethod
    def why_not(cls, device: str, precision: str) -> str | None:
        """None if this machine can run (device, precision), else the reason with the remedy."""

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """The installed version. Raises RuntimeUnavailableError if not installed."""

    @classmethod
    @abstractmethod
    def devices(cls) -> dict[str, dict[str, Any]]:
        """Devices of this machine by name: `name` as their maker has it, `precisions` that run. Needs `version()`."""

    @classmethod
    def machine(cls) -> dict[str, Any]:
        """What `doctor` reports: `version` and `devices`. Raises RuntimeUnavailableError if not installed."""
        return {"version": cls.version(), "devices": cls.devices()}

    @classmethod
    @abstractmethod
    def open(
        cls,
        path: Path,
        *,
        device: str,
        precision: str,
        threads: int | None = None,
        streams: int = 1,
        cache: BlobCache | None = None,
        identity: str = "",
    ) -> Self:
        """Compile an engine file.

        threads: a hint, used where the device is a CPU. streams: a hint, too: how many calls are to be worked on side
        by side, each with its share of the threads, for throughput; `depth` says how many to start. cache: where
        compiled blobs are kept, under a key made of `identity` (which stands for the content of the engine), versions,
        device and options; no caching without both.
        Raises RuntimeUnavailableError or EngineError.
        """

    @classmethod
    def takes(cls, built_with: str) -> str | None:
        """None if an engine built with that ("name version"; empty: a portable file) can be opened, else the reason."""
        here = f"{cls.name} {cls.version()}"
        return None if built_with in ("", here) else f"built with {built_with}, here is {here}"

    @property
    def versions(self) -> dict[str, str]:
        """Versions that may change a result: at least the runtime's own, by name."""
        return {self.name: self.version()}

    @property
    @abstractmethod
    def effective_precision(self) -> str:
        """The precision in force, as read back from the runtime."""

    @abstractmethod
    def _run(self, feeds: Feeds, results: Results) -> None:
        """Run checked, contiguous feeds and fill the results."""

    @abstractmethod
    def _start(self, feeds: Feeds, results: Results) -> Call:
        """Begin what `_run` does."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of the engine; nothing is under way."""

    def run(self, feeds: Feeds, out: Mapping[str, Array] | None = None) -> Results:
        """One inference: outputs by name.

        out: arrays to write outputs into, for all or some outputs; C-contiguous, writeable, of the output's dtype and
        shape. Raises InputError for feeds or arrays that do not fit, EngineError when closed or when the runtime fails.
        """
        ready, results = self._ready(feeds, out)
        with self._working():
            self._run(ready, results)
        return results

    def start(self, feeds: Feeds, out: Mapping[str, Array] | None = None) -> Handle:
        """Begin one inference and return at once; arguments and errors as in `run`."""
        ready, results = self._ready(feeds, out)
        self._enter()
        try:
            call = self._start(ready, results)
        except BaseException:
            self._left()
            raise
        handle = Handle(self, call, results)
        with self._idle:
            self._handles.add(handle)
        return handle

    def allocate(self, batch: int = 1) -> tuple[Results, Results]:
        """Input and output arrays, by name, that this runtime reads and writes without a staging copy.

        batch: rows of tensors whose batch may vary.
        """
        return (
            {spec.name: self._allocate(_shape(spec, batch), spec.dtype) for spec in self.inputs},
            {spec.name: self._allocate(_shape(spec, batch), spec.dtype) for spec in self.outputs},
        )

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.zeros(shape, dtype)

    def close(self) -> None:
        """Release the engine after what is under way has ended, whose results stay; closing twice is fine."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            handles = list(self._handles)
        if self._pid == os.getpid():  # a call of another process does not end here
            for handle in handles:  # perhaps nobody waits for one, as where an error leaves a `with`
                handle.end()
            with self._idle:
                self._idle.wait_for(lambda: self._under_way == 0)
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ready(self, feeds: Feeds, out: Mapping[str, Array] | None) -> tuple[Feeds, Results]:
        if set(feeds) != self._names:
            raise InputError(f"{self.name}: feeds {sorted(feeds)}; the engine takes {sorted(self._names)}")
        ready, batches = {}, set()
        for spec in self.inputs:
            array = feeds[spec.name]
            spec.check(array)
            ready[spec.name] = np.ascontiguousarray(array)
            batches |= {array.shape[0]} if spec.shape[:1] == (None,) else set()
        if len(batches) > 1:
            raise InputError(f"{self.name}: feeds of batches {sorted(batches)}; give every input the same batch")
        batch = batches.pop() if batches else 1
        given = dict(out or {})
        results = {}
        for spec in self.outputs:
            results[spec.name] = (
                _check_out(given.pop(spec.name), spec, batch, ready)
                if spec.name in given
                else np.empty(_shape(spec, batch), spec.dtype)
            )
        if given:
            raise InputError(f"{self.name}: out {sorted(given)}; the engine gives {[s.name for s in self.outputs]}")
        return ready, results

    @contextmanager
    def _working(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            self._left()

    def _enter(self) -> None:
        if self._pid != os.getpid():  # a framework's threads do not survive a fork
            raise EngineError(f"{self.name}: opened by another process; open it again in this one")
        with self._idle:
            if self._closed:
                raise EngineError(f"{self.name}: this runtime is closed; open it again")
            self._under_way += 1

    def _left(self) -> None:
        with self._idle:
            self._under_way -= 1
            self._idle.notify_all()


class ThreadCall(Call):
    """A blocking inference on a thread of its own, for runtimes without asynchronous calls."""

    def __init__(self, work: Any, stop: Any) -> None:
        """work: does the inference, raises EngineError; stop: asks a running `work` to end soon."""
        self._stop = stop
        self._ended, self._cancelled = threading.Event(), False
        self._error: EngineError | None = None
        self._thread = threading.Thread(target=self._work, args=(work,), name="csg-edge", daemon=True)
        self._thread.start()

    def _work(self, work: Any) -> None:
        try:
            work()
            if self._cancelled:  # what runs as one piece, a whole graph in a provider, cannot be stopped within
                self._error = CancelledError("cancelled; start it again")
        except Exception as error:
            if self._cancelled:
                self._error = CancelledError("cancelled; start it again")
            elif isinstance(error, EngineError):
                self._error = error
            else:  # must not be lost with the thread
                self._error = EngineError(f"inference failed ({first_line(error)}); run `csg-edge verify`")
        finally:
            self._ended.set()

    def finished(self, seconds: float | None) -> bool:
        ended = self._ended.wait(seconds)
        if ended and self._error is not None:
            raise self._error
        return ended

    def cancel(self) -> None:
        if not self._ended.is_set():
            self._cancelled = True
            self._stop()


def first_line(error: BaseException) -> str:
    """What an exception of a framework says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    return tuple(batch if size is None else size for size in spec.shape)


def _check_out(array: Array, spec: TensorSpec, batch: int, feeds: Feeds) -> Array:
    shape = _shape(spec, batch)
    fits = isinstance(array, np.ndarray) and array.dtype == spec.dtype and array.shape == shape
    if not fits or not array.flags.c_contiguous or not array.flags.writeable:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"out {spec.name}: got {found}; give a writeable, C-contiguous {spec.dtype} array {shape}")
    if any(np.may_share_memory(array, feed) for feed in feeds.values()):
        raise InputError(f"out {spec.name}: overlaps an input; give memory of its own")
    return array
