"""Mutated files for every reader: each must be read or refused with an error of our own, in bounded time and memory.

    python tests/fuzz/fuzz.py --seconds 10                     # every reader
    python tests/fuzz/fuzz.py --reader dicom --inputs 100000 --seed 3

A reader runs in a process of its own. Whatever else happens (another exception, more than SECONDS or MEMORY for one
input, a crash) is a failure: the input is kept in --keep, and the exit code is 1. With one seed the inputs are the same
anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]

SECONDS = 2
MEMORY = 1 << 30


def main() -> int:
    """Run every reader, or one; print a line for each. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", action="append", help="may be repeated; all if not given")
    parser.add_argument("--seconds", type=float, default=10.0, help="per reader")
    parser.add_argument("--inputs", type=int, help="per reader, in place of --seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for inputs that failed")
    parser.add_argument("--json", type=Path, help="write what was found")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments.worker, arguments)
    from readers import readers

    found = {name: supervise(name, arguments) for name in arguments.reader or readers()}
    for name, counts in found.items():
        failures = sum(count for outcome, count in counts.items() if outcome not in ("read", "refused"))
        print(f"{name:14} {sum(counts.values()):8} inputs  {counts.get('read', 0):8} read  "
              f"{counts.get('refused', 0):8} refused  {failures:4} failures")  # fmt: skip
        for outcome, count in counts.items():
            if outcome not in ("read", "refused"):
                print(f"    {count} x {outcome}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seed": arguments.seed, "readers": found}, indent=2) + "\n")
    return int(any(outcome not in ("read", "refused") for counts in found.values() for outcome in counts))


def supervise(name: str, arguments: argparse.Namespace) -> dict[str, int]:
    """Run workers until the budget is spent; one that crashes is counted, and the next goes on after its input."""
    total: Counter[str] = Counter()
    start, skip = time.monotonic(), 0
    while True:
        left = arguments.seconds - (time.monotonic() - start)
        command = [sys.executable, __file__, "--worker", name, "--seed", str(arguments.seed), "--keep", arguments.keep]
        command += (
            ["--inputs", str(arguments.inputs - skip)] if arguments.inputs else ["--seconds", str(max(left, 0.5))]
        )
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "CSG_FUZZ": f"{folder}:{skip}", "OMP_NUM_THREADS": "1", "TMPDIR": folder}
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            state = Path(folder) / "state.json"
            counts = json.loads(state.read_text()) if state.exists() else {"done": 0, "outcomes": {}}
            total.update(counts["outcomes"])
            skip += counts["done"]
            if done.returncode == 0:
                return dict(total)
            if not state.exists():
                raise SystemExit(f"{name}: the worker did not start\n{done.stderr[-2000:]}")
            total[f"crash (exit code {done.returncode})"] += 1
            skip += 1
            keep(arguments.keep, name, next(Path(folder).glob("input.*")).read_bytes())


def work(name: str, arguments: argparse.Namespace) -> int:
    """Read mutated files one after another, in this process."""
    import numpy as np
    from mutate import mutate
    from readers import readers

    from csg_edge.errors import CsgEdgeError

    warnings.simplefilter("ignore")
    folder, _, skip = os.environ["CSG_FUZZ"].rpartition(":")
    reader = readers()[name]
    path = Path(folder) / f"input{reader.suffix}"
    outcomes: Counter[str] = Counter()
    for number, seed in enumerate(reader.seeds):  # what is imported on use is imported; the first is wholly valid
        path.write_bytes(seed)
        with contextlib.suppress(CsgEdgeError) if number else contextlib.nullcontext():
            reader.read(path)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    start = time.monotonic()
    number = 0
    _save(Path(folder), number, outcomes)
    while number < arguments.inputs if arguments.inputs else time.monotonic() - start < arguments.seconds:
        random = np.random.default_rng([arguments.seed, int(skip) + number])
        data = mutate(reader.seeds, random)
        repair = getattr(reader, "repair", bytes)
        data = repair(data) if random.random() < 0.8 else data
        path.write_bytes(data)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        outcome = _outcome(reader.read, path, CsgEdgeError)
        signal.setitimer(signal.ITIMER_REAL, 0)
        outcomes[outcome] += 1
        number += 1
        if outcome not in ("read", "refused"):
            keep(arguments.keep, name, data)
        _save(Path(folder), number, outcomes)
    return 0


def keep(folder: Path, name: str, data: bytes) -> None:
    """Put an input that failed aside."""
    import hashlib

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)


def _outcome(read: Any, path: Path, refused: type[Exception]) -> str:
    try:
        read(path)
    except refused:
        return "refused"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:80]}"
    return "read"


def _too_long(*_: object) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def _save(folder: Path, done: int, outcomes: Counter[str]) -> None:
    aside = folder / "state.partial"
    aside.write_text(json.dumps({"done": done, "outcomes": outcomes}))
    aside.replace(folder / "state.json")


if __name__ == "__main__":
    sys.exit(main())
