"""The plot of the README from records: ours by `csg-edge bench`, and what one would use instead by peers/run.py.

python benchmarks/plot.py benchmarks/results/latency.json benchmarks/results/peers.json --out docs/images/latency.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from csg_edge.benchmarks.files import read_record

OURS, THEIRS, INK = "#0072b2", "#8a8f98", "#333333"


def main() -> None:
    """Draw both on one logarithmic axis of milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="bench.json of csg-edge bench")
    parser.add_argument("peers", type=Path, help="peers.json")
    parser.add_argument("--out", type=Path, default=Path("docs/images/latency.png"))
    arguments = parser.parse_args()
    record, peers = read_record(arguments.record), json.loads(arguments.peers.read_text(encoding="utf-8"))
    bars = engine_bars(record) + peer_bars(peers)
    bars.sort(key=lambda bar: bar[1])
    draw(bars, f"{record['machine']['processor']}, {record['machine']['cores_available']} cores", arguments.out)


def engine_bars(record: dict[str, Any]) -> list[tuple[str, float, float, float, str]]:
    """(label, median, low, high, colour) of every measured engine, in ms."""
    found = []
    for row in record["engines"]:
        if row["status"] == "ok" and "single-stream" in row["scenarios"]:
            single = row["scenarios"]["single-stream"]
            low, high = single["median_interval_ms"]
            found.append((f"csg-edge {row['label']}", single["latency_ms"]["p50"], low, high, OURS))
    return found


def peer_bars(peers: dict[str, Any]) -> list[tuple[str, float, float, float, str]]:
    """The same of every peer; its spread is that of its turns."""
    found = []
    for name, row in peers["peers"].items():
        if row["status"] == "ok" and ", against" not in name:
            spread = row["peer_ms"]
            found.append((name, spread["median"], spread["q1"], spread["q3"], THEIRS))
    return found


def draw(bars: list[tuple[str, float, float, float, str]], title: str, out: Path) -> None:
    """One bar each, shortest on top."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 0.9 + 0.3 * len(bars)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(bars), 0, -1)
    for place, (_, median, low, high, colour) in zip(places, bars, strict=True):
        axes.barh(place, median, color=colour, height=0.62)
        axes.plot((low, high), (place, place), color=INK, lw=1.5)
        axes.text(1.08 * max(median, high), place, f"{median:.4g} ms", va="center", fontsize=8, color=INK)
    axes.set_yticks(list(places), [label for label, *_ in bars], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(right=4 * max(bar[1] for bar in bars))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("one image, ms (median; line: 95 % interval, of peers quartiles)", fontsize=8)
    axes.set_title(title, loc="left", fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


if __name__ == "__main__":
    main()
