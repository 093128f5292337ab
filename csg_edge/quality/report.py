"""The report of a validation: one HTML page with its pictures inside, and the same figures as JSON beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.quality import pages, plots
from csg_edge.quality.comparison import join_name, pooled, sets_of
from csg_edge.quality.gates import rank_sets
from csg_edge.quality.metrics_table import METRICS, describe_metric
from csg_edge.quality.record import Figure, Gate, Record, Subject

Image = NDArray[np.uint8]
Values = NDArray[np.floating[Any]]

PAGE, RECORD = "report.html", "report.json"
REAL = "real"
ORDER = {"control": 0, "teacher": 1, "engine": 2}  # of the columns, left to right


@dataclass(frozen=True)
class SheetRow:
    """One mask and what was made of it, (H, W) uint8; `real` is the recorded image of the mask where there is one."""

    mask: Image
    context: Image
    generated: Image
    real: Image | None = None


@dataclass(frozen=True)
class Neighbour:
    """A generated image and the training image nearest to it; `usual` is the median distance of held-out images."""

    subject: str
    generated: Image
    train: Image
    distance: float
    usual: float | None = None


@dataclass(frozen=True)
class Fake:
    """A generated image with the probability, 0 to 1, that the C2ST classifier gives to its being synthetic."""

    subject: str
    image: Image
    probability: float


@dataclass(frozen=True)
class ContextPair:
    """A generated image and the context it was to look like; `share` of other contexts that look less like it."""

    subject: str
    context: Image
    generated: Image
    share: float | None = None


@dataclass(frozen=True)
class Pictures:
    """What the report shows beside its figures; any part may be empty.

    classes: names of the mask's classes. sheets: subject -> rows. spectra: source -> (frequencies in cycles per pixel,
    natural logarithm of power). histograms: class -> source -> (256,) shares of grey levels. speckle: statistic ->
    source -> its value per image or patch. A source is a subject or "real". neighbours, fakes: worst first.
    """

    classes: tuple[str, ...] = ()
    sheets: Mapping[str, Sequence[SheetRow]] = field(default_factory=dict)
    spectra: Mapping[str, tuple[Values, Values]] = field(default_factory=dict)
    histograms: Mapping[str, Mapping[str, Values]] = field(default_factory=dict)
    speckle: Mapping[str, Mapping[str, Values]] = field(default_factory=dict)
    neighbours: Sequence[Neighbour] = ()
    fakes: Sequence[Fake] = ()
    contexts: Sequence[ContextPair] = ()


def write_report(record: Record, pictures: Pictures, out: Path) -> Path:
    """Write OUT/report.html and OUT/report.json, each whole or not at all; returns the page.

    The page needs no network and no script. Raises InputError where it cannot be written.
    """
    page = _page(record, pictures)
    pages.write_text(out / PAGE, page)
    record.write(out / RECORD)
    return out / PAGE


def summary_lines(record: Record) -> list[str]:
    """One line per gate for a terminal, `pass|FAIL|not judged  subject  gate  value  limit`, in aligned columns."""
    rows = [(_word(gate), gate.subject, gate.name, _number(gate.value), gate.limit) for gate in record.gates]
    widths = [max(len(row[column]) for row in rows) for column in range(4)] if rows else []
    lines = []
    for gate, row in zip(record.gates, rows, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        lines.append("  ".join([*cells, row[4] + (f" ({gate.reason})" if gate.reason else "")]).rstrip())
    return lines


def verdict(record: Record) -> str:
    """The whole validation in one line."""
    counted = [gate for gate in record.gates if gate.counts]
    failed = sum(gate.passed is False for gate in counted)
    open_gates = sum(gate.passed is None for gate in counted)
    total = len(counted)
    if not total:
        return "Not judged: no gates were set"
    if not failed and not open_gates:
        return f"Passed: all {total} gates" if total > 1 else "Passed: the one gate"
    parts = [f"{failed} of {total} gates failed"] if failed else []
    parts += [f"{open_gates} of {total} could not be judged"] if open_gates else []
    parts += [f"worst set {worst}"] if failed and (worst := _worst_set(record)) else []
    return ("Failed: " if failed else "Not judged: ") + ", ".join(parts)


def _worst_set(record: Record) -> str:
    """Name of the set with the largest share of failed gates, with how many; empty where no set failed."""
    sets: dict[str, list[Gate]] = {}
    for gate in record.gates:
        if "/" in gate.name and gate.counts:
            sets.setdefault(gate.name.split("/")[1], []).append(gate)
    ranked = rank_sets(sets)
    failed = [sum(gate.passed is False for gate in sets[name]) for name in ranked]
    return f"{ranked[0]} ({failed[0]} of {len(sets[ranked[0]])})" if ranked and failed[0] else ""


def _tables(record: Record, subjects: Sequence[Subject]) -> list[tuple[str, list[tuple[str, list[Figure | None]]]]]:
    """(title, rows) of a table for each set, in the order of the gates and so the worst first, then of all together."""
    names = list(dict.fromkeys(gate.name.split("/")[1] for gate in record.gates if "/" in gate.name))
    names += [name for subject in subjects for name in sets_of(subject.figures)]
    tables = []
    for name in dict.fromkeys(names):
        figures = []
        for subject in subjects:
            parts = {key: key.split("/") for key in subject.figures}
            figures.append(
                {
                    join_name(part[0], *part[2:]): subject.figures[key]
                    for key, part in parts.items()
                    if len(part) > 1 and part[1] == name
                }
            )
        tables.append((name, _metric_rows(figures)))
    if len(tables) == 1:  # one set by itself is all sets together, but for its classes
        return tables
    rows = _metric_rows([pooled(subject.figures) for subject in subjects])
    return [*tables, ("All sets together" if tables else "", rows)] if rows else tables


def _page(record: Record, pictures: Pictures) -> str:
    from markupsafe import Markup

    ordered = sorted(record.subjects, key=lambda subject: ORDER.get(subject.kind, len(ORDER)))
    subjects = [subject for subject in ordered if subject.kind != "usefulness"]
    useful = [subject for subject in ordered if subject.kind == "usefulness"]
    names = [subject.name for subject in subjects]
    controls = [subject.name for subject in subjects if subject.kind == "control"]
    sources = [*pictures.spectra, *(name for part in _parts(pictures) for name in part)]
    looks = plots.assign_looks([REAL, *names, *sources], [REAL, *controls])
    drawn = {source: look for source, look in looks.items() if source in sources}
    style = pages.read_asset("report.css")
    # Markup marks what this package itself made: its style sheet and the plots, whose text matplotlib escapes.
    return pages.render(
        "report.html",
        record=record,
        verdict=verdict(record),
        state="passed" if record.passed else "failed" if any(gate.passed is False for gate in record.gates) else "open",
        gates=[(gate, _word(gate)) for gate in record.gates],
        subjects=subjects,
        tables=_tables(record, subjects),
        usefulness=useful,
        useful_metrics=[name for name, _ in _metric_rows([subject.figures for subject in useful])],
        notes=_figure_notes(record),
        sheets=_sheets(pictures),
        legend=_legend(pictures),
        looks=drawn,
        dashes=plots.DASHES,
        spectra=Markup(plots.draw_spectra(pictures.spectra, looks)) if pictures.spectra else "",
        histograms={
            name: Markup(plots.draw_histogram(shares, looks, name))
            for name, shares in pictures.histograms.items()
            if shares
        },
        speckle={name: Markup(plots.draw_boxes(values, looks, name)) for name, values in pictures.speckle.items()},
        neighbours=[(item, _uri(item.generated), _uri(item.train)) for item in pictures.neighbours],
        fakes=[(item, _uri(item.image)) for item in pictures.fakes],
        contexts=[(item, _uri(item.context), _uri(item.generated)) for item in pictures.contexts],
        settings=flatten(record.settings),
        environment=flatten(record.environment),
        seconds=[(stage, f"{seconds:.1f}") for stage, seconds in record.seconds.items()],
        total_minutes=f"{sum(record.seconds.values()) / 60:.1f}",
        number=_typeset,
        describe=describe_metric,
        style=Markup(style),
    )


def _parts(pictures: Pictures) -> list[Mapping[str, Values]]:
    return [*pictures.histograms.values(), *pictures.speckle.values()]


def _word(gate: Gate) -> str:
    return "not judged" if gate.passed is None else "pass" if gate.passed else "FAIL"


def _number(value: float | None) -> str:
    """Three or four significant digits, no exponent within reason, a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        decimals = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
        if 0 < abs(value) < 0.1:
            decimals = 2 - math.floor(math.log10(abs(value)))
        return f"{value:.{decimals}f}"
    return f"{value:.2e}"


