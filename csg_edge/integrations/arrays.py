"""The NumPy callable behind all integrations: a real pair of image and mask in, a synthetic pair out, now and then.

It may be pickled and forked: each process opens an engine of its own at its first image. What it draws follows from the
generator it is given; by Albumentations' calling convention, which gives none, from the process's own: that of torch
where torch is loaded (its data loader gives every worker another), else NumPy's.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.augment.make import changed
from csg_edge.augment.plan import Appearance, Plan, draw_look
from csg_edge.conditions.arrays import resize_image, resize_mask
from csg_edge.conditions.fibres import given_field
from csg_edge.conditions.files import list_images, read_context
from csg_edge.conditions.masks import vary_by
from csg_edge.errors import InputError
from csg_edge.generation.generator import Generator
from csg_edge.generation.loading import load
from csg_edge.labels import NO_MASK, LabelSchema
from csg_edge.storage import written_whole

if TYPE_CHECKING:  # it needs the quality extra, which images that are not checked do not
    from csg_edge.quality.evaluators import Evaluators
    from csg_edge.quality.memorisation import Reference

_LOOKS = 0x6C6F6F6B  # keeps draws of appearance apart from others of the same key
PLAN = Plan()  # what is not said otherwise
ATTEMPTS = 3  # of an image that is checked, before the real one stays
LOOK_EVERY = 32  # files written by one process between two looks at the size of the cache

Image = NDArray[np.uint8]


class CsgEdge:
    """Puts a synthetic image in the place of a real one.

    probability: of doing so. contexts: whose appearance images take: a folder, arrays (H, W) uint8, or None for the
    image itself; give images of training groups alone. appearance: how contexts are changed, None for not at all; vary,
    direction: as `csg-edge generate --vary` and `--fibre`. What is not given is as in a plan of `csg-edge augment`.
    check: least Dice (0 to 1) of every class, or of classes by name, that the shipped segmenter must reach on an image;
    below, another is drawn, ATTEMPTS in all, and then the pair stays as it is; it needs the quality extra. nearest: the
    same for the distance (0 to 1, `quality.memorisation`) to the nearest of contexts that is not the pair's own image;
    what is nearer than real images are to each other adds nothing to them. What `csg-edge augment` found right for a
    set stands in its augmented.json, under limits. classes: names of the mask's indices,
    background first, if they are not the bundle's. bundle, steps, runtime, device, precision: as `csg_edge.load`;
    threads: of each process's engine. variants: if not 0, only so many images are ever made of a pair, by turns of the
    draw; cache: a folder that keeps them, of at most about cache_mb megabytes.
    Raises InputError for options that cannot be used.
    """

    def __init__(
        self, *, probability: float = 0.5, contexts: Path | str | Sequence[Image] | None = None,
        vary: str | None = PLAN.vary, direction: str | None = None, appearance: Appearance | None = PLAN.appearance,
        check: float | Mapping[str, float] | None = None, nearest: float | None = None,
        classes: Sequence[str] | None = None,
        bundle: str | Path = "msk-256", steps: int = 1, runtime: str = "auto", device: str = "auto",
        precision: str = "auto", threads: int = 1, variants: int = 0, cache: Path | str | None = None,
        cache_mb: float = 500.0,
    ) -> None:  # fmt: skip
        if not 0.0 <= probability <= 1.0:
            raise InputError(f"probability {probability:g}: give a number from 0 to 1")
        if variants < 0 or (cache is not None and not variants):
            raise InputError("cache: it needs variants, the number of images that are ever made of a pair")
        if not cache_mb > 0:
            raise InputError(f"cache_mb {cache_mb:g}: give a number above 0")
        self.probability, self.vary, self.direction, self.appearance = probability, vary, direction, appearance
        for least in () if check is None else check.values() if isinstance(check, Mapping) else (check,):
            if not 0.0 <= least <= 1.0:
                raise InputError(f"check {least:g}: give a Dice from 0 to 1")
        if nearest is not None and not 0.0 <= nearest <= 1.0:
            raise InputError(f"nearest {nearest:g}: give a distance from 0 to 1")
        self.check, self.nearest = check, nearest
        self._load: dict[str, Any] = {
            "bundle": bundle, "steps": steps, "runtime": runtime, "device": device, "precision": precision,
            "threads": threads,
        }  # fmt: skip
        self._variants, self._cache = variants, None if cache is None else Path(cache)
        self._limit, self._written = cache_mb * 1e6, 0
        self._classes = None if classes is None else LabelSchema(tuple(classes))
        self._files: list[Path] = []
        self._contexts: list[Image | None] = [None]
        if isinstance(contexts, str | Path):
            self._files = list_images(Path(contexts), frame="all")
            self._contexts = [None] * len(self._files)
        elif contexts is not None:
            self._contexts = [np.asarray(context, np.uint8) for context in contexts]
            if not self._contexts:
                raise InputError("contexts: an empty list; give images, or None for each pair's own")
        self._own = contexts is None
        self._opened: Generator | None = None
        self._segmenter: Evaluators | None = None
        self._reference: Reference | None = None

    def make(self, image: Image, mask: Image, random: np.random.Generator) -> tuple[Image, Image]:
        """The pair, or with `probability` a synthetic one of the same size, (H, W) uint8 each.

        Raises InputError for arrays that the bundle cannot use.
        """
        if random.random() >= self.probability:
            return image, mask
        key = int(random.integers(self._variants)) if self._variants else int(random.integers(2**63))
        place = int(random.integers(len(self._contexts)))
        if self._cache is None:
            return self._made(image, mask, key, place)
        return self._kept(image, mask, key)

    def __call__(self, *, image: Image, mask: Image, **others: Any) -> dict[str, Any]:
        """Albumentations' calling convention: keywords in, a dictionary out; other keywords pass."""
        made, labels = self.make(np.asarray(image), np.asarray(mask), worker_random())
        return {**others, "image": made, "mask": labels}

    def _made(self, image: Image, mask: Image, key: int, place: int) -> tuple[Image, Image]:
        schema, size = self._generator().bundle.manifest.schema, self._generator().bundle.manifest.image_size
        there, back = self._tables(schema)
        given = resize_mask(there[mask], *size)
        checked = self.check is not None or self.nearest is not None
        for attempt in range(ATTEMPTS if checked else 1):
            made, labels = self._attempt(image, given, key + attempt, (place + attempt) % len(self._contexts))
            found = self.check is None or self._is_found(made, labels)
            if found and (self.nearest is None or self._is_new(made, image)):
                stored = back[resize_mask(labels, *mask.shape)]
                if (stored < 0).any():
                    raise InputError("vary: it brings a class that classes does not name; leave it out")
                return resize_image(made, *image.shape), stored.astype(np.uint8)
        return image, mask

    def _attempt(self, image: Image, labels: Image, key: int, place: int) -> tuple[Image, Image]:
        """Image and mask at the model's size; labels: the mask before it is varied."""
        generator = self._generator()
        manifest = generator.bundle.manifest
        schema, size = manifest.schema, manifest.image_size
        if self.vary is not None:
            labels = vary_by(labels, schema, self.vary, seed=key)
        field = None
        if self.direction is not None or manifest.fibre_shape is not None:
            field = given_field(labels, schema, direction=self.direction, vary=self.vary, seed=key)
        context = resize_image(image, *size) if self._own else self._context(place, size)
        if self.appearance is not None:
            context = changed(context, draw_look(self.appearance, np.random.default_rng([key, _LOOKS])))
        return generator.generate_one(labels, context, key, field=field), labels

    def _is_found(self, image: Image, labels: Image) -> bool:
        """Whether the segmenter finds every class that is large enough to judge."""
        from csg_edge.quality.evaluators import SHIPPED, load_evaluators
        from csg_edge.quality.segmentation import dice_by_image

        schema = self._generator().bundle.manifest.schema
        if self._segmenter is None:
            self._segmenter = load_evaluators(SHIPPED, schema=schema)
        (score,) = dice_by_image(self._segmenter.segment(image[None]), labels[None])
        every = self.check if isinstance(self.check, Mapping) else dict.fromkeys(schema.names, self.check or 0.0)
        least = {schema.index(name): value for name, value in every.items()}
        return all(value >= least.get(index, 0.0) for index, value in score.items())

    def _is_new(self, image: Image, own: Image) -> bool:
        """Whether an image is near to none of the contexts, nor nearly the pair's own image."""
        from csg_edge.quality.memorisation import COPY, Reference, image_distances

        size = image.shape
        own = resize_image(own, *size)
        if image_distances(image[None], own[None])[0, 0] < COPY:
            return False
        if self._own:
            return True
        if self._reference is None:
            contexts = [self._context(place, size) for place in range(len(self._contexts))]
            self._reference = Reference(np.stack(contexts))
        others = self._reference.distances(own[None])[0] >= COPY
        return bool(self._reference.distances(image[None])[0].min(where=others, initial=1.0) >= (self.nearest or 0.0))

    def _kept(self, image: Image, mask: Image, variant: int) -> tuple[Image, Image]:
        """A variant from the cache, made if it is not there; seed and context follow from the pair and its number."""
        assert self._cache is not None
        how = self.vary, self.direction, self.appearance, self.check, self.nearest, sorted(self._load.items())
        digest = hashlib.sha256(repr((image.shape, variant, *how)).encode())
        for array in (image, mask):
            digest.update(np.ascontiguousarray(array).tobytes())
        path = self._cache / f"{digest.hexdigest()}.npz"
        with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            with np.load(path, allow_pickle=False) as kept:
                found = kept["image"], kept["mask"]
            os.utime(path)  # used last
            return found
        key = int.from_bytes(digest.digest()[:7])
        made = self._made(image, mask, key, key % len(self._contexts))
        self._cache.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, image=made[0], mask=made[1])
        self._written += 1
        if self._written % LOOK_EVERY == 1:
            self._forget()
        return made

    def _forget(self) -> None:
        """Remove what was used longest ago until the cache is within its limit."""
        assert self._cache is not None
        found = []
        for path in self._cache.glob("*.npz"):
            with suppress(OSError):  # another process removed it
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit:
                return
            with suppress(OSError):
                path.unlink()
            total -= size

    def _context(self, place: int, size: tuple[int, int]) -> Image:
        if self._contexts[place] is None:
            self._contexts[place] = resize_image(read_context(self._files[place]), *size)
        context = self._contexts[place]
        assert context is not None
        return context

    def _generator(self) -> Generator:
        if self._opened is None:
            self._opened = load(**self._load)
        return self._opened

    def _tables(self, schema: LabelSchema) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        """The mask's index -> the schema's, and back, -1 where there is none."""
        there, back = np.full(256, NO_MASK, np.uint8), np.full(256, -1, np.int16)
        own = schema if self._classes is None else self._classes
        there[: len(own)] = [schema.index(name) for name in own.names]
        back[there[: len(own)]] = np.arange(len(own))
        back[NO_MASK] = NO_MASK
        return there, back


def worker_random() -> np.random.Generator:
    """A generator seeded from the process's own: torch's where it is loaded, else NumPy's."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return np.random.default_rng(int(torch.randint(2**62, ())))
    return np.random.default_rng(int(np.random.randint(2**62, dtype=np.int64)))  # what the user seeds
