"""Generating from folders.

Which mask meets which context and seed, and writing the images so that nothing is half-written.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import dicom, nifti
from csg_edge.conditions.arrays import resize_image, resize_mask
from csg_edge.conditions.files import list_images, read_context, read_mask, write_png
from csg_edge.conditions.frames import image_name, split_frame
from csg_edge.errors import InputError
from csg_edge.generation import journal
from csg_edge.generation.generator import Generator
from csg_edge.labels import NO_MASK
from csg_edge.noise import MAX_SEED
from csg_edge.progress import Progress
from csg_edge.storage import written_whole

if TYPE_CHECKING:
    from csg_edge.conditions.contexts import Chosen

SHEET_NAME = "contact_sheet.png"
SHEET_ROWS = 16
KEPT = 256  # masks, and contexts, of 64 KB each at 256 x 256
SELECTIONS = ("nearest", "random", "diverse")
NAMELESS = "image"  # name of images with neither mask nor context

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """One image to make: output name, and the mask, context and seed it is made of; None: without.

    vary, vary_seed: how the mask is varied first. distance: in style, of a context chosen by it (`contexts.Chosen`).
    """

    name: str
    mask: Path | None
    context: Path | None
    seed: int
    vary: str | None = None
    vary_seed: int | None = None
    distance: float | None = None

    def row(self) -> dict[str, Any]:
        """As the record has it: what was not asked for is left out."""
        extras = {name: value for name, value in asdict(self).items() if value is not None}
        paths = {name: None if path is None else str(path) for name, path in _paths(self)}
        spacing = {
            f"{name}_spacing_mm": list(_spacing(split_frame(path)[0]))
            for name, path in _paths(self)
            if path is not None and nifti.is_nifti(split_frame(path)[0])
        }
        return extras | {"name": self.name, **paths, **spacing, "seed": self.seed}


def _paths(job: Job) -> tuple[tuple[str, Path | None], ...]:
    return ("mask", job.mask), ("context", job.context)


@lru_cache(KEPT)
def _spacing(path: Path) -> tuple[float, float]:
    """Millimetres between the columns and between the rows of a NIfTI file, as it came."""
    columns, rows, _ = nifti.read_header(path).spacing
    return columns, rows


def plan(
    masks: Path | None, contexts: Path | None, *, count: int, seed: int, select: str | None = None,
    like: Path | None = None, vary: str | None = None, vary_count: int = 1, frame: str | None = None,
) -> list[Job]:  # fmt: skip
    """`count` jobs per mask, or per varied mask, with seeds seed, seed + 1, ...

    A folder of contexts that has every mask's name pairs by name; otherwise contexts are drawn by the seed. `select`
    overrides both: `nearest` takes the context nearest in style to `like`, an image or a folder with an image of each
    mask's name, but never that image itself; `random` draws; `diverse` takes contexts as unlike as possible in turn.
    frame: which image of a file that has several (`frames.choose_frames`). vary: a specification of
    `csg_edge.conditions.masks`, by which each mask becomes `vary_count` masks. masks None: `count` jobs per context,
    which then names the images; contexts None: the mask alone. Raises InputError for a missing path, an empty folder,
    two masks of one name, a seed out of range, or options that do not go together.
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
                    )
                )
    return jobs


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


class Inputs:
    """Masks and contexts of jobs: read, checked, varied and stretched to the bundle's image size.

    The last KEPT of each stay in memory, so that checking first and generating then reads a file once, and so does a
    context that many masks share; a larger folder is read again rather than held.
    """

    def __init__(self, generator: Generator, *, colours: Path | None = None) -> None:
        manifest = generator.bundle.manifest
        schema, size = manifest.schema, manifest.image_size

        @lru_cache(KEPT)
        def mask(path: Path | None, vary: str | None, vary_seed: int | None) -> Image:
            if path is None:
                return np.full(size, NO_MASK, np.uint8)
            labels = read_mask(path, schema, colours=colours)
            if vary is not None and vary_seed is not None:
                from csg_edge.conditions.masks import parse_spec, vary_by

                variations = parse_spec(vary, schema)
                try:
                    labels = vary_by(labels, schema, variations, seed=vary_seed)
                except InputError as error:
                    raise InputError(f"{path}: {error}") from None
            return resize_mask(labels, *size)

        @lru_cache(KEPT)
        def context(path: Path | None) -> Image:
            return np.zeros(size, np.uint8) if path is None else resize_image(read_context(path), *size)

        self._mask, self._context = mask, context

    def mask(self, job: Job) -> Image:
        return self._mask(job.mask, job.vary, job.vary_seed)

    def context(self, job: Job) -> Image:
        return self._context(job.context)

    def check(self, jobs: Sequence[Job]) -> list[str]:
        """Read every mask and context, so that bad input is found before the first image is made.

        Returns what a user should know of the files though they can be used.
        """
        for job in {(job.mask, job.vary_seed): job for job in jobs}.values():
            self.mask(job)
        for job in {job.context: job for job in jobs}.values():
            self.context(job)
        contexts = {job.context for job in jobs if job.context is not None}
        return [
            f"{path}: says that text is burned into its pixels (BurnedInAnnotation YES); look for names before "
            "you share images made with it"
            for path in sorted(contexts)
            if dicom.is_dicom(file := split_frame(path)[0]) and dicom.says_burned_in(file)
        ]


