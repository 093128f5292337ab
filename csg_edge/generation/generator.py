"""The generator: what users hold. A bundle and a runtime; masks, contexts and seeds in, uint8 images out."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from csg_edge.bundle.manifest import Bundle, Engine, Target, read_bundle
from csg_edge.cache import BlobCache
from csg_edge.conditions.arrays import check_context, check_mask, resize_image, resize_mask
from csg_edge.conditions.fibres import Field, check_field
from csg_edge.errors import EngineError, InputError
from csg_edge.generation.inference import Batch, Place, Request, Slot, batches
from csg_edge.generation.selection import Choice, identity
from csg_edge.machine import default_threads
from csg_edge.noise import check_seed
from csg_edge.runtimes import Runtime, runtime_class

Image = NDArray[np.uint8]


class Generator:
    """Makes ultrasound images from masks and contexts with one engine. Use it as a context manager or call `close`.

    It may be used by any number of threads. A forked child, or a process that it was pickled to (a worker of PyTorch's
    DataLoader), opens the engine anew at its first image. `choice` says why this engine was taken.
    """

    _lock: threading.Lock

    def __init__(
        self, bundle: Bundle, engine: Engine, runtime: Runtime, *, threads: int | None = None, streams: int = 1,
        cache: BlobCache | None = None, choice: Choice | None = None,
    ) -> None:  # fmt: skip
        self.bundle, self.engine = bundle, engine
        self.choice = choice or Choice(engine.target, "as asked for")
        self._threads, self._streams, self._cache = threads, streams, cache
        self._runtime: Runtime | None = runtime
        self._begin()

    @overload
    def generate(
        self, masks: Sequence[Image], contexts: Sequence[Image], seeds: Sequence[int], *, out: Image | None = None,
        fibres: Sequence[Field | None] | None = None, return_fibres: Literal[False] = False,
    ) -> Image: ...  # fmt: skip

    @overload
    def generate(
        self, masks: Sequence[Image], contexts: Sequence[Image], seeds: Sequence[int], *, out: Image | None = None,
        fibres: Sequence[Field | None] | None = None, return_fibres: Literal[True],
    ) -> tuple[Image, Field]: ...  # fmt: skip

    def generate(
        self, masks: Sequence[Image], contexts: Sequence[Image], seeds: Sequence[int], *, out: Image | None = None,
        fibres: Sequence[Field | None] | None = None, return_fibres: bool = False,
    ) -> Image | tuple[Image, Field]:  # fmt: skip
        """One image per mask.

        masks: N (H, W) uint8 class indices; contexts: N, or one for all, (H, W) uint8 grey levels. A mask of 255
        everywhere means no mask, a context of zeros no context. Any size, stretched to the bundle's image size. seeds:
        N integers in 0..2^64-1; the same mask, context, seed and field give the same bytes whatever else is in the
        call. out: (N, H, W) uint8 to write into. fibres: N, or one for all, fibre fields (3, 16, 16) float32 as
        `csg_edge.conditions.fibres` has them; None: the graph draws it. Returns (N, H, W) uint8, and with return_fibres
        also the fields that were used, (N, 3, 16, 16) float32, which given again make the same images. Raises
        InputError before anything is generated, also for fields where the bundle takes none; EngineError if the
        generator is closed or the runtime fails.
        """
        if not all(hasattr(given, "__len__") for given in (masks, contexts, seeds)):
            raise InputError("masks, contexts and seeds: give lists or arrays; `stream` takes any iterable")
        if len(contexts) not in (1, len(masks)) or len(seeds) != len(masks) or not len(masks):
            raise InputError(
                f"{len(masks)} masks, {len(contexts)} contexts, {len(seeds)} seeds; give at least one mask, "
                "a seed for each mask, and one context or one for each mask"
            )
        if fibres is not None and len(fibres) not in (1, len(masks)):
            raise InputError(f"{len(masks)} masks, {len(fibres)} fibre fields; give one, or one for each mask")
        shape = (len(masks), *self.bundle.manifest.image_size)
        if out is not None and (out.shape != shape or out.dtype != np.uint8 or not out.flags.writeable):
            raise InputError(f"out: {out.dtype} {out.shape}; give a writeable uint8 array {shape}")
        used: Field | None = np.empty((len(masks), *self._fibre_shape()), np.float32) if return_fibres else None
        asked = [None] if fibres is None else fibres
        given = [self.prepare_field(field, name=f"fibres[{i}]") for i, field in enumerate(asked)]
        prepared = [self.prepare_context(context, name=f"contexts[{i}]") for i, context in enumerate(contexts)]
        jobs = [
            Request(
                self.prepare_mask(mask, name=f"masks[{i}]"),
                prepared[i % len(prepared)],
                check_seed(seeds[i]),
                given[i % len(given)],
            )
            for i, mask in enumerate(masks)
        ]
        images: Image = np.empty(shape, np.uint8) if out is None else out
        places = [Place(image, None if used is None else used[i]) for i, image in enumerate(images)]
        if len(jobs) == 1:
            self._make_one(jobs[0], places[0])
        else:
            for _ in self._images(jobs, places.__getitem__):
                pass
        return images if used is None else (images, used)

    def generate_one(self, mask: Image, context: Image, seed: int, *, field: Field | None = None) -> Image:
        """(H, W) mask, (H, W) context, a seed and a fibre field or None -> (H, W) image; as `generate` for one."""
        image: Image = self.generate([mask], [context], [seed], fibres=[field])[0]
        return image

    def stream(
        self, masks: Iterable[Image], contexts: Image | Iterable[Image], seeds: Iterable[int],
        fibres: Field | Iterable[Field | None] | None = None,
    ) -> Iterator[Image]:  # fmt: skip
        """Images (H, W) uint8 in the order of the masks, for iterables of any length, in constant memory.

        contexts: one (H, W) array for all masks, read and resized once, or an iterable with one for each mask. seeds:
        an iterable with at least as many, `itertools.count()` for example. fibres: one field for all, an iterable with
        one or None for each mask, or None. While the device works on one image the next is made ready. Errors as in
        `generate`, when it is that mask's turn; closing the iterator drops what is under way.
        """
        size = self.bundle.manifest.image_size
        made = self._images(self._jobs(masks, contexts, seeds, fibres), lambda index: Place(np.empty(size, np.uint8)))
        return (place.image for place in made)

    def stream_with_fibres(
        self, masks: Iterable[Image], contexts: Image | Iterable[Image], seeds: Iterable[int],
        fibres: Field | Iterable[Field | None] | None = None,
    ) -> Iterator[tuple[Image, Field]]:  # fmt: skip
        """As `stream`, each image with the fibre field (3, 16, 16) float32 that was used for it."""
        size, jobs = self.bundle.manifest.image_size, self._jobs(masks, contexts, seeds, fibres)
        shape = self._fibre_shape()
        for place in self._images(jobs, lambda index: Place(np.empty(size, np.uint8), np.empty(shape, np.float32))):
            assert place.field is not None
            yield place.image, place.field

    def _jobs(
        self, masks: Iterable[Image], contexts: Image | Iterable[Image], seeds: Iterable[int],
        fibres: Field | Iterable[Field | None] | None,
    ) -> Iterator[Request]:  # fmt: skip
        shared = self.prepare_context(contexts, name="context") if isinstance(contexts, np.ndarray) else None
        each = None if shared is not None else iter(contexts)
        one = fibres is None or (isinstance(fibres, np.ndarray) and fibres.ndim == 3)
        field = self.prepare_field(fibres, name="fibres") if one else None  # type: ignore[arg-type]
        fields = None if one else iter(fibres)  # type: ignore[arg-type]
        seeds = iter(seeds)
        for index, mask in enumerate(masks):
            ready = self.prepare_mask(mask, name=f"masks[{index}]")
            try:
                seed = check_seed(next(seeds))
                look = shared if each is None else self.prepare_context(next(each), name=f"contexts[{index}]")
                if fields is not None:
                    field = self.prepare_field(next(fields), name=f"fibres[{index}]")
            except StopIteration:
                raise InputError(f"masks[{index}] has no context, seed or field; give one for each mask") from None
            assert look is not None
            yield Request(ready, look, seed, field)

    def prepare_field(self, field: Field | None, *, name: str) -> Field | None:
        """Check what is given of a fibre field. Raises InputError where the bundle takes none."""
        if field is None:
            return None
        self._fibre_shape()
        return check_field(field, name=name)

    def _fibre_shape(self) -> tuple[int, int, int]:
        """Of the bundle's fibre fields. Raises InputError where it takes none."""
        shape = self.bundle.manifest.fibre_shape
        if shape is None:
            raise InputError(f"{self.bundle.manifest.name}: this bundle takes no fibre field; leave it out, or export "
                             "the bundle of a student that does")  # fmt: skip
        return shape

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
                self._runtime = _open_runtime(
                    self.bundle, self.engine, threads=self._threads, streams=self._streams, cache=self._cache
                )
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
            "path": self.bundle.path.resolve(), "engine": self.engine, "threads": self._threads,
            "streams": self._streams, "cache": self._cache, "choice": self.choice, "closed": self._closed,
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.bundle, self.engine, self.choice = read_bundle(state["path"]), state["engine"], state["choice"]
        self._threads, self._streams, self._cache = state["threads"], state["streams"], state["cache"]
        self._runtime = None
        self._begin()
        self._closed = state["closed"]

    def _begin(self) -> None:
        self._closed = False
        self._lock = threading.Lock()
        self._slots: list[Slot] = []  # idle ones
        _GENERATORS.add(self)

    def _after_fork(self) -> None:
        # The parent's threads and locks are gone. Taking its runtime apart would wait for them, so it is kept.
        if self._runtime is not None:
            _ABANDONED.append(self._runtime)
        self._runtime = None
        self._lock = threading.Lock()
        _ABANDONED.extend(self._slots)
        self._slots = []

    def _make_one(self, job: Request, place: Place) -> None:
        """One image, on the calling thread: nothing to overlap, so nothing to hand over."""
        runtime = self.runtime
        slot = self._slot(runtime)
        slot.fill([job])
        runtime.run(slot.feeds, slot.results_into(place.image))
        slot.empty([place])
        self._give_back(slot)

    def _images(self, jobs: Iterable[Request], place: Callable[[int], Place]) -> Iterator[Place]:
        """Make images in order, each in the place for its index; the next while one is made."""
        runtime = self.runtime
        waiting: deque[Batch] = deque()
        try:
            for batch in batches(jobs, place, self._rows(runtime)):
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

    def _slot(self, runtime: Runtime) -> Slot:
        with self._lock:
            if self._slots:
                return self._slots.pop()
        return Slot(*runtime.allocate(self._rows(runtime)))

    def _give_back(self, slot: Slot) -> None:
        with self._lock:
            if not self._closed:
                self._slots.append(slot)


def open_engine(
    bundle: Bundle, engine: Engine, *, threads: int | None = None, streams: int = 1, cache: BlobCache | None = None
) -> Generator:
    """Open one engine of a bundle. Raises EngineError if its inputs or outputs are not what the manifest promises."""
    runtime = _open_runtime(bundle, engine, threads=threads, streams=streams, cache=cache)
    return Generator(bundle, engine, runtime, threads=threads, streams=streams, cache=cache)


def _open_runtime(
    bundle: Bundle, engine: Engine, *, threads: int | None, streams: int, cache: BlobCache | None
) -> Runtime:
    target = Target.parse(engine.target)
    threads = default_threads() if threads is None else threads
    runtime = runtime_class(target.runtime).open(
        bundle.file(engine.file), device=target.device, precision=target.precision, threads=threads,
        streams=streams, cache=cache, identity=identity(bundle, engine),
    )  # fmt: skip
    ports = {**bundle.manifest.inputs, **bundle.manifest.outputs}
    promised = {name: shape for name, (_, shape) in ports.items()}
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
