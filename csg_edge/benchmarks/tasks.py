"""Tasks in fresh processes, as their parent sees them: a crash is a result, Ctrl-C stops them, a hang ends."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

STOP_SECONDS = 30.0  # a stopped worker finishes its image and writes
COLD_LIMIT = 300.0


class StoppedError(Exception):
    """Ctrl-C while a task was running; `result` is what the task had by then, None for nothing."""

    def __init__(self, result: dict[str, Any] | None) -> None:
        super().__init__("stopped")
        self.result = result


def run_task(request: Mapping[str, Any], *, limit: float) -> dict[str, Any]:
    """Run one task of `csg_edge.benchmarks.worker`; its result has `status` ok, partial or failed, and `reason`.

    limit: seconds after which a worker that hangs is killed. Raises StoppedError on Ctrl-C.
    """
    with tempfile.TemporaryDirectory(prefix="csg-edge-bench-") as name:
        folder = Path(name)
        result_path = folder / "result.json"
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-m", "csg_edge.benchmarks.worker", str(folder / "request.json"), str(result_path)]
        with (folder / "stderr").open("wb") as errors:
            # A session of its own, so that the terminal's Ctrl-C reaches the parent alone.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                return {"status": "failed", "reason": f"did not finish within {limit:.0f} s; killed"}
            except KeyboardInterrupt:
                assert process.stdin is not None
                process.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
                raise StoppedError(_read(result_path)) from None
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                if process.stdin is not None:
                    process.stdin.close()
        result = _read(result_path)
        if result is None or process.returncode:
            return {"status": "failed", "reason": _obituary(process.returncode, folder / "stderr")}
        return result


def cold_starts(request: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Medians in ms of the phases from starting a process to its first image: without a cache, and with a filled one.

    The two take turns, and before them one start, not counted, fills the cache and the disk's own. Raises StoppedError
    on Ctrl-C. A process that fails is in `failed` with its reason.
    """
    found: dict[str, list[dict[str, float]]] = {"no_cache": [], "warm_cache": []}
    with tempfile.TemporaryDirectory(prefix="csg-edge-bench-") as name:
        folder = Path(name)
        for turn in range(times + 1):
            for state in found if turn else ("warm_cache",):
                cache = str(folder / "cache") if state == "warm_cache" else ""
                path = folder / "request.json"
                path.write_text(json.dumps({**request, "cache": cache, "began": time.time()}), encoding="utf-8")
                command = [sys.executable, "-m", "csg_edge.benchmarks.cold", str(path)]
                try:
                    done = subprocess.run(
                        command, capture_output=True, text=True, check=False, timeout=COLD_LIMIT,
                        stdin=subprocess.DEVNULL,
                    )  # fmt: skip
                except subprocess.TimeoutExpired:
                    return {"failed": f"no image within {COLD_LIMIT:.0f} s of a cold start"}
                except KeyboardInterrupt:
                    raise StoppedError(None) from None
                if done.returncode:
                    (folder / "stderr").write_text(done.stderr, encoding="utf-8")
                    return {"failed": _obituary(done.returncode, folder / "stderr")}
                if turn:
                    found[state].append(json.loads(done.stdout))
    return {state: _median_phases(runs) for state, runs in found.items()}


def _median_phases(runs: list[dict[str, float]]) -> dict[str, Any]:
    to_first = [sum(ms for phase, ms in run.items() if phase != "second_image") for run in runs]
    return {
        "phases_ms": {phase: statistics.median(run[phase] for run in runs) for phase in runs[0]},
        "to_first_image_ms": {"median": statistics.median(to_first), "min": min(to_first), "max": max(to_first)},
        "starts": len(runs),
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found


def _obituary(code: int, errors: Path) -> str:
    """How a process ended, with the last line that it left."""
    lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f": {lines[-1].strip()}" if lines else ""
    if code < 0 and os.name == "posix":
        return f"its process crashed ({signal.Signals(-code).name}){last}"
    return f"its process ended with code {code}{last}"
