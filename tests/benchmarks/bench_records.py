"""Records as a run would make them."""

from __future__ import annotations

from typing import Any


def row_of(label: str, median: float, *, spread: float = 0.01, rounds: int = 2, status: str = "ok") -> dict[str, Any]:
    """A measured row whose blocks lie evenly within `spread` of the median."""
    blocks = [[median * (1 + spread * (i - 10) / 10) for i in range(21)] for _ in range(rounds)]
    found = {"count": 42, "p50": median, "p90": 1.1 * median, "p99": 1.2 * median}
    bounds = {"p50_bound": median, "p90_bound": None, "p99_bound": None}
    return {
        "label": label, "target": label, "steps": 1, "status": status, "reason": "",
        "scenarios": {
            "single-stream": {
                "latency_ms": found | bounds, "blocks_ms": blocks, "samples_per_query": 1, "images": 42,
                "median_interval_ms": [0.99 * median, 1.01 * median], "images_per_second": 1e3 / median,
                "loadgen": [{"validity": "VALID"}], "joules_per_image_estimated": None,
            }
        } if status != "failed" else {},
        "clocks": [],
    }  # fmt: skip


def record_of(*rows: dict[str, Any]) -> dict[str, Any]:
    """A record around rows."""
    machine = {"processor": "a", "cores_available": 2, "flags": ["avx2"], "versions": {"numpy": "2"}}
    return {
        "format": 1, "kind": "csg-edge bench", "state": "complete", "bundle": "b", "began": "2026-01-01",
        "warnings": [],
        "machine": machine, "plan": {"mode": "quick", "rounds": 2}, "threads_asked": None, "engines": list(rows),
    }  # fmt: skip
