"""MLCommons LoadGen drives a system under test and keeps the clock; this joins the two and reads its verdict.

LoadGen knows nothing of images: it issues sample indices, and the system says when each is done. Its own logs are kept
beside the raw samples, which this module notes from inside the same calls.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from csg_edge.benchmarks.scenarios import Scenario
from csg_edge.errors import InputError, RuntimeUnavailableError

# What LoadGen says of a test, by the name of the key in its detailed log.
VERDICT = {
    "result_validity": "validity",
    "result_min_duration_met": "min_duration_met",
    "result_min_queries_met": "min_queries_met",
    "early_stopping_met": "early_stopping_met",
    "early_stopping_result": "early_stopping",
    "early_stopping_latency_ss": "early_stopping_latency_ns",
    "early_stopping_latency_ms": "early_stopping_latency_ns",
    "result_query_count": "queries",
    "result_samples_per_second": "samples_per_second",
    "result_qps_without_loadgen_overhead": "queries_per_second",
    "result_qps_with_loadgen_overhead": "queries_per_second_with_overhead",
    "result_50.00_percentile_latency_ns": "p50_ns",
    "result_90.00_percentile_latency_ns": "p90_ns",
    "result_99.00_percentile_latency_ns": "p99_ns",
    "result_50.00_percentile_per_query_latency_ns": "p50_ns",
    "result_90.00_percentile_per_query_latency_ns": "p90_ns",
    "result_99.00_percentile_per_query_latency_ns": "p99_ns",
    "num_errors": "errors",
    "num_warnings": "warnings",
}


class System(Protocol):
    """What is measured."""

    library: int
    """How many different samples there are, indices 0 and up."""

    def images(self, indices: Sequence[int]) -> Iterator[None]:
        """Make the image of each index, in order, and yield once as each is done."""


@dataclass
class Samples:
    """Raw latencies of one test: of each query, in nanoseconds since the test began; offline: of each sample."""

    issued: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def add(self, issued: int, finished: int, samples: int) -> None:
        self.issued.append(issued)
        self.finished.append(finished)
        self.samples.append(samples)


def check_loadgen() -> None:
    """Raise RuntimeUnavailableError if LoadGen cannot be imported."""
    try:
        import mlperf_loadgen  # noqa: F401
    except ImportError as error:
        raise RuntimeUnavailableError(f"MLCommons LoadGen: {error}; pip install 'csg-edge[bench]'") from None


def drive(
    system: System,
    scenario: Scenario,
    *,
    seconds_per_image: float,
    seed: int,
    folder: Path,
    samples: Samples,
    leave: Callable[[], None],
    give_up: Callable[[BaseException], None],
) -> dict[str, Any]:
    """Run one test; latencies go to `samples` as they come, LoadGen's logs to `folder`. Returns LoadGen's verdict.

    seconds_per_image: an estimate, which sets the size of the query of offline. seed: of LoadGen's choice of samples.
    leave: called after each image, and may end the process when asked to stop; LoadGen itself cannot be stopped early.
    give_up: told of an exception of the system, and must end the process: LoadGen would wait for ever.
    """
    import mlperf_loadgen as loadgen

    folder.mkdir(parents=True, exist_ok=True)
    offline = scenario.name == "offline"
    clock = time.perf_counter_ns
    began = clock()

    def issue(queries: Any) -> None:
        issued = clock() - began
        try:
            made = system.images([query.index for query in queries])
            for query, _ in zip(queries, made, strict=True):
                loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(query.id, 0, 0)])
                if offline:
                    samples.add(issued, clock() - began, 1)
                leave()
            if not offline:
                samples.add(issued, clock() - began, len(queries))
        except BaseException as error:
            give_up(error)
            raise

    settings = _settings(loadgen, scenario, seconds_per_image=seconds_per_image, seed=seed)
    logs = loadgen.LogSettings()
    logs.enable_trace = False
    logs.log_output.outdir = str(folder)
    logs.log_output.prefix = ""
    logs.log_output.copy_summary_to_stdout = False
    sut = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(system.library, system.library, lambda indices: None, lambda indices: None)
    try:
        # The last argument names a file of the working directory that could change the settings; there is none.
        loadgen.StartTestWithLogSettings(sut, library, settings, logs, str(folder / "audit.config"))
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)
    return read_verdict(folder)


def read_verdict(folder: Path) -> dict[str, Any]:
    """LoadGen's own figures and whether it calls the test valid, from its detailed log."""
    path = _log(folder, "detail.txt")
    found: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(":::MLLOG"):
            entry = json.loads(line.removeprefix(":::MLLOG"))
            key, value = entry["key"], entry["value"]
            # Of the two early-stopping latencies the one of the other scenario is written as 0.
            if key in VERDICT and not (key.startswith("early_stopping_latency") and not value):
                found[VERDICT[key]] = value
    if "validity" not in found:
        raise InputError(f"{path}: LoadGen wrote no result; run the benchmark again")
    if "early_stopping" in found:
        found["early_stopping"] = " ".join(str(found["early_stopping"]).split())
    return found


def _log(folder: Path, name: str) -> Path:
    paths = sorted(folder.glob(f"*{name}"))
    if not paths:
        raise InputError(f"{folder}: LoadGen wrote no {name}; check free space")
    return paths[-1]


def _settings(loadgen: Any, scenario: Scenario, *, seconds_per_image: float, seed: int) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = {
        "single-stream": loadgen.TestScenario.SingleStream,
        "multi-stream": loadgen.TestScenario.MultiStream,
        "offline": loadgen.TestScenario.Offline,
    }[scenario.name]
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = math.ceil(1e3 * scenario.min_seconds)
    settings.max_duration_ms = math.ceil(1e3 * scenario.max_seconds)
    settings.min_query_count = scenario.min_queries
    settings.single_stream_target_latency_percentile = scenario.percentile
    settings.multi_stream_target_latency_percentile = scenario.percentile
    # LoadGen prepares queries for twice the expected rate; a system faster than that would run out of them.
    nanoseconds = max(10_000, int(1e9 * seconds_per_image / 4))
    settings.single_stream_expected_latency_ns = nanoseconds
    settings.multi_stream_expected_latency_ns = nanoseconds * scenario.samples_per_query
    settings.multi_stream_samples_per_query = scenario.samples_per_query
    settings.offline_expected_qps = 1.0 / max(seconds_per_image, 1e-6)
    settings.sample_index_rng_seed = settings.qsl_rng_seed = settings.schedule_rng_seed = seed
    return settings
