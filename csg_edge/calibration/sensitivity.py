"""Which layers may become int8: ranked by what each, quantised alone, does to the final image.

NNCF's accuracy control ranks for NNCF's own engines only, and keeps the ranking to itself; ONNX Runtime's debugging
tools compare the activations of a layer, not the image. So this loop is ours: one ranking, by ONNX Runtime's
quantiser, serves every runtime, and each runtime's engine is then judged as it is.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from csg_edge.calibration.layers import Layer
from csg_edge.calibration.onnx_qdq import ORT_CPU, Ranges, quantise
from csg_edge.runtimes.base import Results

MIN_SHARE = 0.001  # of the graph's MACs: a layer with less has no time to gain, so it stays as it is


@dataclass(frozen=True)
class Sensitivity:
    """error: mean squared error of the final image, in squared grey levels, when this layer alone is int8.

    None for a layer that is too small to be quantised at all. share: its part of the graph's MACs.
    """

    layer: Layer
    share: float
    error: float | None

    @property
    def psnr(self) -> float | None:
        """The same in dB; None without an error or if not one pixel changed."""
        return None if not self.error else 10 * math.log10(255**2 / self.error)


def worth_it(layers: Sequence[Layer]) -> list[Layer]:
    """The layers that have time to gain from int8."""
    total = sum(layer.macs for layer in layers)
    return [layer for layer in layers if layer.macs >= MIN_SHARE * total]


def rank_layers(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    ranges: Ranges,
    feeds: Sequence[Results],
    *,
    kept_at: Path,
    note: Callable[[], None] = lambda: None,
) -> tuple[Sensitivity, ...]:
    """Sensitivity of every layer, the most sensitive first, those too small last.

    model: fp32 graph. kept_at: file of what has been measured, one line a layer, from which a stopped ranking goes on;
    it must be of the same graph, ranges and feeds. `note` is called for each layer measured.
    """
    total = sum(layer.macs for layer in layers)
    measured = worth_it(layers)
    known = _read(kept_at)
    reference: list[np.ndarray] = []
    found = []
    for layer in layers:
        share = layer.macs / total
        if layer not in measured:
            found.append(Sensitivity(layer, share, None))
            continue
        if layer.name not in known:
            if not reference:
                reference = _images(model, feeds)
            images = _images(quantise(model, ranges, ORT_CPU, only=layer.nodes), feeds)
            squares = [np.mean((a.astype(np.float64) - b) ** 2) for a, b in zip(images, reference, strict=True)]
            known[layer.name] = float(np.mean(squares))
            with kept_at.open("a", encoding="utf-8") as file:
                file.write(json.dumps([layer.name, known[layer.name]]) + "\n")
        note()
        found.append(Sensitivity(layer, share, known[layer.name]))
    return tuple(sorted(found, key=lambda item: math.inf if item.error is None else -item.error))


def write_table(path: Path, ranking: Sequence[Sensitivity], kept: dict[str, set[str]]) -> None:
    """Write a ranking as CSV. kept: target -> names of nodes that its engine keeps in 16 or 32 bits."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["rank", "layer", "operator", "stages", "share_of_macs", "mean_square_error", "psnr_db", *kept])
        for rank, item in enumerate(ranking, 1):
            error = "" if item.error is None else f"{item.error:.5g}"
            psnr = "" if item.psnr is None else f"{item.psnr:.2f}"
            bits = ["16 or 32 bit" if item.layer.nodes[0] in names else "int8" for names in kept.values()]
            layer = item.layer
            writer.writerow(
                [rank if error else "", layer.name, layer.operator, " ".join(layer.stages), f"{item.share:.5f}", error,
                 psnr, *bits]
            )  # fmt: skip


def draw_ranking(path: Path, ranking: Sequence[Sensitivity]) -> None:
    """Draw a ranking as a PNG: the error that each layer alone makes, in the order of computation."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    measured = [item for item in ranking if item.error is not None]
    figure, axes = plt.subplots(figsize=(8.0, 0.22 * len(measured) + 1.2), layout="constrained")
    axes.barh([item.layer.name for item in measured], [item.error or 0.0 for item in measured], color="#0072b2")
    axes.invert_yaxis()
    axes.set_xlabel("mean squared error of the final image, squared grey levels, this layer alone in int8")
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(y=0.01)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _images(model: onnx.ModelProto, feeds: Sequence[Results]) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(["image"], dict(item))[0] for item in feeds]


def _read(path: Path) -> dict[str, float]:
    """What was measured before; a last line that was cut off is left out."""
    known = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            name, error = json.loads(line)
        except ValueError:
            continue
        known[str(name)] = float(error)
    return known
