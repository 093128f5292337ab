"""Which engines of a bundle run on this machine, and how fast: a table in Markdown, to send to us or to keep.

    python examples/benchmark_my_machine.py --bundle msk-256 --images 30

Engines take turns, an image each, so that what else the machine does hits all alike. For figures to quote, with
LoadGen's clock, cold starts and a roofline: `csg-edge bench` (docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack

import numpy as np

import csg_edge
from csg_edge.bundle.manifest import find_bundle, read_bundle
from csg_edge.datasets.phantom import make_phantom
from csg_edge.errors import CsgEdgeError
from csg_edge.machine import processor_name


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="msk-256")
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--steps", type=int, default=1)
    arguments = parser.parse_args()

    manifest = read_bundle(find_bundle(arguments.bundle)).manifest
    phantom = make_phantom(1)
    with ExitStack() as opened:
        generators, absent = {}, {}
        for engine in manifest.engines:
            if engine.steps != arguments.steps:
                continue
            runtime, device, precision = engine.target.split(":")
            options = {"runtime": runtime, "device": device, "precision": precision, "steps": engine.steps}
            try:
                generators[engine.target] = opened.enter_context(csg_edge.load(arguments.bundle, **options))
            except CsgEdgeError as error:
                absent[engine.target] = str(error)
        times: dict[str, list[float]] = {target: [] for target in generators}
        for number in range(-3, arguments.images):
            for target, generator in generators.items():
                start = time.perf_counter()
                generator.generate_one(phantom.mask, phantom.image, seed=number + 3)
                if number >= 0:  # the first three warm up
                    times[target].append(1000 * (time.perf_counter() - start))

    print(f"{manifest.name}, {arguments.steps} step(s), {processor_name()}\n")
    print("| engine | median, ms | 95th percentile, ms | images/s |\n|---|---|---|---|")
    for target, found in sorted(times.items(), key=lambda item: np.median(item[1])):
        median, high = np.percentile(found, [50, 95])
        print(f"| {target} | {median:.1f} | {high:.1f} | {1000 / median:.0f} |")
    for target, reason in absent.items():
        print(f"\n{target}: {reason}")


if __name__ == "__main__":
    main()
