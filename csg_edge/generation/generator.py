"""The generator: what users hold. A bundle and a runtime; masks, contexts and seeds in, uint8 images out."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from csg_edge.bundle.manifest import Bundle, Engine, Target, read_bundle
from csg_edge.cache import BlobCache
from csg_edge.conditions.arrays import check_context, check_mask, resize_image, resize_mask
from csg_edge.errors import EngineError, InputError
from csg_edge.generation.selection import Choice, identity
from csg_edge.noise import check_seed, noise_for
from csg_edge.runtimes import Runtime, runtime_class
from csg_edge.runtimes.base import Handle, Results

Image = NDArray[np.uint8]
Job = tuple[Image, Image, int]  # mask and context at the bundle's image size, seed


class Generator:
    """Makes ultrasound images from masks and contexts with one engine. Use it as a context manager or call `close`.

    It may be used by any number of threads. A forked child, or a process that it was pickled to (a worker of PyTorch's
    DataLoader), opens the engine anew at its first image. `choice` says why this engine was taken.
    """

    _lock: threading.Lock

    def __init__(
        self, bundle: Bundle, engine: Engine, runtime: Runtime, *, threads: int | None = None,
        cache: BlobCache | None = None, choice: Choice | None = None,
    ) -> None:  # fmt: skip
        self.bundle, self.engine = bundle, engine
        self.choice = choice or Choice(engine.target, "as asked for")
        self._threads, self._cache = threads, cache
        self._runtime: Runtime | None = runtime
        self._begin()

    def generate(
        self, masks: Sequence[Image], contexts: Sequence[Image], seeds: Sequence[int], *, out: Image | None = None
    ) -> Image:
        """One image per mask.

        masks: N (H, W) uint8 class indices; contexts: N, or one for all, (H, W) uint8 grey levels. A mask of 255
        everywhere means no mask, a context of zeros no context. Any size,
        stretched to the bundle's image size. seeds: N integers in 0..2^64-1; the same mask, context and seed give the
        same bytes whatever else is in the call. out: (N, H, W) uint8 to write into. Returns (N, H, W) uint8. Raises
        InputError before anything is generated, EngineError if the generator is closed or the runtime fails.
        """
        if not all(hasattr(given, "__len__") for given in (masks, contexts, seeds)):
            raise InputError("masks, contexts and seeds: give lists or arrays; `stream` takes any iterable")
        if len(contexts) not in (1, len(masks)) or len(seeds) != len(masks) or not len(masks):
            raise InputError(
                f"{len(masks)} masks, {len(contexts)} contexts, {len(seeds)} seeds; give at least one mask, "
                "a seed for each mask, and one context or one for each mask"
            )
        shape = (len(masks), *self.bundle.manifest.image_size)
        if out is not None and (out.shape != shape or out.dtype != np.uint8 or not out.flags.writeable):
            raise InputError(f"out: {out.dtype} {out.shape}; give a writeable uint8 array {shape}")
        shared = len(contexts) == 1
        prepared = [self.prepare_context(context, name=f"contexts[{i}]") for i, context in enumerate(contexts)]
        jobs: list[Job] = [
            (self.prepare_mask(mask, name=f"masks[{i}]"), prepared[0 if shared else i], check_seed(seeds[i]))
            for i, mask in enumerate(masks)
        ]
        images: Image = np.empty(shape, np.uint8) if out is None else out
        if len(jobs) == 1:
            self._make_one(jobs[0], images)
        else:
            for _ in self._images(jobs, lambda index: images[index]):
                pass
        return images

    def generate_one(self, mask: Image, context: Image, seed: int) -> Image:
        """(H, W) mask, (H, W) context and a seed -> (H, W) image; as `generate` for one."""
        image: Image = self.generate([mask], [context], [seed])[0]
        return image

    def stream(
        self, masks: Iterable[Image], contexts: Image | Iterable[Image], seeds: Iterable[int]
    ) -> Iterator[Image]:
        """Images (H, W) uint8 in the order of the masks, for iterables of any length, in constant memory.

        contexts: one (H, W) array for all masks, read and resized once, or an iterable with one for each mask. seeds:
        an iterable with at least as many, `itertools.count()` for example. While the device works on one image the
        next is made ready. Errors as in `generate`, when it is that mask's turn; closing the iterator drops what is
        under way.
        """
        shared = self.prepare_context(contexts, name="context") if isinstance(contexts, np.ndarray) else None
        each = None if shared is not None else iter(contexts)
        seeds = iter(seeds)

        def jobs() -> Iterator[Job]:
            for index, mask in enumerate(masks):
                ready = self.prepare_mask(mask, name=f"masks[{index}]")
                try:
                    seed = check_seed(next(seeds))
                    look = shared if each is None else self.prepare_context(next(each), name=f"contexts[{index}]")
                except StopIteration:
                    raise InputError(f"masks[{index}] has no context or no seed; give one for each mask") from None
                assert look is not None
                yield ready, look, seed

        size = self.bundle.manifest.image_size
        return self._images(jobs(), lambda index: np.empty(size, np.uint8))

    def prepare_mask(self, mask: Image, *, name: str) -> Image:
        """Check a mask and stretch it to the bundle's image size: the labels of the generated image."""
        return resize_mask(check_mask(mask, self.bundle.manifest.schema, name=name), *self.bundle.manifest.image_size)

    def prepare_context(self, context: Image, *, name: str) -> Image:
        """Check a context and stretch it to the bundle's image size; one that has that size is returned as it is.

        Prepare a context that is used in many calls once, and pass what this returns.
        """
        return resize_image(check_context(context, name=name), *self.bundle.manifest.image_size)

    @property
    def runtime(self) -> Runtime:
        """The open engine. Raises EngineError when closed."""
        with self._lock:
            if self._closed:
                raise EngineError("this generator is closed; call csg_edge.load again")
            if self._runtime is None:
                self._runtime = _open_runtime(self.bundle, self.engine, threads=self._threads, cache=self._cache)
            return self._runtime

    def close(self) -> None:
        """Release the engine; closing twice is fine."""
        with self._lock:
            self._closed = True
            runtime, self._runtime = self._runtime, None
            self._slots.clear()
        if runtime is not None:
            runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.bundle.path.resolve(), "engine": self.engine, "threads": self._threads, "cache": self._cache,
            "choice": self.choice, "closed": self._closed,
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.bundle, self.engine, self.choice = read_bundle(state["path"]), state["engine"], state["choice"]
        self._threads, self._cache = state["threads"], state["cache"]
        self._runtime = None
        self._begin()
        self._closed = state["closed"]

    def _begin(self) -> None:
        self._closed = False
        self._lock = threading.Lock()
        self._slots: list[_Slot] = []  # idle ones
        _GENERATORS.add(self)

    def _after_fork(self) -> None:
        # The parent's threads and locks are gone. Taking its runtime apart would wait for them, so it is kept.
        if self._runtime is not None:
            _ABANDONED.append(self._runtime)
        self._runtime = None
        self._lock = threading.Lock()
        _ABANDONED.extend(self._slots)
        self._slots = []

    def _make_one(self, job: Job, images: Image) -> None:
        """One image into images[0], on the calling thread: nothing to overlap, so nothing to hand over."""
        runtime = self.runtime
        slot = self._slot(runtime)
        slot.fill([job])
        direct = len(slot.feeds["mask"]) == 1 and images.flags.c_contiguous
        runtime.run(slot.feeds, {"image": images} if direct else slot.results)
        if not direct:
            images[0] = slot.results["image"][0]
        self._give_back(slot)

    def _images(self, jobs: Iterable[Job], place: Callable[[int], Image]) -> Iterator[Image]:
        """Make images in order, each in the memory that `place` gives for its index; the next while one is made."""
        runtime = self.runtime
        waiting: deque[_Batch] = deque()
        try:
            for batch in _batches(jobs, place, self._rows(runtime)):
                slot = self._slot(runtime)
                slot.fill(batch.jobs)
                done = waiting.popleft().finish() if len(waiting) >= runtime.depth else []
                batch.start(runtime, slot, self._give_back)
                waiting.append(batch)
                yield from done
            while waiting:
                yield from waiting.popleft().finish()
        finally:
            for batch in waiting:
                batch.drop()

    def _rows(self, runtime: Runtime) -> int:
        """Images per inference: what the engine was built for, one where the batch is free.

        Batching more gains nothing on a CPU, and one image at a time gives the same bytes in every company.
        """
        return runtime.inputs[0].shape[0] or 1

    def _slot(self, runtime: Runtime) -> _Slot:
        with self._lock:
            if self._slots:
                return self._slots.pop()
        return _Slot(*runtime.allocate(self._rows(runtime)))

    def _give_back(self, slot: _Slot) -> None:
        with self._lock:
            if not self._closed:
                self._slots.append(slot)


