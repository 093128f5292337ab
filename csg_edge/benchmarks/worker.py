"""One task in a process of its own, `python -m csg_edge.benchmarks.worker REQUEST.json RESULT.json`.

A task that crashes takes only this process along. The end of standard input asks it to stop: what was measured until
then is written and marked partial; it also ends a worker whose parent was killed.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from csg_edge.benchmarks.loadgen import Samples, drive
from csg_edge.benchmarks.scenarios import Scenario
from csg_edge.benchmarks.systems import EngineSystem, StandIn, open_system
from csg_edge.errors import CsgEdgeError
from csg_edge.storage import write_json

HOST_CALLS = 20

Keep = Callable[[Mapping[str, Any]], None]


def main(request_path: str, result_path: str) -> None:
    """Run the task of a request and write its result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and closes our standard input
    stop = threading.Event()
    threading.Thread(target=_listen, args=(stop,), daemon=True).start()
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))

    def keep(values: Mapping[str, Any]) -> None:
        write_json(Path(result_path), values, indent=None)

    try:
        TASKS[request["task"]](request, keep, stop)
    except CsgEdgeError as error:
        keep({"status": "failed", "reason": str(error)})


def latency(request: Mapping[str, Any], keep: Keep, stop: threading.Event) -> None:
    """Every scenario of the request on one system, after its warm-up."""
    result: dict[str, Any] = {"status": "ok", "reason": "", "scenarios": {}}

    def leave() -> None:
        if stop.is_set():
            result["status"], result["reason"] = "partial", "stopped"
            keep(result)
            os._exit(0)  # LoadGen has no way to be stopped

    def give_up(error: BaseException) -> None:
        text = str(error) if isinstance(error, CsgEdgeError) else f"{type(error).__name__}: {error}"
        result["status"], result["reason"] = "failed", text
        keep(result)
        os._exit(0)

    with open_system(request) as system:
        result |= system.about()
        result["memory_mb"] = {"after_opening": peak_memory()}
        estimate = _warm_up(system, request["warm_up"])
        for values in request["scenarios"]:
            scenario = Scenario(**values)
            samples = Samples()
            row: dict[str, Any] = {"samples": vars(samples), "energy_joules": None}
            result["scenarios"][scenario.name] = row
            if isinstance(system, StandIn):
                system.spent_ms.clear()
            meter = _meter()
            with _as_used(system, scenario):
                row["loadgen"] = drive(
                    system, scenario, seconds_per_image=estimate, seed=request["seed"],
                    folder=Path(request["logs"]) / scenario.name, samples=samples, leave=leave, give_up=give_up,
                )  # fmt: skip
            row["energy_joules"] = meter()
            if isinstance(system, StandIn):
                row["own_ms"] = list(system.spent_ms)
        result["memory_mb"]["peak"] = peak_memory()
        if isinstance(system, EngineSystem):
            result["host"] = host_costs(system, request)
    keep(result)


def host_costs(system: EngineSystem, request: Mapping[str, Any]) -> dict[str, float]:
    """Medians in ms of the parts of one `Generator.generate` call, taking turns image by image."""
    import numpy as np

    from csg_edge.noise import noise_for

    generator = system.generator
    runtime, manifest = generator.runtime, generator.bundle.manifest
    with np.load(request["library"]) as library:
        mask, context = library["masks"][0], library["contexts"][0]
    feeds, results = runtime.allocate(runtime.inputs[0].shape[0] or 1)
    times: dict[str, list[float]] = {"generate": [], "check_and_resize": [], "noise": [], "runtime_call": []}

    def clocked(name: str, call: Callable[[], Any]) -> None:
        start = time.perf_counter()
        call()
        times[name].append(1e3 * (time.perf_counter() - start))

    def prepare() -> None:
        feeds["mask"][0] = generator.prepare_mask(mask, name="mask")
        feeds["context"][0] = generator.prepare_context(context, name="context")

    for turn in range(HOST_CALLS):
        clocked("check_and_resize", prepare)
        clocked("noise", lambda turn=turn: noise_for(turn, manifest.noise_shape, out=feeds["noise"][0]))  # type: ignore[misc]
        clocked("runtime_call", lambda: runtime.run(feeds, results))
        clocked("generate", lambda turn=turn: generator.generate_one(mask, context, turn))  # type: ignore[misc]
    return {name: statistics.median(found) for name, found in times.items()}


def _as_used(system: EngineSystem | StandIn, scenario: Scenario) -> AbstractContextManager[None]:
    """Offline, an engine is opened with several streams."""
    if isinstance(system, EngineSystem) and scenario.name == "offline":
        return system.side_by_side()
    return nullcontext()


def profile(request: Mapping[str, Any], keep: Keep, stop: threading.Event) -> None:
    """Time per node of an engine, summed by stage and by operator."""
    from csg_edge.benchmarks.profile import profile_engine

    keep({"status": "ok", "reason": "", "profile": profile_engine(request)})


def peaks(request: Mapping[str, Any], keep: Keep, stop: threading.Event) -> None:
    """What this machine can do at most."""
    from csg_edge.benchmarks.roofline import measure_peaks

    keep({"status": "ok", "reason": "", "peaks": measure_peaks(request["seconds"], threads=request["threads"])})


def peak_memory() -> float | None:
    """Highest resident memory of this process so far, in MB (10^6 bytes); None where the system does not say.

    Linux's getrusage would count what the parent had before it became this process.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return 1.024e-3 * float(line.split()[1])
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return 1e-6 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _warm_up(system: EngineSystem | StandIn, images: int) -> float:
    """Make some images; the median of their times in seconds."""
    times = []
    for index in range(images):
        start = time.perf_counter()
        for _ in system.images([index % system.library]):
            pass
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _meter() -> Callable[[], dict[str, float] | None]:
    from csg_edge.benchmarks.environment import energy_meter

    return energy_meter()


def _listen(stop: threading.Event) -> None:
    # Not sys.stdin, whose lock a thread that waits would hold when the interpreter ends.
    while os.read(0, 1024):
        pass
    stop.set()


TASKS: dict[str, Callable[[Mapping[str, Any], Keep, threading.Event], None]] = {
    "latency": latency,
    "profile": profile,
    "peaks": peaks,
}

if __name__ == "__main__":
    main(*sys.argv[1:])
