"""An augmented set from a plan: real images along, made ones beside, record and provenance; resumable at any moment.

`augmented.jsonl` grows while the work goes on (see `generation.journal`), `augmented.json` and `provenance.jsonl` take
its place at the end. A killed run goes on with the mask where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.augment.croissant import write_croissant
from csg_edge.augment.make import Maker, Unit, name_of, units_of
from csg_edge.augment.options import HERE, Options, Scale, open_sources, open_writer
from csg_edge.augment.plan import Plan, counts
from csg_edge.augment.sources import Sources
from csg_edge.augment.work import Bench, Facts, Recipe, work_by_ray, work_here
from csg_edge.augment.writers import REAL, SYNTHETIC, Entry, Writer, at_size
from csg_edge.conditions.frames import split_frame
from csg_edge.datasets.card import card_markdown, data_card
from csg_edge.errors import InputError
from csg_edge.generation.generator import Generator
from csg_edge.generation.journal import Journal, cannot_write, finished_digest, finished_record, job_digest
from csg_edge.progress import Progress
from csg_edge.storage import write_json, write_whole

RECORD = "augmented"
REPORT_NEEDS = ("jinja2", "matplotlib")  # of the quality extra
PROVENANCE = "provenance.jsonl"


def preview(sources: Sources, plan: Plan, options: Options) -> dict[str, Any]:
    """What would be made: numbers of images and of images with each class, before and after. JSON-ready."""
    return _planned(sources, plan, options)[1]


def _planned(sources: Sources, plan: Plan, options: Options) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """How many images to make of each mask, and what `preview` says of it."""
    present = sources.present()
    numbers = counts(plan, present, sources.schema.names, real=options.real)
    rows = {}
    for index, name in enumerate(sources.schema.names):
        before, made = int(present[:, index].sum()), int(numbers[present[:, index]].sum())
        if index and before:
            after = made + before * options.real
            total = int(numbers.sum()) + len(numbers) * options.real
            rows[name] = {
                "before": before, "before_share": round(before / len(numbers), 4),
                "after": after, "after_share": round(after / total, 4),
            }  # fmt: skip
    return numbers, {
        "set": sources.set.name, "masks": len(numbers), "images": int(numbers.sum()), "real": len(numbers),
        "contexts": len(sources.positions) + len(sources.others) - len(sources.refused), "refused": sources.refused,
        "classes": rows, "plan": plan.to_json(),
    }  # fmt: skip


def run(
    directory: Path, out: Path, plan: Plan, generator: Generator, options: Options, scale: Scale = HERE
) -> dict[str, Any]:  # fmt: skip
    """Augment a set into `out`; returns the record. Raises InputError for bad input, before anything is written."""
    check_output(directory, out)
    sources = open_sources(directory, plan, generator, options)
    numbers, seen = _planned(sources, plan, options)
    if not options.real:  # names of the set, its files and folders stay here
        seen = {**seen, "set": out.name, "refused": {str(k): why for k, why in enumerate(seen["refused"].values())}}
        seen["plan"] = {**seen["plan"], "contexts": None}
    identity = {
        **seen, "set": _files(sources), "manifest_sha256": generator.bundle.digest, "engine": generator.engine.target,
        "steps": generator.engine.steps,
        **{key: str(value) for key, value in asdict(options).items()},
    }  # fmt: skip
    digest = job_digest(identity)
    kept = Journal(out, digest, RECORD)
    if kept.finished:
        return {"out": str(out), **finished_record(out, RECORD), "made_now": 0, "seconds": 0.0}
    if finished_digest(out, RECORD):
        raise InputError(f"--out {out}: {RECORD}.json of another job is there; choose another folder or move it away")
    if options.real:
        _check_real(sources)
    writer = open_writer(sources, out, options, job=digest, began=kept.began)
    checks = None
    if options.checked:
        from csg_edge.augment.checks import Checks

        checks = Checks(sources, least=plan.dice, segmenter=options.segmenter)
    bench = Bench(Maker(plan, sources, generator, checks), sources, writer, options)
    units = units_of(sources, numbers)
    done = {
        name: facts
        for name, facts in kept.done.items()
        if all(writer.is_whole(row["id"]) for row in facts.get("provenance", []))
    }
    todo = [unit for unit in units if _key(unit) not in done]
    total = sum(unit.count for unit in units)
    left = sum(unit.count for unit in todo)
    progress = Progress("augment", total, done=total - left, unit="images")
    try:
        with kept.growing() as file:
            entries = list(_write_real(sources, writer)) if options.real else []
            for unit, facts in _work(directory, out, kept, bench, todo, scale):
                Journal.add(file, _key(unit), facts)
                done[_key(unit)] = facts
                progress.advance(unit.count)
        rows = [(unit, row) for unit in units for row in done[_key(unit)]["provenance"]]
        entries += [Entry(row["id"], unit.position, SYNTHETIC) for unit, row in rows]
        writer.finish(entries)
        write_whole(out / PROVENANCE, "".join(json.dumps(row) + "\n" for _, row in rows))
        record = {
            **seen, "began": kept.began, "bundle": generator.bundle.manifest.name,
            "manifest_sha256": generator.bundle.digest,
            "engine": generator.engine.target, "effective_precision": generator.runtime.effective_precision,
            "steps": generator.engine.steps, "format": writer.__class__.__name__,
            "options": {key: None if value is None else str(value) for key, value in asdict(options).items()},
            "limits": None if checks is None else checks.limits, **totals([done[_key(unit)] for unit in units]),
        }  # fmt: skip
        _write_card(out)
        write_croissant(out, record, table=writer.table, columns=writer.columns)
        if all(find_spec(name) for name in REPORT_NEEDS):
            from csg_edge.augment.report import write_report

            write_report(out, record, entries, writer)
        kept.finish(record)
    except OSError as error:
        raise cannot_write(out, error) from None
    return {"out": str(out), **record, "made_now": left}


def _work(
    directory: Path, out: Path, kept: Journal, bench: Bench, units: Sequence[Unit], scale: Scale
) -> Iterator[tuple[Unit, Facts]]:  # fmt: skip
    if scale.engine == "local" or not units:
        return work_here(bench, units)
    maker, generator = bench.maker, bench.maker.generator
    recipe = Recipe(
        directory.resolve(), out.resolve(), kept.digest, kept.began, maker.plan, bench.options,
        generator.bundle.path.resolve(), generator.engine.target, generator.engine.steps,
        None if maker.checks is None else maker.checks.limits,
    )  # fmt: skip
    return work_by_ray(recipe, units, workers=scale.workers, address=scale.address)


def _write_card(out: Path) -> None:
    """The data card of what was written, as `csg-edge pack` and teachers have it."""
    card = data_card([out], splits=("train", "val"))
    write_json(out / "data_card.json", card)
    write_whole(out / "DATA_CARD.md", card_markdown(card))


def remake(directory: Path, out: Path, name: str, plan: Plan, generator: Generator) -> dict[str, Any]:
    """Make one image again from its provenance, by the options of the job that made it.

    Its files are written if one is missing. Returns its facts, with `same`: whether the bytes are those of before.
    Raises InputError for an unknown name, or a set, bundle or engine that is not the one of before.
    """
    record = finished_record(out, RECORD)
    if not record:
        raise InputError(f"--out {out}: no finished job of csg-edge augment there (no {RECORD}.json)")
    facts = next((row for row in read_provenance(out) if row["id"] == name), None)
    if facts is None:
        raise InputError(f"--remake {name}: not in {out / PROVENANCE}; names are those of the images there")
    given = record["options"]
    options = Options(given["format"], given["size"], given["text"], given["real"] == "True", False)
    sources = open_sources(directory, plan, generator, options)
    made = Maker(plan, sources, generator, None).remake(facts)
    writer = open_writer(sources, out, options, job=finished_digest(out, RECORD), began=record["began"])
    missing = not writer.is_whole(name)
    same = made.facts["image_sha256"] == facts["image_sha256"]
    if missing and same:
        writer.write(name, made.position, *at_size(made, sources, options.size), SYNTHETIC)
    return {**facts, "same": same, "written": missing and same}


def read_provenance(out: Path) -> Iterator[dict[str, Any]]:
    """The lines of provenance.jsonl. Raises InputError for a file that is none."""
    path = out / PROVENANCE
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path}: not readable; give the folder that csg-edge augment wrote") from None


def check_output(directory: Path, out: Path) -> None:
    """Raise InputError for an output folder that holds something else, or is the set itself."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file is in the way; give a folder")
    if out.resolve() == directory.resolve() or directory.resolve() in out.resolve().parents:
        raise InputError(f"--out {out}: inside the set itself; choose a folder beside it")
    begun = (out / f"{RECORD}.jsonl").is_file() or finished_digest(out, RECORD)
    if out.is_dir() and any(out.iterdir()) and not begun:
        raise InputError(f"--out {out}: not empty; choose another folder or move its files away")


