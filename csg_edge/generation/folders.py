"""Generating into folders: reading the files of jobs, and writing the images so that nothing is half-written."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import dicom, fibres
from csg_edge.conditions.arrays import resize_image, resize_mask
from csg_edge.conditions.fibre_files import both_names, read_field, write_field
from csg_edge.conditions.fibres import Field
from csg_edge.conditions.files import read_context, read_mask, write_png
from csg_edge.conditions.frames import split_frame
from csg_edge.errors import InputError
from csg_edge.generation import journal
from csg_edge.generation.generator import Generator
from csg_edge.generation.jobs import LIKE, Job, paths_of
from csg_edge.labels import NO_MASK
from csg_edge.progress import Progress
from csg_edge.storage import written_whole

SHEET_NAME = "contact_sheet.png"
SHEET_ROWS = 16
KEPT = 256  # masks, and contexts, of 64 KB each at 256 x 256
FIELDS = "fibres"  # the folder that --write-fibres fills

Image = NDArray[np.uint8]


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

        @lru_cache(KEPT)
        def stored_field(path: Path) -> Field:
            return read_field(path)

        self._mask, self._context, self._stored_field = mask, context, stored_field
        self._schema, self._takes_fields = schema, manifest.fibre_shape is not None
        self._check_field = generator.prepare_field

    def mask(self, job: Job) -> Image:
        return self._mask(job.mask, job.vary, job.vary_seed)

    def context(self, job: Job) -> Image:
        return self._context(job.context)

    def field(self, job: Job) -> Field | None:
        """What is given of the fibre field, None for nothing. A tear that was put into the mask has no direction."""
        field = None
        if job.fibre_file is not None:
            field = self._stored_field(job.fibre_file)
        elif job.fibre == LIKE:
            field = fibres.field_of_image(self.context(job))
        elif job.fibre is not None:
            wishes = fibres.parse_wishes(job.fibre, self._schema)
            try:
                field = fibres.field_of_mask(self.mask(job), self._schema, wishes, seed=job.seed)
            except InputError as error:
                raise InputError(f"{job.mask or 'no mask'}: {error}") from None
        if self._takes_fields:
            field = fibres.with_tear(field, self.mask(job), self._schema, job.vary, seed=job.seed)
        return self._check_field(field, name="--fibre")

    def check(self, jobs: Sequence[Job]) -> list[str]:
        """Read every mask and context, so that bad input is found before the first image is made.

        Returns what a user should know of the files though they can be used.
        """
        for job in {(job.mask, job.vary_seed): job for job in jobs}.values():
            self.mask(job)
        for job in {job.context: job for job in jobs}.values():
            self.context(job)
        for job in {(job.mask, job.vary_seed, job.fibre_file, job.fibre): job for job in jobs}.values():
            self.field(job)
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
    for name in (*(f"{job.name}.png" for job in jobs), journal.FINISHED, SHEET_NAME, "masks", FIELDS):
        if (out / name).exists():
            raise InputError(f"--out {out}: {name} is already there; choose another folder or move it away")


def run(
    jobs: Sequence[Job], generator: Generator, out: Path, *, sheet: bool, colours: Path | None = None,
    write_fibres: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make every image: `NAME.png`, its labels `masks/NAME.png` at the same size, and the record of what was drawn.

    An image that was made without a mask has no labels, and none are written. write_fibres: a format of
    `conditions.fibre_files`, in which the fibre fields that were used are written to `fibres/`; the record has their
    mean direction and coherence by class in any case. Files appear whole, one by one; what an
    earlier run of the same job has left is kept, and the job goes on from there (see `journal`). Returns the record
    with latencies in milliseconds, of this run. Raises InputError for a folder of another job, or what cannot be
    written.
    """
    record = _record(jobs, generator)
    kept = journal.Journal(out, journal.job_digest(_identity(jobs, record, colours, write_fibres)))
    if kept.finished:
        return {"out": str(out), **journal.finished_record(out), "ms_per_image": None, "kept": len(jobs), "notes": []}
    if journal.finished_digest(out):
        raise InputError(
            f"--out {out}: {journal.FINISHED} of another job is there; choose another folder or move it away"
        )
    inputs = Inputs(generator, colours=colours)
    notes = inputs.check(jobs)
    if write_fibres is not None and generator.bundle.manifest.fibre_shape is None:
        raise InputError(
            f"--write-fibres: {generator.bundle.manifest.name} takes no fibre field and uses none; leave out"
        )
    folders = [out, out / "masks"] if any(job.mask for job in jobs) else [out]
    done = {
        name: facts
        for name, facts in kept.done.items()
        if all((folder / f"{name}.png").is_file() for folder in folders)
        and all((out / FIELDS / file).is_file() for file in both_names(name, write_fibres))
    }
    todo = [job for job in jobs if job.name not in done]
    progress = Progress("generate", len(jobs), done=len(done), unit="images")
    try:
        with kept.growing() as file:
            for folder in [*folders, *([out / FIELDS] if write_fibres else [])]:
                folder.mkdir(exist_ok=True)
            milliseconds = []
            for job, took, facts in _make(todo, generator, inputs, out, write_fibres):
                journal.Journal.add(file, job.name, facts)
                done[job.name] = facts
                milliseconds.append(took)
                progress.advance()
        if sheet:
            _write_sheet(jobs[:SHEET_ROWS], generator, inputs, out)
        record["images"] = [{**row, **done[row["name"]]} for row in record["images"]]
        kept.finish(record)
    except OSError as error:
        raise journal.cannot_write(out, error) from None
    timed = milliseconds[1:] or milliseconds  # the first call still warms caches
    # From one image to the next, reading and writing included, which overlap with generating.
    pace = {"median": statistics.median(timed), "max": max(timed), "images": len(timed)} if timed else None
    return {"out": str(out), **record, "ms_per_image": pace, "kept": len(jobs) - len(todo), "notes": notes}