@dataclass
class _Slot:
    """Input and output arrays of one inference, used again and again."""

    feeds: Results
    results: Results

    def fill(self, jobs: list[Job]) -> None:
        for row, (mask, context, seed) in enumerate(jobs):
            self.feeds["mask"][row] = mask
            self.feeds["context"][row] = context
            noise_for(seed, self.feeds["noise"].shape[1:], out=self.feeds["noise"][row])


class _Batch:
    """The images of one inference, from their jobs to their pixels."""

    def __init__(self, jobs: list[Job], images: list[Image]) -> None:
        self.jobs, self._images = jobs, images
        self._handle: Handle | None = None

    def start(self, runtime: Runtime, slot: _Slot, give_back: Callable[[_Slot], None]) -> None:
        self._slot, self._give_back = slot, give_back
        # One image is written where it belongs; of several, some may only fill up the batch.
        self._direct = len(slot.feeds["mask"]) == 1 and self._images[0].flags.c_contiguous
        results = {"image": self._images[0][None]} if self._direct else slot.results
        self._handle = runtime.start(slot.feeds, results)

    def finish(self) -> list[Image]:
        assert self._handle is not None
        self._handle.wait()
        if not self._direct:
            for row, image in enumerate(self._images):
                image[...] = self._slot.results["image"][row]
        self._give_back(self._slot)
        return self._images

    def drop(self) -> None:
        self._handle = None  # cancels, and waits until the memory is free


