"""A blinded reader study: real and synthetic images shuffled into one page that a reader opens from a file.

What keeps it blind: both kinds have one size and one encoding, stored without compression, so that neither file size
nor metadata tells them apart; the page holds opaque names and no truth; the order of images depends on every image that
was offered, so that nobody can work it out from the page and a guessed seed; each reader sees an order of their own.

What keeps it fair: a real and a synthetic image with the same classes enter as a pair, over as many groups as there
are; a synthetic image is not shown beside the real image of its own mask, nor beside the image it took as its context.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import InputError
from csg_edge.quality import pages

FORMAT = 1
PAGE, KEY, README = "index.html", "key.json", "README.txt"
REAL, SYNTHETIC = "real", "synthetic"
MIN_PIXELS = 50  # a class that covers less of an image does not count as its content
# Image names are letters alone: a spreadsheet turns hexadecimal such as 00e12345 into a number. Without vowels and
# look-alikes they spell nothing.
LETTERS = "bcdfghjkmnpqrstvwxz"
NAME_LENGTH = 8


@dataclass(frozen=True)
class Study:
    """A written study; `notes` says where fairness or size fell short of what was asked."""

    id: str
    page: Path
    key: Path
    images: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """Positions of the images to show, and how often a wish had to be given up (see `choose_images`)."""

    real: tuple[int, ...]
    synthetic: tuple[int, ...]
    other_classes: int
    shared_group: int
    own_source: int
    same_mask: int


def make_study(real: LabelledSet, synthetic: LabelledSet, out: Path, *, count: int, seed: int) -> Study:
    """Write OUT/index.html for the readers; OUT/key.json and OUT/README.txt for the study leader alone.

    count: images in all, half of each kind; an odd one is rounded down. The same samples and seed give the same files.
    Raises InputError for too few images, images of different sizes, or a folder that holds another study's key.
    """
    half = count // 2
    if half < 1:
        raise InputError(f"{count} images cannot be half real and half synthetic; ask for 2 or more")
    for kind, samples in ((REAL, real), (SYNTHETIC, synthetic)):
        if len(samples) < half:
            raise InputError(
                f"{half} {kind} images are needed and {len(samples)} are there; ask for {2 * len(samples)} or give more"
            )
    generator = np.random.default_rng(list(pixel_digest(seed, real, synthetic)))
    choice = choose_images(real, synthetic, half, generator)
    return write_study(
        real.take(choice.real), synthetic.take(choice.synthetic), out,
        generator=generator, notes=choice_notes(choice, count), about={"seed": seed},
    )  # fmt: skip


def write_study(
    real: LabelledSet, synthetic: LabelledSet, out: Path, *, generator: np.random.Generator, notes: tuple[str, ...],
    about: dict[str, Any],
) -> Study:  # fmt: skip
    """Write a study of all the given images, in an order and under names drawn from `generator`.

    about: what the key says of the study beside the truth. Raises InputError for images of different sizes, or a folder
    that holds another study's key.
    """
    if real.images.shape[1:] != synthetic.images.shape[1:]:
        raise InputError(
            f"real images of {real.images.shape[1:]} and synthetic ones of {synthetic.images.shape[1:]}; "
            "a size would give them away: read both at one size"
        )
    shown = [(REAL, real, index) for index in range(len(real))]
    shown += [(SYNTHETIC, synthetic, index) for index in range(len(synthetic))]
    shown = [shown[index] for index in generator.permutation(len(shown))]
    names = _opaque_names(len(shown), generator)
    files = [pages.png_bytes(samples.images[index], compression=0) for _, samples, index in shown]
    study = _study_id(names, files)
    _refuse_other_study(out / KEY, study)
    page = _page(study, names, files, real.images.shape[1:])
    truth: dict[str, Any] = {
        name: {"truth": kind, "source": samples.names[index], "group": samples.groups[index]}
        for name, (kind, samples, index) in zip(names, shown, strict=True)
    }
    key = {
        "format": FORMAT,
        "study": study,
        **about,
        "notes": list(notes),
        "images": truth,
    }
    pages.write_text(out / KEY, json.dumps(key, indent=2) + "\n")
    pages.write_text(out / README, pages.render("turing_readme.txt", study=study, images=len(names), notes=notes))
    pages.write_text(out / PAGE, page)
    return Study(study, out / PAGE, out / KEY, len(names), notes)


def choose_images(real: LabelledSet, synthetic: LabelledSet, half: int, generator: np.random.Generator) -> Choice:
    """Choose `half` pairs of a real and a synthetic image, greedily, one pair at a time.

    Wishes in falling order: a synthetic image's own source (the real image of its mask, or its context) is not shown;
    no two synthetic images share a mask; both of a pair hold the same classes; no group appears both real and
    synthetic; groups are used evenly; the areas of the classes are alike. What is still equal is decided by chance.
    """
    real_contents, synthetic_contents = _contents(real), _contents(synthetic)
    real_areas, synthetic_areas = _areas(real), _areas(synthetic)
    real_marks = [{_mark(mask), _mark(image)} for mask, image in zip(real.masks, real.images, strict=True)]
    contexts = synthetic.masks if synthetic.contexts is None else synthetic.contexts
    synthetic_marks = [{_mark(mask), _mark(image)} for mask, image in zip(synthetic.masks, contexts, strict=True)]
    real_left = [int(index) for index in generator.permutation(len(real))]
    synthetic_left = [int(index) for index in generator.permutation(len(synthetic))]
    real_groups: Counter[str] = Counter()
    synthetic_groups: Counter[str] = Counter()
    real_sources: set[bytes] = set()
    synthetic_sources: set[bytes] = set()
    masks = [_mark(mask) for mask in synthetic.masks]
    masks_used: set[bytes] = set()
    pairs: list[tuple[int, int]] = []
    for _ in range(half):
        offered = {synthetic_contents[index] for index in synthetic_left}

        def real_cost(index: int, offered: set[frozenset[int]] = offered) -> tuple[float, ...]:
            return (
                not real_marks[index].isdisjoint(synthetic_sources),
                real_contents[index] not in offered,
                real.groups[index] in synthetic_groups,
                real_groups[real.groups[index]],
            )

        first = min(real_left, key=real_cost)
        real_left.remove(first)
        real_groups[real.groups[first]] += 1
        real_sources.update(real_marks[first])

        def synthetic_cost(index: int, first: int = first) -> tuple[float, ...]:
            return (
                not synthetic_marks[index].isdisjoint(real_sources),
                masks[index] in masks_used,
                synthetic_contents[index] != real_contents[first],
                synthetic.groups[index] in real_groups,
                synthetic_groups[synthetic.groups[index]],
                float(np.abs(synthetic_areas[index] - real_areas[first]).sum()),
            )

        second = min(synthetic_left, key=synthetic_cost)
        synthetic_left.remove(second)
        synthetic_groups[synthetic.groups[second]] += 1
        synthetic_sources.update(synthetic_marks[second])
        masks_used.add(masks[second])
        pairs.append((first, second))
    return Choice(
        real=tuple(first for first, _ in pairs),
        synthetic=tuple(second for _, second in pairs),
        other_classes=sum(real_contents[first] != synthetic_contents[second] for first, second in pairs),
        shared_group=sum(synthetic.groups[second] in real_groups for _, second in pairs),
        own_source=sum(not synthetic_marks[second].isdisjoint(real_sources) for _, second in pairs),
        same_mask=half - len(masks_used),
    )


def _contents(samples: LabelledSet) -> list[frozenset[int]]:
    counts = [np.bincount(mask.ravel(), minlength=256) for mask in samples.masks]
    return [frozenset(int(index) for index in np.flatnonzero(count >= MIN_PIXELS)) for count in counts]


def _areas(samples: LabelledSet) -> list[NDArray[np.float64]]:
    return [np.bincount(mask.ravel(), minlength=256) / mask.size for mask in samples.masks]


def _mark(image: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()


def pixel_digest(seed: int, *parts: LabelledSet) -> bytes:
    """What the order of a study is drawn from: nobody can work it out who has not all of its images."""
    digest = hashlib.sha256(str(seed).encode())
    for samples in parts:
        digest.update(np.ascontiguousarray(samples.images).tobytes())
        digest.update("\n".join(samples.names).encode())
    return digest.digest()


def _opaque_names(count: int, generator: np.random.Generator) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(LETTERS[index] for index in generator.integers(len(LETTERS), size=NAME_LENGTH))] = None
    return list(names)


def _study_id(names: list[str], files: list[bytes]) -> str:
    digest = hashlib.sha256()
    for name, data in zip(names, files, strict=True):
        digest.update(name.encode() + data)
    return f"study-{digest.hexdigest()[:16]}"


def choice_notes(choice: Choice, count: int) -> tuple[str, ...]:
    """Where fairness or size fell short of what was asked."""
    half = len(choice.real)
    notes = [f"{count} is odd: {2 * half} images, half of each kind"] if count % 2 else []
    if choice.other_classes:
        notes.append(f"{choice.other_classes} of {half} pairs hold different classes: content may give some away")
    if choice.shared_group:
        notes.append(f"{choice.shared_group} of {half} synthetic images share a group with a real one: too few groups")
    if choice.own_source:
        notes.append(f"{choice.own_source} of {half} synthetic images are shown with the real image they came from")
    if choice.same_mask:
        notes.append(f"{choice.same_mask} of {half} synthetic images repeat the mask of another: too few masks")
    return tuple(notes)


def _refuse_other_study(key: Path, study: str) -> None:
    if not key.exists():
        return
    try:
        present = json.loads(key.read_text(encoding="utf-8"))["study"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        present = "something else"
    if present != study:
        raise InputError(f"{key}: holds the key of {present}, whose answers would be lost; choose another folder")


def _page(study: str, names: list[str], files: list[bytes], size: tuple[int, ...]) -> str:
    from markupsafe import Markup

    script, style = pages.read_asset("turing.js"), pages.read_asset("turing.css")
    images = [{"id": name, "src": pages.data_uri(data)} for name, data in zip(names, files, strict=True)]
    # Markup is safe here: our own assets, and JSON of hexadecimal, letters and base64 alone.
    return pages.render(
        "turing.html",
        study=study,
        count=len(names),
        height=size[0],
        width=size[1],
        script=Markup(script),
        style=Markup(style),
        script_source=Markup(pages.content_security_source(script)),
        style_source=Markup(pages.content_security_source(style)),
        data=Markup(json.dumps({"study": study, "images": images})),
    )
