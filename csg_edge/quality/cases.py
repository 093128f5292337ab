"""What is generated for a validation: the same cases for every engine and for the teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csg_edge.datasets import LabelledSet, find_sets, read_set
from csg_edge.errors import InputError
from csg_edge.generator import Generator
from csg_edge.labels import LabelSchema
from csg_edge.noise import noise_for
from csg_edge.progress import Progress
from csg_edge.quality.samples import Image, Samples

PAIRS = 32  # cases made twice, with another seed, for diversity
TEACHER_BATCH = 8


@dataclass(frozen=True)
class RealData:
    """Real images: those the generator may have seen, and those of groups it has not."""

    train: Samples
    held_out: Samples
    sets: dict[str, dict[str, int]]  # set -> images and groups of both splits

    @property
    def groups(self) -> int:
        return len(set(self.held_out.groups))


@dataclass(frozen=True)
class Cases:
    """Inputs of the images to make: real masks of held-out groups, contexts of another held-out group, seeds.

    `wanted` holds the real images of the masks; the last `pairs` cases repeat the first ones under another seed.
    """

    wanted: Samples
    contexts: Samples
    seeds: tuple[int, ...]
    pairs: int

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def single(self) -> int:
        """How many cases there are without the repeats."""
        return len(self.seeds) - self.pairs


def read_real(roots: Sequence[Path], schema: LabelSchema, *, size: int, split: str = "val") -> RealData:
    """Read every labelled set below `roots`, the train split and the split to judge on.

    Raises InputError if a set lacks either split, knows other classes, or has one held-out group only.
    """
    train, held_out, sets = [], [], {}
    for directory in (directory for root in roots for directory in find_sets(root)):
        seen = read_set(directory, schema, split="train", size=size)
        judged = read_set(directory, schema, split=split, size=size)
        if len(set(judged.groups)) < 2:
            raise InputError(
                f"{directory}: one group only in split {split!r}; a context must come from another group, "
                "so put at least two groups there"
            )
        train.append(_samples(seen))
        held_out.append(_samples(judged))
        sets[seen.name] = {
            "train_images": len(seen), "train_groups": len(set(seen.groups)),
            "held_out_images": len(judged), "held_out_groups": len(set(judged.groups)),
        }  # fmt: skip
    return RealData(Samples.join(train), Samples.join(held_out), sets)


def set_of(group: str) -> str:
    """The set that a group belongs to: `read_set` names groups `set/group`."""
    return group.split("/")[0]


def plan_cases(real: Samples, *, count: int, seed: int) -> Cases:
    """`count` cases that go round all held-out images, then up to PAIRS of the first again for diversity.

    real: held-out images whose group names start with their set's name and a slash.
    """
    random = np.random.default_rng(seed)
    rounds = [random.permutation(len(real)) for _ in range(-(-count // len(real)))]
    order = np.concatenate(rounds)[:count]
    sets = [set_of(group) for group in real.groups]
    contexts = []
    for index in order:
        others = [
            other for other, group in enumerate(real.groups)
            if group != real.groups[index] and sets[other] == sets[index]
        ]  # fmt: skip
        contexts.append(int(random.choice(others)))
    pairs = min(PAIRS, count)
    order, contexts = np.concatenate([order, order[:pairs]]), contexts + contexts[:pairs]
    seeds = tuple(int(value) for value in random.integers(2**63, size=len(order)))
    return Cases(real.take(order), real.take(contexts), seeds, pairs)


def make_with_engine(generator: Generator, cases: Cases, *, label: str) -> Samples:
    """The images of one engine, one call each, as it is used."""
    progress = Progress(label, len(cases), unit="images")
    images = []
    for index, seed in enumerate(cases.seeds):
        images.append(generator.generate_one(cases.wanted.masks[index], cases.contexts.images[index], seed))
        progress.advance()
    return _made(np.stack(images), cases)


def make_with_teacher(folder: Path, cases: Cases, *, guidance: float) -> Samples:
    """The teacher's images of the same cases from the same noise, by its own sampler."""
    import torch

    from csg_edge.training.device import autocast, choose_precision
    from csg_edge.training.teachers import load_teacher

    precision = choose_precision("auto", torch.device("cpu"))
    teacher = load_teacher(folder).eval().to(memory_format=torch.channels_last)
    progress = Progress("teacher", len(cases), unit="images")
    images = []
    for start in range(0, len(cases), TEACHER_BATCH):
        batch = slice(start, min(start + TEACHER_BATCH, len(cases)))
        mask, context = (torch.from_numpy(array[batch]) for array in (cases.wanted.masks, cases.contexts.images))
        noise = np.stack([noise_for(seed, teacher.latent_shape(1)[1:]) for seed in cases.seeds[batch]])
        with torch.inference_mode(), autocast(torch.device("cpu"), precision):
            clean = teacher.integrate(mask, context, torch.from_numpy(noise), guidance=guidance)
            images.append(teacher.autoencoder.decode(clean).numpy())
        progress.advance(len(images[-1]))
    return _made(np.concatenate(images), cases)


def fingerprint(cases: Cases) -> str:
    """A hash over masks, contexts and seeds: two validations with the same one judged the same cases."""
    digest = hashlib.sha256()
    for array in (cases.wanted.images, cases.wanted.masks, cases.contexts.images):
        digest.update(array.tobytes())
    digest.update(repr(cases.seeds).encode())
    return digest.hexdigest()[:16]


def _made(images: Image, cases: Cases) -> Samples:
    return Samples(images, cases.wanted.masks, cases.wanted.names, cases.wanted.groups, cases.contexts.images)


def _samples(data: LabelledSet) -> Samples:
    return Samples(data.images, data.masks, data.names, data.groups)
