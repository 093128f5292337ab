"""Is the stopwatch right? Systems of known latency go through the whole path, and the report must recover them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csg_edge.benchmarks.files import SAMPLES, Record, file_name
from csg_edge.benchmarks.scenarios import Plan, Scenario
from csg_edge.benchmarks.session import measure_stand_ins

NO_OP, SLEEP, TAIL, CRASH = "no-op", "sleep 20 ms", "sleep 5 ms, every 20th 60 ms", "crash at image 20"
STAND_INS: Mapping[str, Mapping[str, Any]] = {
    NO_OP: {},
    SLEEP: {"ms": 20.0},
    TAIL: {"ms": 5.0, "slow_ms": 60.0, "slow_every": 20},
    CRASH: {"ms": 1.0, "abort_at": 20},
}
NO_OP_MS = 1.0
# A sleep never ends early. How late it ends is the system's business: the stand-in's own clock says, and the report may
# differ from that by what a call through LoadGen costs.
LATE_MS, LATE_SHARE = 1.0, 0.05
PLAN = Plan(
    mode="self-test",
    scenarios=(
        Scenario("single-stream", min_seconds=2.0, max_seconds=10.0, min_queries=100),
        Scenario("multi-stream", min_seconds=1.0, max_seconds=5.0, min_queries=8, samples_per_query=8),
        Scenario("offline", min_seconds=1.0, max_seconds=5.0),
    ),
)


@dataclass(frozen=True)
class Check:
    """One thing that the report must recover: value, and the range it must lie in."""

    name: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high


def self_test(out: Path, plan: Plan = PLAN) -> tuple[Record, list[Check]]:
    """Measure the stand-ins and check what the record says of them."""
    record = measure_stand_ins(STAND_INS, plan, out)
    return record, check(record, out)


def check(record: Record, out: Path) -> list[Check]:
    """What must be recovered from a record of the stand-ins: latencies in ms, shares, rates, statuses."""
    rows = {row["label"]: row for row in record["engines"]}
    checks = [Check(f"{CRASH}: marked failed, the others not", _crashed_alone(rows), 1.0, 1.0)]
    if any(not rows[label]["scenarios"] for label in (NO_OP, SLEEP, TAIL)):
        return [*checks, Check("the stand-ins were measured", 0.0, 1.0, 1.0)]
    slow = tail_share(out / SAMPLES / f"{file_name(TAIL)}.csv", above_ms=60.0)
    single = {label: rows[label]["scenarios"]["single-stream"] for label in (NO_OP, SLEEP, TAIL)}
    checks += [
        Check(f"{NO_OP}: p50, ms", single[NO_OP]["latency_ms"]["p50"], 0.0, NO_OP_MS),
        _sleep_check(single[SLEEP], SLEEP, "p50", 20.0),
        _sleep_check(single[SLEEP], SLEEP, "p90", 20.0),
        _sleep_check(single[TAIL], TAIL, "p50", 5.0),
        _sleep_check(single[TAIL], TAIL, "p99", 60.0),
        Check(f"{TAIL}: share of slow queries", slow, 0.045, 0.08),
    ]
    if len(single[SLEEP]["loadgen"]) == 1:  # LoadGen's own clock
        ratio = single[SLEEP]["latency_ms"]["p50"] / (1e-6 * single[SLEEP]["loadgen"][0]["p50_ns"])
        checks.append(Check(f"{SLEEP}: our p50 over LoadGen's", ratio, 0.98, 1.02))
    if multi := rows[SLEEP]["scenarios"].get("multi-stream"):
        checks.append(_sleep_check(multi, f"{SLEEP}, 8 at once", "p50", 160.0))
    if offline := rows[SLEEP]["scenarios"].get("offline"):
        own = 1e3 / offline["own_clock_ms"]["mean"]
        checks.append(Check(f"{SLEEP}: offline, images/s", offline["images_per_second"], (1 - LATE_SHARE) * own, 50.0))
    return checks


def tail_share(path: Path, *, above_ms: float) -> float:
    """Share of the single-stream queries of a CSV that took `above_ms` or longer."""
    with path.open(newline="", encoding="utf-8") as file:
        values = [float(row["latency_ms"]) for row in csv.DictReader(file) if row["scenario"] == "single-stream"]
    return sum(value >= above_ms for value in values) / len(values)


def _sleep_check(scenario: Record, label: str, name: str, nominal: float) -> Check:
    own = scenario["own_clock_ms"][name]
    return Check(f"{label}: {name}, ms", scenario["latency_ms"][name], nominal, (1 + LATE_SHARE) * own + LATE_MS)


def check_lines(checks: list[Check]) -> list[str]:
    """One line for each check."""
    return [
        f"{'pass' if item.passed else 'FAIL'}  {item.name}: {item.value:.4g}, want {item.low:.4g} to {item.high:.4g}"
        for item in checks
    ]


def _crashed_alone(rows: Mapping[str, Any]) -> float:
    others = all(rows[label]["status"] == "ok" for label in (NO_OP, SLEEP, TAIL))
    return float(rows[CRASH]["status"] == "failed" and "crash" in rows[CRASH]["reason"] and others)
