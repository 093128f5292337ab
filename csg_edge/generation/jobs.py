"""Which mask meets which context, seed and fibre field: the plan of a folder of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from csg_edge.conditions import nifti
from csg_edge.conditions.files import list_images, read_context
from csg_edge.conditions.frames import image_name, split_frame
from csg_edge.errors import InputError
from csg_edge.noise import MAX_SEED

if TYPE_CHECKING:
    from csg_edge.conditions.contexts import Chosen

SELECTIONS = ("nearest", "random", "diverse")
NAMELESS = "image"  # name of images with neither mask nor context
LIKE = "like"  # the fibre field of the context itself
KEPT_HEADERS = 256


@dataclass(frozen=True)
class Job:
    """One image to make: output name, and the mask, context and seed it is made of; None: without.

    vary, vary_seed: how the mask is varied first. distance: in style, of a context chosen by it (`contexts.Chosen`).
    fibre: what is given of the fibre field: a specification as `conditions.fibres` has it, LIKE, or None for nothing;
    fibre_file: a file with it instead.
    """

    name: str
    mask: Path | None
    context: Path | None
    seed: int
    vary: str | None = None
    vary_seed: int | None = None
    distance: float | None = None
    fibre: str | None = None
    fibre_file: Path | None = None

    def row(self) -> dict[str, Any]:
        """As the record has it: what was not asked for is left out."""
        extras = {name: value for name, value in asdict(self).items() if value is not None}
        paths = {name: None if path is None else str(path) for name, path in paths_of(self)}
        spacing = {
            f"{name}_spacing_mm": list(_spacing(split_frame(path)[0]))
            for name, path in paths_of(self)
            if path is not None and nifti.is_nifti(split_frame(path)[0])
        }
        return extras | {"name": self.name, **paths, **spacing, "seed": self.seed}


def paths_of(job: Job) -> tuple[tuple[str, Path | None], ...]:
    """The files that a job reads, by what they are to it."""
    field = () if job.fibre_file is None else (("fibre_file", job.fibre_file),)
    return ("mask", job.mask), ("context", job.context), *field


@lru_cache(KEPT_HEADERS)
def _spacing(path: Path) -> tuple[float, float]:
    """Millimetres between the columns and between the rows of a NIfTI file, as it came."""
    columns, rows, _ = nifti.read_header(path).spacing
    return columns, rows


def plan(
    masks: Path | None, contexts: Path | None, *, count: int, seed: int, select: str | None = None,
    like: Path | None = None, vary: str | None = None, vary_count: int = 1, frame: str | None = None,
    fibre: str | None = None,
) -> list[Job]:  # fmt: skip
    """`count` jobs per mask, or per varied mask, with seeds seed, seed + 1, ...

    A folder of contexts that has every mask's name pairs by name; otherwise contexts are drawn by the seed. `select`
    overrides both: `nearest` takes the context nearest in style to `like`, an image or a folder with an image of each
    mask's name, but never that image itself; `random` draws; `diverse` takes contexts as unlike as possible in turn.
    frame: which image of a file that has several (`frames.choose_frames`). vary: a specification of
    `csg_edge.conditions.masks`, by which each mask becomes `vary_count` masks. masks None: `count` jobs per context,
    which then names the images; contexts None: the mask alone. fibre: directions of fibres as `conditions.fibres`
    writes them, a file or a folder with the masks' names, or LIKE: the context's own field, where the two are one
    picture's (paired by name, or one mask and one context). Raises InputError for a missing path, an empty folder, two
    masks of one name, a seed out of range, or options that do not go together.
    """
    if masks is None and (vary is not None or select is not None or like is not None):
        raise InputError("--mask none: --vary, --select and --like need masks; every context is used without them")
    if contexts is None and (select is not None or like is not None):
        raise InputError("--context none: --select and --like need contexts; give a folder of contexts")
    if vary_count < 1 or (vary is None and vary_count > 1):
        raise InputError(f"--vary-count {vary_count}: give at least 1, and --vary")
    subjects, varied = _subjects(masks, contexts, frame), vary_count if vary is not None else 1
    total = count * varied * len(subjects)
    if count < 1:
        raise InputError(f"--count {count}: give at least 1")
    if not 0 <= seed <= MAX_SEED - total:
        raise InputError(f"--seed {seed}: give an integer from 0 to {MAX_SEED - total}")
    names = [NAMELESS if path is None else image_name(path) for path in subjects]
    if len(set(names)) != len(names):
        kind = "masks" if masks is not None else "contexts"
        raise InputError(f"{masks or contexts}: two {kind} share a name but for the suffix; rename one")
    fields = _fields(fibre, names)
    choose = (
        _chooser(subjects, contexts, total=total, seed=seed, select=select, like=like, frame=frame) if masks else None
    )
    jobs: list[Job] = []
    for position, (subject, name) in enumerate(zip(subjects, names, strict=True)):
        for version in range(varied):
            mask_name = f"{name}_v{version:03d}" if varied > 1 else name
            for repetition in range(count):
                context, distance = (subject, None) if choose is None else choose(subject)
                jobs.append(
                    Job(
                        f"{mask_name}_{repetition:03d}" if count > 1 else mask_name,
                        subject if masks is not None else None,
                        context if contexts is not None else None,
                        seed + len(jobs),
                        vary,
                        None if vary is None else seed + position * varied + version,
                        distance,
                        *fields(name),
                    )
                )
    if fibre == LIKE:
        _check_like(jobs)
    return jobs


def _fields(fibre: str | None, names: Sequence[str]) -> Callable[[str], tuple[str | None, Path | None]]:
    """A function from an image's name to what `Job` keeps of --fibre. Raises InputError for a file that is missing."""
    if fibre is None or fibre == LIKE or "=" in fibre:
        return lambda _: (fibre, None)
    from csg_edge.conditions.fibre_files import field_names

    path = Path(fibre)
    if not path.exists():
        raise InputError(f"--fibre {fibre}: no such file; give CLASS=DIRECTION as in muscle=18deg, a file, a folder or "
                         f"{LIKE}")  # fmt: skip
    found = dict(field_names(path))
    if path.is_dir():
        for name in names:
            if name not in found:
                raise InputError(f"--fibre {fibre}: no fibre field named {name}; put one there for each mask")
        return lambda name: (None, found[name])
    return lambda _: (None, path)


