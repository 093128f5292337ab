"""Curves of a benchmark report as inline SVG, in the look of the quality report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from csg_edge.quality.plots import Look, draw_figure, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGE_COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#d55e00", "#8a8f98", "#b8bcc4", "#f0e442")


def draw_distribution(values: Mapping[str, Sequence[float]], looks: Mapping[str, Look], name: str) -> str:
    """Share of queries that took no longer: label -> latencies in ms; the axis is logarithmic."""

    def draw(axes: Axes) -> None:
        for label, found in values.items():
            ordered = np.sort(np.asarray(found))
            shares = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
            axes.step(ordered, shares, where="post", color=looks[label].colour, ls=looks[label].line, lw=1.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
        for share in (50, 90, 99):
            axes.axhline(share, color="#8a8f98", lw=0.5, ls=":")
        axes.set_yticks((0, 50, 90, 99))
        axes.set_xlabel("latency, ms")
        axes.set_ylabel("queries, %")
        axes.set_title(plain_text(name), loc="left")

    return draw_figure((6.4, 3.2), f"distribution {name}", draw)


def draw_course(
    values: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]], looks: Mapping[str, Look], name: str
) -> str:
    """Latency over time: label -> per round (seconds since its start, ms). A rise within a round is throttling."""

    def draw(axes: Axes) -> None:
        begin = 0.0
        longest = max((len(rounds) for rounds in values.values()), default=0)
        for turn in range(longest):
            here = [(label, rounds[turn]) for label, rounds in values.items() if turn < len(rounds)]
            for label, (seconds, ms) in here:
                axes.plot(begin + np.asarray(seconds), ms, ".", color=looks[label].colour, ms=3.0, alpha=0.7)
            begin += 1.05 * max(seconds[-1] for _, (seconds, _) in here)
            if turn + 1 < longest:
                axes.axvline(begin, color="#8a8f98", lw=0.5, ls=":")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
        axes.set_xlabel("seconds, round after round")
        axes.set_ylabel("latency, ms")
        axes.set_title(plain_text(name), loc="left")

    return draw_figure((6.4, 3.2), f"course {name}", draw)


def draw_stages(stages: Mapping[str, Mapping[str, float]]) -> str:
    """Where one image's time goes: label -> stage -> ms, as one bar for each engine."""
    names = list(dict.fromkeys(stage for found in stages.values() for stage in found))
    labels = list(stages)

    def draw(axes: Axes) -> None:
        begin = np.zeros(len(labels))
        places = np.arange(len(labels))[::-1]
        for index, stage in enumerate(names):
            widths = np.array([stages[label].get(stage, 0.0) for label in labels])
            colour = STAGE_COLOURS[index % len(STAGE_COLOURS)]
            axes.barh(places, widths, left=begin, color=colour, height=0.6, label=plain_text(stage))
            begin += widths
        axes.set_yticks(places, [plain_text(label) for label in labels])
        axes.set_xlabel("ms per image")
        axes.legend(frameon=False, fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.4, -0.25 - 0.1))

    return draw_figure((6.8, 1.6 + 0.34 * len(labels)), "stages", draw)


def draw_quality(
    points: Mapping[str, tuple[float, float, float | None, float | None]], looks: Mapping[str, Look], name: str
) -> str:
    """Speed against quality: label -> (ms, figure, low, high)."""

    def draw(axes: Axes) -> None:
        for label, (ms, value, low, high) in points.items():
            colour = looks[label].colour
            if low is not None and high is not None:
                axes.plot((ms, ms), (low, high), color=colour, lw=1.2)
            axes.plot(ms, value, "o", color=colour, ms=6)
        axes.set_xlabel("single-stream median, ms")
        axes.set_ylabel(plain_text(name))
        axes.set_xlim(left=0)

    return draw_figure((4.8, 3.0), f"quality {name}", draw)
