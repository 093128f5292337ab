"""The figures of docs/fibres.md: is direction under control, is `fibre_used` a label, does the prior draw real fields?

    python benchmarks/fibres.py --data ../shared/data --out benchmarks/results/fibres.json      # some five minutes

Held-out groups, each mask with a context of another group. Directions are measured in the images by
`fibres.field_of_image`, cell by cell, where muscle fills nine tenths of a cell. Control: muscle asked for at -30 to 30
degrees. What else changes is judged outside muscle, beside what another seed changes there. Label: the field that an
image was made with against the field measured in it. Prior: fields drawn against those of the real images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import csg_edge
from csg_edge.conditions.fibres import GIVEN, SIDE, Field, Wish, directions, field_of_image, field_of_mask
from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.generation.generator import Generator
from csg_edge.machine import processor_name
from csg_edge.quality.c2st import c2st_of_features
from csg_edge.quality.cases import plan_cases, read_real, set_of
from csg_edge.quality.evaluators import load_evaluators
from csg_edge.quality.segmentation import mean_dice
from csg_edge.storage import write_json

ASKED = tuple(range(-30, 31, 5))
CLASS = "muscle"
CASES = 24  # masks that each direction is asked of
FILLED = 0.9  # share of a cell that a class must cover to be judged there
COHERENT = 0.3  # where a field is less coherent than this its direction means nothing

Floats = NDArray[np.float64]


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="msk-256")
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    options = {"runtime": arguments.runtime, "precision": arguments.precision, "steps": arguments.steps}
    with csg_edge.load(arguments.bundle, **options) as generator:
        schema, size = generator.bundle.manifest.schema, generator.bundle.manifest.image_size[0]
        real = read_real(arguments.data, schema, size=size)
        cases = plan_cases(real.held_out, count=len(real.held_out), seed=0, spare=real.train)
        single = cases.wanted.take(range(cases.single))
        contexts = cases.contexts.images[: cases.single]
        record: dict[str, Any] = {
            "bundle": generator.bundle.manifest.name, "engine": generator.engine.target, "machine": processor_name(),
            "control": control(generator, single, contexts),
            "label": label(generator, single, contexts),
            "prior": prior(generator, real.train, single, contexts),
        }  # fmt: skip
    write_json(arguments.out, record)
    print(json.dumps({key: record[key] for key in ("label", "prior")}, indent=1))
    for row in record["control"]["rows"]:
        print(row)
    print({key: value for key, value in record["control"].items() if key != "rows"})


def covered(mask: NDArray[np.uint8], index: int) -> Floats:
    """The share of each cell that a class covers (16, 16)."""
    return np.asarray(cv2.resize((mask == index).astype(np.float64), (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def turn(first: Floats, second: Floats) -> Floats:
    """Degrees from the second direction to the first, -90 to 90."""
    return (first - second + 90) % 180 - 90


def control(generator: Generator, wanted: LabelledSet, contexts: NDArray[np.uint8]) -> dict[str, Any]:
    """Asked against measured direction."""
    schema = generator.bundle.manifest.schema
    index = schema.index(CLASS)
    chosen = [i for i, mask in enumerate(wanted.masks) if (covered(mask, index) > FILLED).sum() >= 8][:CASES]
    masks = [wanted.masks[i] for i in chosen]
    looks, seeds = [contexts[i] for i in chosen], list(range(len(chosen)))
    segmenter = load_evaluators(schema=schema)
    base = generator.generate(masks, looks, seeds)
    other = generator.generate(masks, looks, [seed + 10_000 for seed in seeds])
    inside = np.stack([covered(mask, index) > FILLED for mask in masks])
    outside = np.stack([covered(mask, index) < 0.1 for mask in masks])
    before, seeded = measured(base), measured(other)
    rows, errors = [], []
    for asked in ASKED:
        given = [field_of_mask(mask, schema, [Wish(CLASS, asked, asked)], seed=0) for mask in masks]
        images = generator.generate(masks, looks, seeds, fibres=given)
        after = measured(images)
        found = [mean_direction(field, cells) for field, cells in zip(after, inside, strict=True)]
        error = np.abs(turn(np.array(found), np.full(len(found), float(asked))))
        errors.append(error)
        rows.append(
            {
                "asked": asked,
                "measured_median": round(float(np.median(found)), 2),
                "mean_absolute_error": round(float(error.mean()), 2),
                "cell_median_error": round(float(cell_error(after, inside, asked)), 2),
                "dice": round(float(np.nanmean(mean_dice(segmenter.segment(images), np.stack(masks)))), 4),
                "turned_outside": round(changed(before, after, outside), 2),
            }
        )
    return {
        "class": CLASS, "masks": len(masks), "groups": len({wanted.groups[i] for i in chosen}), "rows": rows,
        "mean_absolute_error": round(float(np.concatenate(errors).mean()), 2),
        "dice_nothing_asked": round(float(np.nanmean(mean_dice(segmenter.segment(base), np.stack(masks)))), 4),
        "turned_outside_by_another_seed": round(changed(before, seeded, outside), 2),
    }  # fmt: skip


def measured(images: NDArray[np.uint8]) -> list[Field]:
    """Fields of images."""
    return [field_of_image(image) for image in images]


def mean_direction(field: Field, cells: NDArray[np.bool_]) -> float:
    """The direction of the mean vector over some cells, degrees."""
    return float(np.degrees(np.arctan2(field[1][cells].sum(), field[0][cells].sum())) / 2)


def cell_error(fields: list[Field], cells: NDArray[np.bool_], asked: float) -> float:
    """Median absolute error of single cells, degrees."""
    return float(np.median([abs(value) for f, c in zip(fields, cells, strict=True)
                            for value in turn(directions(f)[0][c], np.array(asked))]))  # fmt: skip


def changed(before: list[Field], after: list[Field], cells: NDArray[np.bool_]) -> float:
    """Median turn, in degrees, of the coherent ones among some cells."""
    turned = []
    for first, second, where in zip(before, after, cells, strict=True):
        coherent = where & (directions(first)[1] > COHERENT)
        turned += np.abs(turn(directions(first)[0][coherent], directions(second)[0][coherent])).tolist()
    return float(np.median(turned)) if turned else float("nan")


def label(generator: Generator, wanted: LabelledSet, contexts: NDArray[np.uint8]) -> dict[str, Any]:
    """The field used against the field measured in the image, by set: median over coherent cells, and correlation."""
    images, used = generator.generate(list(wanted.masks), list(contexts), list(range(len(wanted))), return_fibres=True)
    found = measured(images)
    rows = {}
    for name in sorted({set_of(group) for group in wanted.groups}):
        positions = [i for i, group in enumerate(wanted.groups) if set_of(group) == name]
        errors = [median_error(used[i], found[i]) for i in positions]
        coherence = [
            np.corrcoef(directions(used[i])[1].ravel(), directions(found[i])[1].ravel())[0, 1] for i in positions
        ]
        rows[name] = {
            "images": len(positions),
            "median_error_deg": round(float(np.nanmedian(errors)), 2),
            "coherence_correlation": round(float(np.nanmean(coherence)), 3),
        }
    return rows


def median_error(used: Field, found: Field) -> float:
    """Median absolute difference in degrees over the coherent cells of one image."""
    coherent = directions(used)[1] > COHERENT
    return (
        float(np.median(np.abs(turn(directions(used)[0], directions(found)[0])[coherent])))
        if coherent.any()
        else np.nan
    )


def prior(generator: Generator, train: LabelledSet, wanted: LabelledSet, contexts: NDArray[np.uint8]) -> dict[str, Any]:
    """Fields drawn against real ones, by set: a two-sample test, coherence, direction, likeness to the same mask's."""
    _, drawn = generator.generate(list(wanted.masks), list(contexts), list(range(len(wanted))), return_fibres=True)
    real, seen = np.stack(measured(wanted.images)), np.stack(measured(train.images))
    rows: dict[str, Any] = {}
    for name in sorted({set_of(group) for group in wanted.groups}):
        here = [i for i, group in enumerate(wanted.groups) if set_of(group) == name]
        there = [i for i, group in enumerate(train.groups) if set_of(group) == name]
        groups, others = [wanted.groups[i] for i in here], [train.groups[i] for i in there]
        row: dict[str, Any] = {"images": len(here), "groups": len(set(groups))}
        if len(set(groups)) >= 5:
            test = c2st_of_features(features(real[here]), features(drawn[here]), groups, groups, seed=0)
            row["c2st"] = round(test.accuracy.value, 3)
            test = c2st_of_features(features(real[here]), features(seen[there]), groups, others, seed=0)
            row["c2st_real_against_real"] = round(test.accuracy.value, 3)
        shuffled = list(np.roll(here, len(here) // 2))
        rows[name] = row | {
            "coherence": [round(float(np.hypot(*fields[:, :GIVEN].swapaxes(0, 1)).mean()), 3)
                          for fields in (real[here], drawn[here])],
            "likeness_own_mask": round(likeness(drawn[here], real[here]), 3),
            "likeness_other_mask": round(likeness(drawn[here], real[shuffled]), 3),
            "by_class": by_class(generator, wanted.masks[here], real[here], drawn[here]),
        }  # fmt: skip
    return rows


def features(fields: Field) -> NDArray[np.float32]:
    """(N, 36 + 48) means over 4 x 4 cells of vector and coherence, and how much neighbours differ."""
    vector = fields[:, :GIVEN].astype(np.float64)
    every = np.concatenate([vector, np.hypot(vector[:, :1], vector[:, 1:])], axis=1)
    means = every.reshape(len(fields), 3, 4, 4, 4, 4).mean(axis=(3, 5)).reshape(len(fields), -1)
    steps = [np.log(np.square(np.diff(vector, axis=axis)).sum(axis=1).mean(axis=(1, 2)) + 1e-6) for axis in (2, 3)]
    spread = every.std(axis=(2, 3))
    return np.concatenate([means, np.stack(steps, axis=1), spread], axis=1).astype(np.float32)


def likeness(first: Field, second: Field) -> float:
    """Cosine of two sets of fields, 1 if equal."""
    a, b = first[:, :GIVEN], second[:, :GIVEN]
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def by_class(generator: Generator, masks: NDArray[np.uint8], real: Field, drawn: Field) -> dict[str, Any]:
    """For each class the gap between the distributions of direction, in degrees, and both mean coherences."""
    found: dict[str, Any] = {}
    for index, name in enumerate(generator.bundle.manifest.schema.names):
        cells = np.stack([covered(mask, index) > FILLED for mask in masks])
        if cells.sum() < 50:
            continue
        shares, coherence = [], []
        for fields in (real, drawn):
            angle, length = (np.stack(part) for part in zip(*map(directions, fields), strict=True))
            counts, _ = np.histogram(angle[cells], 36, (-90, 90), weights=length[cells])
            shares.append(counts / counts.sum())
            coherence.append(round(float(length[cells].mean()), 3))
        steps = np.cumsum(shares[0] - shares[1])
        gap = float(np.abs(steps - np.median(steps)).sum() * 5)
        found[name] = {"direction_gap_deg": round(gap, 2), "coherence": coherence, "cells": int(cells.sum())}
    return found


if __name__ == "__main__":
    main()