def check_output(out: Path, jobs: Sequence[Job]) -> None:
    """Raise InputError if writing would replace a file of something else or cannot work."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file is in the way; give a folder")
    for job in jobs:
        if f"{job.name}.png" == SHEET_NAME:
            source = job.mask or job.context
            raise InputError(f"{source}: {SHEET_NAME} is the name of the contact sheet; rename this file")
    if (out / journal.GROWING).is_file() or journal.finished_digest(out):
        return  # of a job, perhaps this one, which the journal tells
    for name in (*(f"{job.name}.png" for job in jobs), journal.FINISHED, SHEET_NAME, "masks"):
        if (out / name).exists():
            raise InputError(f"--out {out}: {name} is already there; choose another folder or move it away")


def run(
    jobs: Sequence[Job], generator: Generator, out: Path, *, sheet: bool, colours: Path | None = None
) -> dict[str, Any]:
    """Make every image: `NAME.png`, its labels `masks/NAME.png` at the same size, and the record of what was drawn.

    An image that was made without a mask has no labels, and none are written. Files appear whole, one by one; what an
    earlier run of the same job has left is kept, and the job goes on from there (see `journal`). Returns the record
    with latencies in milliseconds, of this run. Raises InputError for a folder of another job, or what cannot be
    written.
    """
    record = _record(jobs, generator)
    kept = journal.Journal(out, journal.job_digest(_identity(jobs, record, colours)))
    if kept.finished:
        return {"out": str(out), **record, "ms_per_image": None, "kept": len(jobs), "notes": []}
    if journal.finished_digest(out):
        raise InputError(
            f"--out {out}: {journal.FINISHED} of another job is there; choose another folder or move it away"
        )
    inputs = Inputs(generator, colours=colours)
    notes = inputs.check(jobs)
    folders = [out, out / "masks"] if any(job.mask for job in jobs) else [out]
    done = {name for name in kept.done if all((folder / f"{name}.png").is_file() for folder in folders)}
    todo = [job for job in jobs if job.name not in done]
    progress = Progress("generate", len(jobs), done=len(done), unit="images")
    try:
        with kept.growing() as file:
            for folder in folders:
                folder.mkdir(exist_ok=True)
            milliseconds = []
            for job, took in _make(todo, generator, inputs, out):
                journal.Journal.add(file, job.name)
                milliseconds.append(took)
                progress.advance()
        if sheet:
            _write_sheet(jobs[:SHEET_ROWS], generator, inputs, out)
        kept.finish(record)
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot write ({error.strerror or error}); free disk space or mend the permissions and run "
            "the same command again, or choose another folder"
        ) from None
    timed = milliseconds[1:] or milliseconds  # the first call still warms caches
    # From one image to the next, reading and writing included, which overlap with generating.
    pace = {"median": statistics.median(timed), "max": max(timed), "images": len(timed)} if timed else None
    return {"out": str(out), **record, "ms_per_image": pace, "kept": len(done), "notes": notes}


def _make(jobs: Sequence[Job], generator: Generator, inputs: Inputs, out: Path) -> Iterator[tuple[Job, float]]:
    """Make the images and write their files; each job with the milliseconds since the one before."""
    images = generator.stream(
        (inputs.mask(job) for job in jobs),
        (inputs.context(job) for job in jobs),
        (job.seed for job in jobs),
    )
    start = time.perf_counter()
    for job, image in zip(jobs, images, strict=True):
        if job.mask is not None:
            with written_whole(out / "masks" / f"{job.name}.png") as aside:
                write_png(aside, inputs.mask(job))
        with written_whole(out / f"{job.name}.png") as aside:
            write_png(aside, image)
        now = time.perf_counter()
        yield job, 1e3 * (now - start)
        start = now


def _write_sheet(jobs: Sequence[Job], generator: Generator, inputs: Inputs, out: Path) -> None:
    from csg_edge.generation.sheets import contact_sheet

    rows = []
    for job in jobs:
        image = read_context(out / f"{job.name}.png")
        mask = inputs.mask(job) if job.mask is not None else np.zeros_like(image)
        rows.append((mask, inputs.context(job), image))
    with written_whole(out / SHEET_NAME) as aside:
        write_png(aside, contact_sheet(rows, generator.bundle.manifest.schema))


def _record(jobs: Sequence[Job], generator: Generator) -> dict[str, Any]:
    return {
        "bundle": generator.bundle.manifest.name,
        "target": generator.engine.target,
        "choice": asdict(generator.choice),
        "effective_precision": generator.runtime.effective_precision,
        "steps": generator.engine.steps,
        "images": [job.row() for job in jobs],
    }


def _identity(jobs: Sequence[Job], record: Mapping[str, Any], colours: Path | None) -> dict[str, Any]:
    """What a job is told by: its arguments, its engine, and the files that it reads, by size and time of change."""
    paths = {path for job in jobs for _, path in _paths(job) if path is not None}
    paths |= {colours} if colours is not None else set()
    stats = {str(path): split_frame(path)[0].stat() for path in paths}
    files = {path: [found.st_size, found.st_mtime_ns] for path, found in stats.items()}
    return {**{name: value for name, value in record.items() if name != "choice"}, "files": files}
