"""How fast is a student of another shape? Random weights, one step, every runtime and precision of this machine.

    python benchmarks/shapes.py [--rounds 40] [--row "teacher's own network"]

Each shape is exported as a student is, and opened in OpenVINO (fp32, bf16, int8 by NNCF) and ONNX Runtime (fp32). All
engines take turns, so that a slow minute hits every one of them. Writes `benchmarks/results/shapes.json` and a table.
What a shape is worth is in `ablation.json`. Let nothing else run. Needs NNCF for int8 (pip install nncf).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch

import csg_edge
from csg_edge.export.graph import export_graphs
from csg_edge.generation.doctor import processor_name
from csg_edge.labels import MSK_SCHEMA
from csg_edge.training.block_dct import BlockDct, BlockDctConfig
from csg_edge.training.model import CsgModel
from csg_edge.training.networks import CsgUNet, NetworkConfig
from csg_edge.training.student import kernel_friendly
from csg_edge.training.teacher import MSK_NETWORK

SIZE = 256
FULL = kernel_friendly(MSK_NETWORK)
SHAPES: dict[str, NetworkConfig] = {
    "shipped": FULL,
    "ReLU": replace(FULL, activation="relu"),
    "with attention": replace(FULL, attention=True),
    "group norm, SiLU": replace(FULL, norm="group", activation="silu"),
    "teacher's own network": MSK_NETWORK,
    "two blocks fewer": replace(FULL, deeper=0),
    "three quarters of the width": replace(FULL, widths=(64, 96, 128)),
    "nano": kernel_friendly(MSK_NETWORK, network="nano"),
}


def main() -> None:
    """Export, open, time in turns, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", action="append", choices=list(SHAPES), help="all, if not given")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shapes.json"))
    arguments = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.row or SHAPES:
            model = student(SHAPES[name])
            rows[name] = {"gmac": round(gmac(model), 2), "parameters": count(model), "milliseconds": {}}
            graph = export_graphs(model, (1,), Path(folder) / name)[1, 1]
            calls |= {(name, engine): call for engine, call in engines(graph, model).items()}
            print(name, rows[name], flush=True)
        times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
        for _ in range(arguments.rounds):
            for key, call in calls.items():
                call()  # brings its weights back into the cache: nobody makes one image of each of eight engines
                began = time.perf_counter()
                call()
                times[key].append(1e3 * (time.perf_counter() - began))
    for (name, engine), found in times.items():
        quarters = statistics.quantiles(found, n=4)
        rows[name]["milliseconds"][engine] = [round(value, 2) for value in quarters]
    record = {
        "csg_edge": csg_edge.__version__, "processor": processor_name(), "cores": os.cpu_count(),
        "rounds": arguments.rounds, "quartiles": [25, 50, 75], "rows": rows,
    }  # fmt: skip
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(table(rows))


def student(shape: NetworkConfig) -> CsgModel:
    """A student of a shape, weights as drawn."""
    torch.manual_seed(0)
    noise = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE), dtype=np.uint8)
    transform = BlockDct(BlockDctConfig.fit(noise))
    return CsgModel(CsgUNet(shape), transform, schema=MSK_SCHEMA, image_size=SIZE, role="student", steps=(1,)).eval()


def count(model: CsgModel) -> int:
    """Parameters of the network, its embedding of the timestep left out: that is a constant in the graph."""
    return sum(weight.numel() for name, weight in model.network.named_parameters() if not name.startswith("time."))


def gmac(model: CsgModel) -> float:
    """Multiply-accumulates of one image in convolutions and linear layers, in billions; conditions included."""
    from torch.utils.flop_counter import FlopCounterMode

    mask, context = torch.zeros(1, SIZE, SIZE, dtype=torch.uint8), torch.ones(1, SIZE, SIZE, dtype=torch.uint8)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.velocity(model.conditions(mask, context))(torch.zeros(model.latent_shape(1)), 1.0)
    return float(counter.get_total_flops()) / 2e9


def engines(graph: Path, model: CsgModel) -> dict[str, Callable[[], object]]:
    """What can be timed of a graph: engine -> one call of it."""
    random = np.random.default_rng(1)

    def feed() -> dict[str, np.ndarray]:
        return {
            "mask": random.integers(0, len(MSK_SCHEMA), (1, SIZE, SIZE), dtype=np.uint8),
            "context": random.integers(0, 256, (1, SIZE, SIZE), dtype=np.uint8),
            "noise": random.standard_normal(model.latent_shape(1), dtype=np.float32),
        }

    fixed, core = feed(), openvino.Core()
    opened = core.read_model(graph)
    found: dict[str, Callable[[], object]] = {}

    def compiled(network: openvino.Model, precision: str) -> Callable[[], object]:
        options = {
            "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": os.cpu_count() or 1,
        }  # fmt: skip
        request = core.compile_model(network, "CPU", options).create_infer_request()
        return lambda: request.infer(fixed)

    found["OpenVINO fp32"] = compiled(opened, "f32")
    found["OpenVINO bf16"] = compiled(opened, "bf16")
    try:
        import nncf
    except ImportError:
        print("nncf is not installed: no int8")
    else:
        nncf.set_log_level(40)
        quantised = nncf.quantize(
            opened, nncf.Dataset([feed() for _ in range(4)]), model_type=nncf.ModelType.TRANSFORMER, subset_size=4
        )
        found["OpenVINO int8"] = compiled(quantised, "bf16")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found["ONNX Runtime fp32"] = lambda: session.run(None, fixed)
    return found


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: medians in milliseconds."""
    names = sorted({engine for row in rows.values() for engine in row["milliseconds"]})
    lines = ["| shape | GMAC | parameters | " + " | ".join(names) + " |", "|---" * (len(names) + 3) + "|"]
    for name, row in rows.items():
        medians = [
            f"{row['milliseconds'][engine][1]:.1f}" if engine in row["milliseconds"] else "-" for engine in names
        ]
        lines.append(f"| {name} | {row['gmac']} | {row['parameters'] / 1e6:.1f} M | " + " | ".join(medians) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
