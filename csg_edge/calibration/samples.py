"""What a student is calibrated on: real masks, contexts and noise of train groups, named by a list to commit.

A list holds ids, never pixels: set, group, image (whose mask is used), the image that supplies the context, the seed
of the noise. The same list over the same data gives the same calibration, bit for bit.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csg_edge.bundle.manifest import Manifest
from csg_edge.conditions.arrays import resize_image, resize_mask
from csg_edge.datasets.labelled_set import class_table, find_sets, open_set
from csg_edge.datasets.layouts import Example, FolderSet
from csg_edge.datasets.packed import PackedSet
from csg_edge.errors import InputError
from csg_edge.noise import check_seed, noise_for
from csg_edge.runtimes.base import Results

SPLIT = "train"
MIN_SAMPLES = 2

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """One calibration sample by its ids; `context` is an image of another group of the same set."""

    set: str
    group: str
    image: str
    context: str
    seed: int


COLUMNS = tuple(field.name for field in fields(Sample))


@dataclass(frozen=True)
class CalibrationSet:
    """Samples with their pixels. masks, contexts: (N, H, W) uint8 at the bundle's image size, in its label schema."""

    samples: tuple[Sample, ...]
    masks: Image
    contexts: Image
    noise_shape: tuple[int, int, int]
    fingerprint: str  # SHA-256 over pixels and seeds
    fibre_shape: tuple[int, int, int] | None = None  # of the fibre field, where the graph takes one

    def __len__(self) -> int:
        return len(self.samples)

    def feeds(self, index: int) -> Results:
        """The inputs of a graph for one sample: mask and context (1, H, W) uint8, noise (1, C, h, w) float32.

        Of the fibre field nothing is given: what the graph draws is like what it is given.
        """
        noise = noise_for(self.samples[index].seed, self.noise_shape)[None]
        feeds = {"mask": self.masks[index][None], "context": self.contexts[index][None], "noise": noise}
        return feeds if self.fibre_shape is None else {**feeds, "fibre": np.zeros((1, *self.fibre_shape), np.float32)}

    def __iter__(self) -> Iterator[Results]:
        return (self.feeds(index) for index in range(len(self)))

    def take(self, count: int) -> CalibrationSet:
        """The first `count` samples: lists go round the sets, so any beginning is a fair choice."""
        fewer = self.samples[:count], self.masks[:count], self.contexts[:count]
        return _with_fingerprint(*fewer, self.noise_shape, self.fibre_shape)


def draw_samples(roots: Sequence[Path], *, count: int, seed: int) -> tuple[Sample, ...]:
    """Draw from the train groups of every set below `roots`: evenly over sets, then over groups; no image twice.

    Raises InputError if there are fewer than `count` train images, or a set has one train group only.
    """
    if count < MIN_SAMPLES:
        raise InputError(f"--samples {count}: give at least {MIN_SAMPLES}; 300 is the usual number")
    queues = [
        _set_order(open_set(directory), np.random.default_rng([seed, number]))
        for number, directory in enumerate(directory for root in roots for directory in find_sets(root))
    ]
    available = sum(map(len, queues))
    if available < count:
        raise InputError(
            f"--samples {count}: the data has {available} images of train groups; give more data or "
            f"--samples {available}"
        )
    samples: list[Sample] = []
    while len(samples) < count:
        for queue in queues:
            if queue and len(samples) < count:
                samples.append(queue.pop(0))
    return tuple(samples)


def read_list(path: Path, *, count: int) -> tuple[Sample, ...]:
    """The first `count` samples of a list written by `write_list`.

    Raises InputError for a file that is none, or holds fewer samples than asked.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        samples = tuple(
            Sample(row["set"], row["group"], row["image"], row["context"], check_seed(int(row["seed"]))) for row in rows
        )
    except OSError as error:
        raise InputError(f"--list {path}: cannot read ({error.strerror}); give a list of samples") from None
    except (KeyError, TypeError, ValueError, InputError):
        raise InputError(f"--list {path}: not a list of samples; it has the columns {','.join(COLUMNS)}") from None
    if count < MIN_SAMPLES:
        raise InputError(f"--samples {count}: give at least {MIN_SAMPLES}; 300 is the usual number")
    if len(samples) < count:
        raise InputError(f"--list {path}: {len(samples)} samples, {count} asked for; give --samples {len(samples)}")
    return samples[:count]


def write_list(path: Path, samples: Sequence[Sample]) -> None:
    """Write a list as CSV, one sample a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *map(astuple, samples)])
    path.write_text(text.getvalue(), encoding="utf-8")


