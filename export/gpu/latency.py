"""Median milliseconds of an image by an engine of a bundle: python latency.py BUNDLE onnxruntime:CUDA:fp16"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import csg_edge

ROUNDS, WARM = 100, 10


def main() -> int:
    """Returns the exit code."""
    folder, target = sys.argv[1:]
    runtime, device, precision = target.split(":")
    with csg_edge.load(Path(folder), runtime=runtime, device=device, precision=precision) as generator:
        shape = generator.bundle.manifest.image_size
        mask, context = np.zeros(shape, np.uint8), np.full(shape, 90, np.uint8)
        taken = []
        for seed in range(WARM + ROUNDS):
            start = time.perf_counter()
            generator.generate(mask[None], context[None], [seed])
            taken.append(1e3 * (time.perf_counter() - start))
    print(json.dumps({"target": target, "median_ms": round(statistics.median(taken[WARM:]), 3), "rounds": ROUNDS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