def _make(
    jobs: Sequence[Job], generator: Generator, inputs: Inputs, out: Path, write_fibres: str | None
) -> Iterator[tuple[Job, float, dict[str, Any]]]:
    """Make the images and write their files.

    Each job with the milliseconds since the one before, and what is to be known of its image.
    """
    conditions = (
        (inputs.mask(job) for job in jobs),
        (inputs.context(job) for job in jobs),
        (job.seed for job in jobs),
        (inputs.field(job) for job in jobs),
    )
    images: Iterator[tuple[Image, Field | None]]
    if generator.bundle.manifest.fibre_shape is None:
        images = ((image, None) for image in generator.stream(*conditions[:3]))
    else:
        images = ((image, field) for image, field in generator.stream_with_fibres(*conditions))
    start = time.perf_counter()
    for job, (image, field) in zip(jobs, images, strict=True):
        if job.mask is not None:
            with written_whole(out / "masks" / f"{job.name}.png", tidy=False) as aside:
                write_png(aside, inputs.mask(job))
        facts = {}
        if field is not None:
            facts["fibre_used"] = fibres.class_directions(field, inputs.mask(job), generator.bundle.manifest.schema)
            if write_fibres:
                write_field(out / FIELDS, job.name, field, kind=write_fibres)
        with written_whole(out / f"{job.name}.png", tidy=False) as aside:
            write_png(aside, image)
        now = time.perf_counter()
        yield job, 1e3 * (now - start), facts
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
        "choice": generator.choice.to_json(),
        "effective_precision": generator.runtime.effective_precision,
        "steps": generator.engine.steps,
        "images": [job.row() for job in jobs],
    }


def _identity(
    jobs: Sequence[Job], record: Mapping[str, Any], colours: Path | None, write_fibres: str | None
) -> dict[str, Any]:
    """What a job is told by: its arguments, its engine, and the files that it reads, by size and time of change."""
    paths = {path for job in jobs for _, path in paths_of(job) if path is not None}
    paths |= {colours} if colours is not None else set()
    stats = {str(path): split_frame(path)[0].stat() for path in paths}
    files = {path: [found.st_size, found.st_mtime_ns] for path, found in stats.items()}
    extra = {} if write_fibres is None else {"write_fibres": write_fibres}
    return {**{name: value for name, value in record.items() if name != "choice"}, "files": files, **extra}