def totals(facts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Numbers over all units: images made and left out, attempts by class, faults, and their rates by class."""
    found = list(facts)
    tried, faults = _sum(item["tried"] for item in found), _sum(item["faults"] for item in found)
    rates = {name: round(faults.get(name, 0) / number, 4) for name, number in tried.items()}
    left_out = [name for item in found for name in item["left_out"]]
    return {
        "made": sum(len(item["provenance"]) for item in found), "left_out": left_out, "tried": tried, "faults": faults,
        "rejection_rates": rates,
    }  # fmt: skip


def _sum(parts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, number in part.items():
            total[name] = total.get(name, 0) + number
    return dict(sorted(total.items()))


def _check_real(sources: Sources) -> None:
    """Read the images that are not multiplied but go along, so that bad ones are found before anything is written."""
    multiplied = set(sources.positions)
    for position, item in enumerate(sources.set.examples):
        if position not in multiplied and item.split in ("train", "val"):
            sources.read(position)


def _write_real(sources: Sources, writer: Writer) -> Iterator[Entry]:
    """Copy the real images of the splits that go along, but those that are there."""
    for position, item in enumerate(sources.set.examples):
        if sources.folds is None and item.split not in ("train", "val"):
            continue
        if not writer.is_whole(item.name):
            image, mask = sources.read(position)
            writer.write(item.name, position, image, sources.stored(sources.to_schema(mask)), REAL)
        yield Entry(item.name, position, REAL)


def _key(unit: Unit) -> str:
    """A unit's name in the journal: that of its first image."""
    return name_of(unit, 0)


def _files(sources: Sources) -> list[list[Any]]:
    """What the set is told by: names, groups, and its files by size and time of change."""
    found: list[list[Any]] = []
    for item, image, mask in zip(sources.set.examples, sources.set.images, sources.set.masks, strict=True):
        stats = [split_frame(path)[0].stat() for path in (image.path, mask)]
        found.append(
            [item.name, item.group, item.split, *(part for stat in stats for part in (stat.st_size, stat.st_mtime_ns))]
        )
    found += [[str(path), split_frame(path)[0].stat().st_size] for path in sources.others]
    return found
