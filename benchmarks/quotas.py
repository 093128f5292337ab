"""Latency where a container is granted less than a machine: are the default threads the best choice?

    python benchmarks/quotas.py --out benchmarks/results/quotas.json   # as root, on Linux

For each quota a control group is made, and in it one process for each number of threads and one for the default. They
take turns, image by image in rounds, so that a busy machine slows all of them alike; only one works at a time, so the
quota is its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from csg_edge.machine import allowed_processors, processor_name
from csg_edge.storage import write_json

QUOTAS = (0.5, 1.0, 1.5)
PERIOD = 100_000  # microseconds, the kernel's default
ROUNDS, IMAGES = 12, 25

WORKER = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
import csg_edge, numpy as np
from csg_edge.machine import default_threads
threads = None if sys.argv[2] == "default" else int(sys.argv[2])
with csg_edge.load(sys.argv[3], threads=threads) as generator:
    size = generator.bundle.manifest.image_size
    mask, context = np.full((1, *size), 3, np.uint8), np.full((1, *size), 90, np.uint8)
    for seed in range(10):
        generator.generate(mask, context, [seed])
    print(threads or default_threads() or 0, flush=True)  # 0: as the runtime has it
    for line in sys.stdin:
        for seed in range(int(line)):
            start = time.perf_counter()
            generator.generate(mask, context, [seed])
            print(1000 * (time.perf_counter() - start))
        sys.stdout.flush()
"""


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="msk-256")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "machine": processor_name(), "processors": allowed_processors(), "images": ROUNDS * IMAGES, "quotas": {},
    }  # fmt: skip
    for quota in QUOTAS:
        record["quotas"][str(quota)] = found = measure(quota, arguments.bundle)
        rows = ", ".join(f"{name} {about['mean_ms']:.1f} ms" for name, about in found["choices"].items())
        print(f"quota {quota:g}: {rows}; default over best {found['default_over_best']:.3f}", flush=True)
    write_json(arguments.out, record)


def measure(quota: float, bundle: str) -> dict[str, Any]:
    """Mean and 90th percentile latency of each number of threads under a quota, the default among them."""
    choices = ["default", *(str(count) for count in range(1, allowed_processors() + 1))]
    with ExitStack() as stack:
        group = stack.enter_context(control_group(quota))
        workers = {name: stack.enter_context(worker(group, name, bundle)) for name in choices}
        threads = {name: int(process.stdout.readline()) for name, process in workers.items()}
        times: dict[str, list[float]] = {name: [] for name in choices}
        for turn in range(ROUNDS):
            for name in choices[turn % len(choices) :] + choices[: turn % len(choices)]:
                process = workers[name]
                process.stdin.write(f"{IMAGES}\n")
                process.stdin.flush()
                times[name] += [float(process.stdout.readline()) for _ in range(IMAGES)]
    found = {
        name: {
            "threads": threads[name], "mean_ms": statistics.fmean(values),
            "p90_ms": statistics.quantiles(values, n=10)[8],
        }
        for name, values in times.items()
    }  # fmt: skip
    best = min(about["mean_ms"] for about in found.values())
    return {"choices": found, "default_over_best": found["default"]["mean_ms"] / best}


@contextmanager
def worker(group: Path, threads: str, bundle: str) -> Iterator[Any]:
    """A process of the group that makes as many images as each line of its input says, and prints milliseconds."""
    command = [sys.executable, "-c", WORKER, str(group), threads, bundle]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@contextmanager
def control_group(quota: float) -> Iterator[Path]:
    """A new control group that is granted so many processors' time."""
    root = Path("/sys/fs/cgroup")
    first = (root / "cpu") if (root / "cpu").is_dir() else root
    group = first / f"csg-edge-quota-{os.getpid()}"
    group.mkdir()
    try:
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{int(quota * PERIOD)} {PERIOD}")
        else:
            (group / "cpu.cfs_quota_us").write_text(str(int(quota * PERIOD)))
        yield group
    finally:
        group.rmdir()


if __name__ == "__main__":
    main()
