"""Systems under test: an engine of a bundle, and stand-ins of known latency by which the stopwatch itself is tested."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from csg_edge.bundle.manifest import Bundle, Engine, read_bundle
from csg_edge.cache import BlobCache
from csg_edge.datasets.phantom import make_phantom
from csg_edge.errors import EngineError, InputError
from csg_edge.generation.generator import open_engine
from csg_edge.generation.proof import golden_failure
from csg_edge.machine import allowed_processors, default_threads

Image = NDArray[np.uint8]

CONTEXT_SEEDS = 10_000  # contexts are phantoms of other seeds than the masks'


def make_library(count: int, *, size: int, seed: int) -> tuple[Image, Image]:
    """(count, size, size) masks and contexts of the phantom, each context of another scene than its mask."""
    phantoms = [make_phantom(seed + index, size=size) for index in range(count)]
    others = [make_phantom(seed + CONTEXT_SEEDS + index, size=size) for index in range(count)]
    return np.stack([item.mask for item in phantoms]), np.stack([item.image for item in others])


def find_engine(bundle: Bundle, target: str, steps: int) -> Engine:
    """The engine of a bundle for a target. Raises InputError if it has none."""
    for engine in bundle.manifest.engines:
        if (engine.target, engine.steps) == (target, steps):
            return engine
    offered = ", ".join(f"{engine.target} ({engine.steps} steps)" for engine in bundle.manifest.engines)
    raise InputError(f"bundle {bundle.manifest.name} has no engine {target} with {steps} steps; it has {offered}")


class EngineSystem:
    """An engine behind `csg_edge.load`'s Generator: what a user's call costs, noise and checks included."""

    def __init__(
        self, bundle: Path, *, target: str, steps: int, masks: Image, contexts: Image, seed: int,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        """Open it and check its golden case. Raises EngineError if it makes another image than it should."""
        checked = read_bundle(bundle)
        engine = find_engine(checked, target, steps)
        self.generator = open_engine(checked, engine, threads=threads, cache=BlobCache())
        streams = threads or default_threads() or allowed_processors()
        self._open_wide = partial(open_engine, checked, engine, threads=threads, streams=streams, cache=BlobCache())
        self.library = len(masks)
        self._masks, self._contexts, self._seed = masks, contexts, seed
        if failure := golden_failure(self.generator):
            self.generator.close()
            raise EngineError(f"{target}: {failure}; it is not timed")

    def images(self, indices: Sequence[int]) -> Iterator[None]:
        if len(indices) == 1:
            index = indices[0]
            self.generator.generate_one(self._masks[index], self._contexts[index], self._seed + index)
            yield
            return
        for _ in self.generator.stream(
            (self._masks[index] for index in indices),
            (self._contexts[index] for index in indices),
            (self._seed + index for index in indices),
        ):
            yield

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        """While this lasts, images are made as offline work is: as many streams as threads."""
        narrow = self.generator
        with self._open_wide() as self.generator:
            try:
                yield
            finally:
                self.generator = narrow

    def about(self) -> dict[str, Any]:
        """The precision in force and versions, as read back from the runtime."""
        runtime = self.generator.runtime
        return {"effective_precision": runtime.effective_precision, "runtime_versions": runtime.versions}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.generator.close()


class StandIn:
    """Sleeps `ms` for an image and `slow_ms` for every `slow_every`-th; aborts the process at image `abort_at`.

    `spent_ms` is what each image took by its own clock: a sleep never ends early, but a busy machine ends it late.
    """

    def __init__(
        self, *, ms: float = 0.0, slow_ms: float = 0.0, slow_every: int = 0, abort_at: int = 0, fail_at: int = 0
    ) -> None:
        self.library = 16
        self.spent_ms: list[float] = []
        self._seconds, self._slow_seconds, self._slow_every = 1e-3 * ms, 1e-3 * slow_ms, slow_every
        self._abort_at, self._fail_at = abort_at, fail_at
        self._count = 0

    def images(self, indices: Sequence[int]) -> Iterator[None]:
        for _ in indices:
            self._count += 1
            if self._count == self._abort_at:
                os.abort()  # as a native library does
            if self._count == self._fail_at:
                raise EngineError("stand-in: failed as asked; ask for no failure")
            slow = self._slow_every and self._count % self._slow_every == 0
            start = time.perf_counter()
            if seconds := self._slow_seconds if slow else self._seconds:
                time.sleep(seconds)
            self.spent_ms.append(1e3 * (time.perf_counter() - start))
            yield

    def about(self) -> dict[str, Any]:
        """Nothing to read back."""
        return {"effective_precision": None, "runtime_versions": {}}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def open_system(request: Mapping[str, Any]) -> EngineSystem | StandIn:
    """The system that a worker's request describes: {"stand_in": {...}} or {"bundle", "target", "steps", ...}."""
    if "stand_in" in request:
        return StandIn(**request["stand_in"])
    with np.load(request["library"]) as library:
        masks, contexts = library["masks"], library["contexts"]
    return EngineSystem(
        Path(request["bundle"]), target=request["target"], steps=request["steps"], masks=masks, contexts=contexts,
        seed=request["seed"], threads=request["threads"],
    )  # fmt: skip
