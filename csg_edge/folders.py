"""Generating from folders.

Which mask meets which context and seed, and writing the images so that nothing is half-written.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions import list_images, read_context, read_mask, resize_image, resize_mask, write_png
from csg_edge.errors import InputError
from csg_edge.generator import Generator
from csg_edge.noise import MAX_SEED
from csg_edge.progress import Progress

RECORD_NAME = "generated.json"
SHEET_NAME = "contact_sheet.png"
SHEET_ROWS = 16
KEPT = 256  # masks, and contexts, of 64 KB each at 256 x 256

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """One image to make: output name, and the mask, context and seed it is made of."""

    name: str
    mask: Path
    context: Path
    seed: int


def plan(masks: Path, contexts: Path, *, count: int, seed: int) -> list[Job]:
    """`count` jobs per mask, with seeds seed, seed + 1, ...

    A folder of contexts that has every mask's name pairs by name; otherwise contexts are drawn by the seed. Raises
    InputError for a missing path, an empty folder, two masks of one name, or a seed out of range.
    """
    mask_files, context_files = list_images(masks), list_images(contexts)
    if count < 1:
        raise InputError(f"--count {count}: give at least 1")
    if not 0 <= seed <= MAX_SEED - count * len(mask_files):
        raise InputError(f"--seed {seed}: give an integer from 0 to {MAX_SEED - count * len(mask_files)}")
    if len({path.stem for path in mask_files}) != len(mask_files):
        raise InputError(f"{masks}: two masks share a name but for the suffix; rename one")
    by_name = {path.stem: path for path in context_files}
    paired = contexts.is_dir() and all(path.stem in by_name for path in mask_files)
    draw = np.random.default_rng(seed)
    jobs: list[Job] = []
    for mask in mask_files:
        for repetition in range(count):
            context = by_name[mask.stem] if paired else context_files[int(draw.integers(len(context_files)))]
            name = mask.stem if count == 1 else f"{mask.stem}_{repetition:03d}"
            jobs.append(Job(name, mask, context, seed + len(jobs)))
    return jobs


class Inputs:
    """Masks and contexts by path: read, checked and stretched to the bundle's image size.

    The last KEPT of each stay in memory, so that checking first and generating then reads a file once, and so does a
    context that many masks share; a larger folder is read again rather than held.
    """

    def __init__(self, generator: Generator) -> None:
        manifest = generator.bundle.manifest
        schema, size = manifest.schema, manifest.image_size

        @lru_cache(KEPT)
        def mask(path: Path) -> Image:
            return resize_mask(read_mask(path, schema), *size)

        @lru_cache(KEPT)
        def context(path: Path) -> Image:
            return resize_image(read_context(path), *size)

        self.mask, self.context = mask, context

    def check(self, jobs: Sequence[Job]) -> None:
        """Read every mask and context, so that bad input is found before the first image is made."""
        for path in dict.fromkeys(job.mask for job in jobs):
            self.mask(path)
        for path in dict.fromkeys(job.context for job in jobs):
            self.context(path)


def check_output(out: Path, jobs: Sequence[Job]) -> None:
    """Raise InputError if writing would replace a file or cannot work."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file is in the way; give a folder")
    for job in jobs:
        if f"{job.name}.png" == SHEET_NAME:
            raise InputError(f"{job.mask}: {SHEET_NAME} is the name of the contact sheet; rename the mask")
    for name in (*(f"{job.name}.png" for job in jobs), RECORD_NAME, SHEET_NAME, "masks"):
        if (out / name).exists():
            raise InputError(f"--out {out}: {name} is already there; choose another folder or move it away")


def run(jobs: Sequence[Job], generator: Generator, out: Path, *, sheet: bool) -> dict[str, Any]:
    """Make every image: `NAME.png`, its labels `masks/NAME.png` at the same size, and the record of what was drawn.

    All files are written aside and moved into `out` at the end. Returns the record with latencies in milliseconds.
    """
    aside = out.parent / f".{out.name}.partial-{os.getpid()}"
    inputs = Inputs(generator)
    inputs.check(jobs)
    progress = Progress("generate", len(jobs), unit="images")
    milliseconds: list[float] = []
    rows: list[tuple[Image, Image, Image]] = []
    try:
        (aside / "masks").mkdir(parents=True)
        images = generator.stream(
            (inputs.mask(job.mask) for job in jobs),
            (inputs.context(job.context) for job in jobs),
            (job.seed for job in jobs),
        )
        start = time.perf_counter()
        for job, image in zip(jobs, images, strict=True):
            mask = inputs.mask(job.mask)
            write_png(aside / f"{job.name}.png", image)
            write_png(aside / "masks" / f"{job.name}.png", mask)
            if len(rows) < SHEET_ROWS:
                rows.append((mask, inputs.context(job.context), image))
            progress.advance()
            now = time.perf_counter()
            milliseconds.append(1e3 * (now - start))
            start = now
        if sheet:
            from csg_edge.sheets import contact_sheet

            write_png(aside / SHEET_NAME, contact_sheet(rows, generator.bundle.manifest.schema))
        record = _record(jobs, generator, milliseconds, out)
        (aside / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _move(aside, out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot write ({error.strerror or error}); choose another folder") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return record


def _record(jobs: Sequence[Job], generator: Generator, milliseconds: Sequence[float], out: Path) -> dict[str, Any]:
    timed = milliseconds[1:] or milliseconds  # the first call still warms caches
    return {
        "out": str(out),
        "bundle": generator.bundle.manifest.name,
        "target": generator.engine.target,
        "choice": asdict(generator.choice),
        "effective_precision": generator.runtime.effective_precision,
        "steps": generator.engine.steps,
        # From one image to the next, reading and writing included, which overlap with generating.
        "ms_per_image": {"median": statistics.median(timed), "max": max(timed), "images": len(timed)},
        "images": [{**asdict(job), "mask": str(job.mask), "context": str(job.context)} for job in jobs],
    }


def _move(source: Path, target: Path) -> None:
    if not target.exists():
        os.replace(source, target)
        return
    for item in sorted(source.iterdir()):
        os.replace(item, target / item.name)
