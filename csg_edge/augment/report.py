"""The page of an augmented set: class balance, what the checks sent back, the direction of fibres, examples.

Written where the quality extra is installed, whose templates and plots it uses; the record has the same figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.augment.writers import REAL, SYNTHETIC, Entry, Writer
from csg_edge.conditions.arrays import resize_image
from csg_edge.conditions.fibres import directions, field_of_image
from csg_edge.generation.sheets import overlay
from csg_edge.quality.pages import data_uri, png_bytes, read_asset, render, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"
EXAMPLES = 12
MEASURED = 200  # images of each kind whose fibres are measured
BINS = 36  # of 5 degrees
EXAMPLE_STYLE = ".examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: 1rem; }"

Image = NDArray[np.uint8]
Values = NDArray[np.float64]


def write_report(out: Path, record: dict[str, Any], entries: Sequence[Entry], writer: Writer) -> None:
    """Write the page."""
    made = [item for item in entries if item.origin == SYNTHETIC]
    real = [item for item in entries if item.origin == REAL]
    roses = {kind: rose([writer.read(item)[0] for item in spread(items, MEASURED)])
             for kind, items in (("real", real), ("made", made)) if items}  # fmt: skip
    limits = (record["limits"] or {}).get("dice", {})
    rows = [
        {
            "name": name, **row, **{key: f"{100 * row[key]:.1f} %" for key in ("before_share", "after_share")},
            "tried": record["tried"].get(name, 0), "rate": f"{100 * record['rejection_rates'].get(name, 0.0):.1f} %",
            "limit": f"{limits.get(name, 0.0) if isinstance(limits, dict) else limits:.2f}",
        }
        for name, row in record["classes"].items()
    ]  # fmt: skip
    faults = record["faults"]
    page = render(
        "augment.html", folder=TEMPLATES, style=_markup(read_asset("report.css") + EXAMPLE_STYLE), set=record["set"],
        made=record["made"], masks=record["masks"], left_out=len(record["left_out"]), rows=rows,
        checked=record["limits"] is not None, copies=faults.get("copy", 0), twins=faults.get("twin", 0),
        variations=faults.get("variation", 0), rose=_markup(_draw_roses(roses)) if roses else "",
        examples=[(item.name, _example(*writer.read(item))) for item in spread(made, EXAMPLES)],
        settings=[
            ("bundle", f"{record['bundle']}, SHA-256 of its manifest {record['manifest_sha256']}"),
            ("engine", f"{record['engine']}, {record['steps']} step(s)"),
            ("contexts", f"{record['contexts']} used, {len(record['refused'])} refused for text"),
            ("plan", json.dumps(record["plan"])), ("limits", json.dumps(record["limits"])),
        ],
    )  # fmt: skip
    write_text(out / PAGE, page)


def rose(images: Sequence[Image]) -> Values:
    """(BINS,) shares of the directions of fibres from -90 to 90 degrees, by coherence."""
    total = np.zeros(BINS)
    for image in images:
        angle, coherence = directions(field_of_image(resize_image(image, 256, 256)))
        total += np.histogram(angle, BINS, (-90, 90), weights=coherence)[0]
    return total / max(float(total.sum()), 1e-12)


def spread(items: Sequence[Entry], number: int) -> list[Entry]:
    """At most so many of them, evenly."""
    step = max(1, -(-len(items) // number))
    return list(items[::step])


def _draw_roses(roses: dict[str, Values]) -> str:
    from csg_edge.quality.plots import COLOURS, CONTROL, draw_figure

    def draw(axes: Axes) -> None:
        middles = np.arange(-90, 90, 180 / BINS) + 90 / BINS
        for kind, shares in roses.items():
            axes.step(middles, 100 * shares, where="mid", color=CONTROL if kind == "real" else COLOURS[0], lw=1.8)
        axes.set_xlim(-90, 90)
        axes.set_xticks(range(-90, 91, 30))
        axes.set_xlabel("direction, degrees from the horizontal")
        axes.set_ylabel("% of the fibres")

    drawing: Callable[[Axes], None] = draw
    return draw_figure((6.4, 2.6), "rose", drawing)


def _example(image: Image, mask: Image) -> str:
    width = round(200 * image.shape[1] / image.shape[0])
    pair = np.hstack([overlay(image, mask), cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)])
    return data_uri(png_bytes(np.asarray(cv2.resize(pair, (2 * width, 200), interpolation=cv2.INTER_AREA), np.uint8)))


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
