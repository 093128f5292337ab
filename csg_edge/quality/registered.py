"""A pre-registered reader study: which real images are shown, and of which mask, context and seed each synthetic one
is.

The cases are drawn once, before any image of them is made, and hashed. Whoever has the same public sets then shows the
same real images and synthetic ones of the same cases, so that the results of two sites, or of two bundles, differ by
readers and bundle alone. The file names images and holds none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError
from csg_edge.generation.generator import Generator
from csg_edge.progress import Progress
from csg_edge.quality.cases import Cases, set_of
from csg_edge.quality.turing import Study, choice_notes, choose_images, pixel_digest, write_study
from csg_edge.storage import write_json

FORMAT = 1
SHIPPED = Path(__file__).parent / "reader_study_msk.json"


@dataclass(frozen=True)
class Picture:
    """A real image or a mask of a public set, with a SHA-256 over its shape and pixels at the study's size."""

    group: str  # SET/GROUP
    name: str
    sha256: str


@dataclass(frozen=True)
class Registration:
    """The cases of a study. sha256: of everything else in the file, in canonical JSON."""

    image_size: int
    classes: tuple[str, ...]
    split: str
    seed: int
    real: tuple[Picture, ...]
    masks: tuple[Picture, ...]  # of the synthetic images
    contexts: tuple[Picture, ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...]  # where fairness fell short

    @property
    def sha256(self) -> str:
        """The registration's hash."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def register(
    real: LabelledSet, cases: Cases, *, count: int, classes: Sequence[str], split: str, seed: int
) -> Registration:
    """Draw `count` cases, half real and half synthetic, as `turing.choose_images` pairs them; no image is made.

    Raises InputError for more than there are, or fewer than two.
    """
    half = count // 2
    single = cases.wanted.take(range(cases.single))
    if not 0 < half <= min(len(real), len(single)):
        raise InputError(f"{count} cases of {len(real)} real images and {len(single)} masks; ask for fewer, at least 2")
    # Only masks, contexts and groups decide, so the images may be empty.
    planned = LabelledSet(
        np.zeros_like(single.images), single.masks, single.names, single.groups,
        cases.contexts.images[: cases.single],
    )  # fmt: skip
    choice = choose_images(real, planned, half, np.random.default_rng(seed))
    chosen = list(choice.synthetic)
    contexts = cases.contexts.take(chosen)
    return Registration(
        image_size=real.images.shape[1], classes=tuple(classes), split=split, seed=seed,
        real=_pictures(real.take(choice.real), real.take(choice.real).images),
        masks=_pictures(single.take(chosen), single.take(chosen).masks),
        contexts=_pictures(contexts, contexts.images),
        seeds=tuple(cases.seeds[index] for index in chosen), notes=choice_notes(choice, count),
    )  # fmt: skip


def write_registration(found: Registration, path: Path) -> None:
    """Write it with its hash, whole or not at all. Raises InputError for a file that is there already."""
    if path.exists():
        raise InputError(f"{path}: already there, and a registration is drawn once; give another name")
    write_json(path, {"format": FORMAT, "sha256": found.sha256, **asdict(found)})


def read_registration(path: Path) -> Registration:
    """Raises InputError for a file that is none, or whose hash does not hold."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (found := values.pop("format")) != FORMAT:
            raise ValueError(f"format {found}, this csg-edge reads {FORMAT}")
        digest = values.pop("sha256")
        for key in ("real", "masks", "contexts"):
            values[key] = tuple(Picture(**item) for item in values[key])
        for key in ("classes", "seeds", "notes"):
            values[key] = tuple(values[key])
        registration = Registration(**values)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: no registered reader study ({error}); give the file that --register wrote") from None
    if registration.sha256 != digest:
        raise InputError(f"{path}: altered since it was registered; take the file as it was published")
    return registration


def make_registered(
    registration: Registration, images: LabelledSet, generator: Generator, out: Path, *, bundle: Mapping[str, str]
) -> Study:
    """Make the synthetic images of the cases and write the study.

    images: all images of the public sets that the registration names, at its size. bundle: what the key says of the
    bundle. Raises InputError for an image that is missing or not the registered one, or a bundle of other classes.
    """
    if tuple(generator.bundle.manifest.labels) != registration.classes:
        raise InputError(
            f"the study is registered for the classes {', '.join(registration.classes)}; give a bundle that has them"
        )
    place = {(group, name): index for index, (group, name) in enumerate(zip(images.groups, images.names, strict=True))}
    real = images.take(_find(registration.real, images, images.images, place))
    masks = images.take(_find(registration.masks, images, images.masks, place))
    contexts = images.take(_find(registration.contexts, images, images.images, place))
    progress = Progress("registered study", len(masks), unit="images")
    made = []
    for mask, context, seed in zip(masks.masks, contexts.images, registration.seeds, strict=True):
        made.append(generator.generate_one(mask, context, seed))
        progress.advance()
    about = {"registration": registration.sha256, **bundle}
    synthetic = masks.with_images(np.stack(made))
    # The registration is public: the order must not follow from it.
    order = np.random.default_rng(list(pixel_digest(registration.seed, real, synthetic)))
    return write_study(
        real, synthetic, out, generator=order,
        notes=registration.notes, about=about,
    )  # fmt: skip


def _pictures(samples: LabelledSet, arrays: NDArray[np.uint8]) -> tuple[Picture, ...]:
    return tuple(
        Picture(group, name, _digest(array))
        for group, name, array in zip(samples.groups, samples.names, arrays, strict=True)
    )


def _find(
    wanted: Sequence[Picture], images: LabelledSet, arrays: NDArray[np.uint8], place: Mapping[tuple[str, str], int]
) -> list[int]:
    """Positions of the registered pictures among the images."""
    found = []
    for picture in wanted:
        index = place.get((picture.group, picture.name))
        if index is None:
            raise InputError(
                f"--data: no image {picture.name} of group {picture.group}, which the registered study shows; give the "
                f"set {set_of(picture.group)} with its held-out groups"
            )
        if _digest(arrays[index]) != picture.sha256:
            raise InputError(
                f"--data: {images.groups[index]} {picture.name} is not the registered image; give the set as published"
            )
        found.append(index)
    return found


def _digest(array: NDArray[np.uint8]) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
