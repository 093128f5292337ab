"""The pictures of a report, chosen from what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from csg_edge.quality.cases import Cases, RealData
from csg_edge.quality.measure import Measured
from csg_edge.quality.report import REAL, ContextPair, Fake, Neighbour, Pictures, SheetRow
from csg_edge.quality.speckle import STATISTICS

ROWS = 12
WORST = 6


def choose_pictures(measured: Sequence[Measured], cases: Cases, real: RealData, classes: Sequence[str]) -> Pictures:
    """The same cases of every subject; the nearest neighbours and the most obvious fakes, worst first."""
    subjects = [item for item in measured if item.subject.kind != "control"]
    shown = np.unique(np.linspace(0, cases.single - 1, ROWS).astype(int))
    names = {item.subject.name: REAL if item.subject.kind == "control" else item.subject.name for item in measured}
    views = {names[item.subject.name]: item.view for item in measured if item.view is not None}
    spectra = {name: view.spectra.mean(axis=0) for name, view in views.items()}
    side = real.held_out.images.shape[1]
    speckle = {name: view.speckle.values for name, view in views.items() if view.speckle is not None}
    return Pictures(
        classes=tuple(classes),
        sheets={
            item.subject.name: [
                SheetRow(
                    cases.wanted.masks[index], cases.contexts.images[index], item.samples.images[index],
                    cases.wanted.images[index],
                )
                for index in shown
            ]
            for item in subjects
        },
        spectra={name: ((np.arange(len(levels)) + 1) / side, levels) for name, levels in spectra.items()},
        histograms=_histograms(subjects, classes),
        speckle={
            statistic: {name: values[:, column] for name, values in speckle.items()}
            for column, statistic in enumerate(STATISTICS)
        },
        neighbours=[neighbour for item in subjects for neighbour in _neighbours(item, real)],
        fakes=[fake for item in subjects for fake in _fakes(item)],
        contexts=[pair for item in subjects for pair in _contexts(item, cases)],
    )  # fmt: skip


def _histograms(subjects: Sequence[Measured], classes: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for item in subjects:
        if item.histograms is not None:
            for index, shares in item.histograms.generated.items():
                drawn = found.setdefault(classes[index], {REAL: item.histograms.real[index]})
                drawn[item.subject.name] = shares
    return found


def _neighbours(item: Measured, real: RealData) -> list[Neighbour]:
    if item.memorisation is None:
        return []
    ours = item.memorisation.generated
    usual = float(np.median(item.memorisation.held_out.distances))
    return [
        Neighbour(
            item.subject.name, item.samples.images[index], real.train.images[ours.indices[index]],
            float(ours.distances[index]), usual,
        )
        for index in np.argsort(ours.distances, kind="stable")[:WORST]
    ]  # fmt: skip


def _fakes(item: Measured) -> list[Fake]:
    test = item.tests.get("c2st_pixels") or item.tests.get("c2st")
    if test is None:
        return []
    worst = np.argsort(-test.generated, kind="stable")[:WORST]
    chance = 1 / (1 + np.exp(-test.generated[worst]))
    return [
        Fake(item.subject.name, item.samples.images[index], float(value))
        for index, value in zip(worst, chance, strict=True)
    ]


def _contexts(item: Measured, cases: Cases) -> list[ContextPair]:
    if item.style is None:
        return []
    worst = np.argsort(item.style.shares, kind="stable")[:WORST]
    return [
        ContextPair(
            item.subject.name, cases.contexts.images[index], item.samples.images[index], float(item.style.shares[index])
        )
        for index in worst
    ]