def _check_like(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.context is None:
            raise InputError(f"--fibre {LIKE}: the field is the context's, but --context is none; give contexts")
        if job.mask is not None and image_name(job.mask) != image_name(job.context):
            alone = len({job.mask for job in jobs}) == len({job.context for job in jobs}) == 1
            if not alone:
                raise InputError(
                    f"--fibre {LIKE}: {job.mask.name} meets {job.context.name}, whose fibres run elsewhere; give "
                    "contexts with the masks' names, or one mask and its context"
                )
        if job.vary is not None:
            raise InputError(f"--fibre {LIKE}: --vary moves the mask away from its context; leave one of them out")


def _subjects(masks: Path | None, contexts: Path | None, frame: str | None) -> list[Path | None]:
    """What images are made for and named after: masks, else contexts, else one image without either."""
    source = masks if masks is not None else contexts
    return [None] if source is None else [*list_images(source, frame=frame)]


def _chooser(
    masks: Sequence[Path | None],
    contexts: Path | None,
    *,
    total: int,
    seed: int,
    select: str | None,
    like: Path | None,
    frame: str | None,
) -> Callable[[Path | None], tuple[Path | None, float | None]]:
    """A function from a mask to its context and distance; to be called once for each job, in order."""
    if contexts is None:
        return lambda _: (None, None)
    files = list_images(contexts, frame=frame)
    select = "nearest" if select is None and like is not None else select
    if select not in (None, *SELECTIONS):
        raise InputError(f"--select {select}: choose {', '.join(SELECTIONS)}")
    if (like is None) != (select != "nearest"):
        raise InputError("--select nearest: nearest to what? Give --like IMAGE" if like is None else
                         f"--like {like}: it goes with --select nearest; leave one out")  # fmt: skip
    by_name = {image_name(path): path for path in files}
    stems = [image_name(path) for path in masks if path is not None]
    if select is None and contexts.is_dir() and all(stem in by_name for stem in stems):
        return lambda mask: (None if mask is None else by_name[image_name(mask)], None)
    if select in (None, "random"):
        draw = np.random.default_rng(seed)
        return lambda _: (files[int(draw.integers(len(files)))], None)
    from csg_edge.conditions.contexts import ContextBank

    if like is not None:
        queries = _queries(like, stems)
        bank = ContextBank.index(files)
        found = {query: bank.nearest(read_context(query))[0] for query in dict.fromkeys(queries.values())}
        return lambda mask: _pair(found[queries["" if mask is None else image_name(mask)]])
    ring = ContextBank.index(files).diverse(min(total, len(files)), seed)
    turn = iter(range(total))
    return lambda _: _pair(ring[next(turn) % len(ring)])


def _pair(chosen: Chosen) -> tuple[Path, float | None]:
    return chosen.path, chosen.distance


def _queries(like: Path, stems: Sequence[str]) -> dict[str, Path]:
    """The image that each mask's context is to be like, by the mask's name. Raises InputError where one is missing."""
    files = list_images(like)
    if not like.is_dir():
        return dict.fromkeys(stems, files[0])
    by_name = {image_name(path): path for path in files}
    for stem in stems:
        if stem not in by_name:
            raise InputError(f"--like {like}: no image named {stem}; put one there for each mask, or give one image")
    return {stem: by_name[stem] for stem in stems}