def _batches(jobs: Iterable[Job], place: Callable[[int], Image], rows: int) -> Iterator[_Batch]:
    gathered: list[Job] = []
    count = 0
    for job in jobs:
        gathered.append(job)
        if len(gathered) == rows:
            yield _Batch(gathered, [place(count + row) for row in range(rows)])
            count += rows
            gathered = []
    if gathered:
        yield _Batch(gathered, [place(count + row) for row in range(len(gathered))])


def open_engine(
    bundle: Bundle, engine: Engine, *, threads: int | None = None, cache: BlobCache | None = None
) -> Generator:
    """Open one engine of a bundle. Raises EngineError if its inputs or outputs are not what the manifest promises."""
    runtime = _open_runtime(bundle, engine, threads=threads, cache=cache)
    return Generator(bundle, engine, runtime, threads=threads, cache=cache)


def _open_runtime(bundle: Bundle, engine: Engine, *, threads: int | None, cache: BlobCache | None) -> Runtime:
    target = Target.parse(engine.target)
    runtime = runtime_class(target.runtime).open(
        bundle.file(engine.file), device=target.device, precision=target.precision, threads=threads, cache=cache,
        identity=identity(bundle, engine),
    )  # fmt: skip
    size, noise = bundle.manifest.image_size, bundle.manifest.noise_shape
    promised = {"mask": size, "context": size, "noise": noise, "image": size}
    found = {spec.name: spec.shape[1:] for spec in (*runtime.inputs, *runtime.outputs)}
    if found != promised:
        runtime.close()
        raise EngineError(f"{engine.file}: the engine has {found}, the manifest promises {promised}; export it again")
    return runtime


_GENERATORS: weakref.WeakSet[Generator] = weakref.WeakSet()
_ABANDONED: list[object] = []  # what a forked child must not take apart


def _after_fork_in_child() -> None:
    for generator in list(_GENERATORS):
        generator._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