def read_samples(roots: Sequence[Path], samples: Sequence[Sample], manifest: Manifest) -> CalibrationSet:
    """Find the samples in the data by their ids and read their pixels.

    Raises InputError for an id that the data lacks or that is of a group outside the train split, masks with unknown
    classes, and a set whose masks are all alike or whose contexts are all constant: no range can be learnt from it.
    """
    sets = {found.name: found for root in roots for found in map(open_set, find_sets(root))}
    places: dict[str, dict[str, int]] = {}
    for name in dict.fromkeys(sample.set for sample in samples):
        if name not in sets:
            raise InputError(
                f"sample of set {name}: --data has {', '.join(sets) or 'no set'}; add the folder of that set"
            )
        places[name] = {example.name: index for index, example in enumerate(sets[name].examples)}
    for sample in samples:
        _check_ids(sample, sets[sample.set], places[sample.set])
    tables = {name: class_table(sets[name], manifest.schema) for name in places}
    masks, contexts = [], []
    for sample in samples:
        found, place = sets[sample.set], places[sample.set]
        mask = found.read(place[sample.image])[1]
        masks.append(tables[sample.set][resize_mask(mask, *manifest.image_size)])
        contexts.append(resize_image(found.read(place[sample.context])[0], *manifest.image_size))
    pixels = np.stack(masks), np.stack(contexts)
    if len(np.unique(pixels[0], axis=0)) < 2:
        raise InputError(f"all {len(samples)} masks are the same; give varied data to calibrate on")
    if (pixels[1] == pixels[1][:, :1, :1]).all():
        raise InputError(f"all {len(samples)} contexts are constant images; give real images to calibrate on")
    return _with_fingerprint(tuple(samples), *pixels, manifest.noise_shape, manifest.fibre_shape)


def _check_ids(sample: Sample, found: FolderSet | PackedSet, place: dict[str, int]) -> None:
    for name in (sample.image, sample.context):
        if name not in place:
            raise InputError(f"sample {sample.set}/{name}: no such image in {found.path}; the list is of other data")
        example = found.examples[place[name]]
        if example.group in _held_out(found.examples):
            raise InputError(
                f"sample {sample.set}/{name}: group {example.group} is held out for judging (not in split {SPLIT!r}); "
                "calibrate on train groups only, take it off the list"
            )
    if (group := found.examples[place[sample.image]].group) != sample.group:
        raise InputError(f"sample {sample.set}/{sample.image}: of group {group}, not {sample.group}; draw a new list")


def _held_out(examples: Sequence[Example]) -> set[str]:
    return {example.group for example in examples if example.split != SPLIT}


def _set_order(found: FolderSet | PackedSet, random: np.random.Generator) -> list[Sample]:
    """Every train image of a set as a sample, going round its groups."""
    held_out = _held_out(found.examples)
    groups: dict[str, list[str]] = {}
    for example in found.examples:
        if example.group not in held_out:
            groups.setdefault(example.group, []).append(example.name)
    if len(groups) < 2:
        raise InputError(
            f"{found.path}: {len(groups)} groups in split {SPLIT!r}; a context must come from another group, so at "
            "least two are needed"
        )
    names = sorted(groups)
    left = {name: [groups[name][i] for i in random.permutation(len(groups[name]))] for name in names}
    order = [names[i] for i in random.permutation(len(names))]
    samples = []
    while any(left.values()):
        for number, group in enumerate(order):
            if left[group]:
                other = order[(number + int(random.integers(1, len(order)))) % len(order)]
                context = groups[other][int(random.integers(len(groups[other])))]
                seed = int(random.integers(2**32))
                samples.append(Sample(found.name, group, left[group].pop(0), context, seed))
    return samples


def _with_fingerprint(
    samples: tuple[Sample, ...],
    masks: Image,
    contexts: Image,
    noise_shape: tuple[int, int, int],
    fibre_shape: tuple[int, int, int] | None,
) -> CalibrationSet:
    digest = hashlib.sha256(repr([sample.seed for sample in samples]).encode())
    digest.update(masks.tobytes())
    digest.update(contexts.tobytes())
    return CalibrationSet(samples, masks, contexts, noise_shape, digest.hexdigest(), fibre_shape)
