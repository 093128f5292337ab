"""Curves of a quality report as inline SVG that takes its text colour from the page, so that it reads in the dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = NDArray[np.floating]

# Okabe & Ito (2008): stay apart for colour-blind readers. Line styles differ as well, for print without colour.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES = ("-", "--", "-.", ":")
DASHES = {"-": "none", "--": "6 3", "-.": "8 2 2 2", ":": "2 2"}  # the same for the page's own legend
INK = "#123456"  # stands for the page's text colour until the SVG is written
CONTROL = "#8a8f98"


@dataclass(frozen=True)
class Look:
    """How one source is drawn in every plot of a report."""

    colour: str
    line: str
    width: float

    @property
    def css(self) -> str:
        """The colour as the page writes it."""
        return "currentColor" if self.colour == INK else self.colour


def assign_looks(sources: Sequence[str], real: Sequence[str]) -> dict[str, Look]:
    """A look for each source, by its place in the list; those in `real` are drawn in the text colour or grey."""
    looks: dict[str, Look] = {}
    others = 0
    for source in dict.fromkeys(sources):
        if source in real:
            looks[source] = Look(INK if source == real[0] else CONTROL, "-", 2.2)
        else:
            looks[source] = Look(COLOURS[others % len(COLOURS)], LINES[others % len(LINES)], 1.6)
            others += 1
    return looks


def draw_spectra(spectra: Mapping[str, tuple[Values, Values]], looks: Mapping[str, Look]) -> str:
    """Radial power spectra: source -> (frequencies in cycles per pixel, natural logarithm of power)."""

    def draw(axes: Axes) -> None:
        for source, (frequencies, power) in spectra.items():
            look = looks[source]
            axes.plot(frequencies, power, color=look.colour, ls=look.line, lw=look.width)
        axes.set_xlabel("spatial frequency, cycles per pixel")
        axes.set_ylabel("log power, nats")

    return draw_figure((6.4, 3.4), "spectra", draw)


def draw_histogram(shares: Mapping[str, Values], looks: Mapping[str, Look], name: str) -> str:
    """Grey levels of one class: source -> share of pixels per level or bin, drawn from black to white.

    256 levels are drawn in bins of 8, which is what the eye can compare.
    """

    def draw(axes: Axes) -> None:
        for source, values in shares.items():
            look = looks[source]
            bins = values.reshape(-1, 8).sum(axis=1) if len(values) == 256 else values
            levels = np.linspace(0, 256, len(bins) + 1)
            shown = 100 * bins / max(bins.sum(), 1e-12)
            axes.stairs(shown, levels, color=look.colour, ls=look.line, lw=look.width)
        axes.set_xlim(0, 256)
        axes.set_xlabel("grey level")
        axes.set_ylabel("pixels, %")
        axes.set_title(plain_text(name), loc="left")

    return draw_figure((4.2, 2.6), f"histogram {name}", draw)


def draw_boxes(values: Mapping[str, Values], looks: Mapping[str, Look], name: str) -> str:
    """One statistic over images: source -> its value in each image or patch; boxes of quartiles, whiskers 5 to 95 %."""
    kept = {source: found[np.isfinite(found)] for source, found in values.items()}
    kept = {source: found for source, found in kept.items() if len(found)}

    def draw(axes: Axes) -> None:
        boxes = axes.boxplot(
            list(kept.values())[::-1], orientation="horizontal", whis=(5, 95), showfliers=False, widths=0.55,
            tick_labels=[plain_text(source) for source in kept][::-1],
        )  # fmt: skip
        for position, source in enumerate(reversed(list(kept))):
            parts = [boxes["boxes"][position], boxes["medians"][position]]
            parts += boxes["whiskers"][2 * position : 2 * position + 2] + boxes["caps"][2 * position : 2 * position + 2]
            for part in parts:
                part.set(color=looks[source].colour, linewidth=1.6)
        axes.set_title(plain_text(name), loc="left")

    return draw_figure((5.2, 0.75 + 0.26 * len(kept)), f"boxes {name}", draw) if kept else ""


def plain_text(text: str) -> str:
    """Text as matplotlib shows it word for word: a dollar sign would start mathematics."""
    return text.replace("$", r"\$").replace("_", " ")


def draw_figure(size: tuple[float, float], salt: str, draw: Callable[[Axes], None]) -> str:
    """Draw one pair of axes, `size` in inches, into inline SVG. `salt`: unique among the figures of a page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",  # text stays text: it is small, can be selected and takes the page's colour
        "svg.hashsalt": salt,  # ids differ between the figures of a page and not between runs
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)  # inside HTML the parser knows them
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)  # the page sets the width
    svg = re.sub(r"(font: [\d.]+px|font-family:) [^;\"]*", lambda match: f"{match[1]} sans-serif", svg)
    return svg.replace(INK, "currentColor")