def _typeset(value: float | None) -> str:
    """`_number` with the signs of print: an en dash for nothing, a minus for less than nothing."""
    text = _number(value)
    return "\N{EN DASH}" if text == "-" else text.replace("-", "\N{MINUS SIGN}")


def _metric_rows(figures: Sequence[Mapping[str, Figure]]) -> list[tuple[str, list[Figure | None]]]:
    """(metric, its figure per subject) in the order of METRICS, each before those of its classes, unknown ones last."""
    present = list(dict.fromkeys(name for found in figures for name in found))
    place = {name: number for number, name in enumerate(METRICS)}
    ordered = sorted(present, key=lambda name: place.get(name.split("/")[0], len(place)))
    return [(name, [found.get(name) for found in figures]) for name in ordered]


def _figure_notes(record: Record) -> dict[str, str]:
    """Each note once -> the metrics that it belongs to."""
    found: dict[str, dict[str, None]] = {}
    for subject in record.subjects:
        for name, figure in subject.figures.items():
            if figure.note:
                found.setdefault(figure.note, {})[describe_metric(name.split("/")[0]).title] = None
    return {note: ", ".join(titles) for note, titles in found.items()}


def _uri(image: Image) -> str:
    return pages.data_uri(pages.png_bytes(image))


def _sheets(pictures: Pictures) -> list[list[list[tuple[str, str]]]]:
    """For each case (mask and context) two lines of (caption, picture): plain images, and the same with outlines.

    Subjects stand side by side, so that one look compares them; a subject without a case leaves its cell out.
    """
    from csg_edge.generation.sheets import colour_mask, overlay

    cases: dict[tuple[bytes, bytes], list[tuple[str, SheetRow]]] = {}
    for subject, rows in pictures.sheets.items():
        for row in rows:
            cases.setdefault((row.mask.tobytes(), row.context.tobytes()), []).append((subject, row))
    lines = []
    for found in cases.values():
        first = found[0][1]
        images = [(subject, row.generated) for subject, row in found]
        images = ([("real of this mask", first.real)] if first.real is not None else []) + images
        plain = [("context", _uri(first.context))] + [(title, _uri(image)) for title, image in images]
        outlined = [("mask", _uri(colour_mask(first.mask)))]
        outlined += [(f"{title}, outlined", _uri(overlay(image, first.mask))) for title, image in images]
        lines.append([plain, outlined])
    return lines


def _legend(pictures: Pictures) -> list[tuple[str, str]]:
    """(class, CSS colour) of the classes that the sheets show."""
    from csg_edge.generation.sheets import PALETTE

    rows = [row for rows in pictures.sheets.values() for row in rows]
    present = sorted({int(index) for row in rows for index in np.unique(row.mask)} - {0})
    legend = []
    for index in present:
        blue, green, red = (int(level) for level in PALETTE[index % len(PALETTE)])
        name = pictures.classes[index] if index < len(pictures.classes) else f"class {index}"
        legend.append((name, f"#{red:02x}{green:02x}{blue:02x}"))
    return legend


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            rows.append((f"{prefix}{name}", ", ".join(str(item) for item in value)))
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows
