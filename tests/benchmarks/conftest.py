"""A small plan; without LoadGen these tests are skipped."""

from __future__ import annotations

import pytest

from csg_edge.benchmarks.scenarios import Plan, Scenario

pytest.importorskip("mlperf_loadgen", reason="MLCommons LoadGen is not installed; pip install 'csg-edge[bench]'")


@pytest.fixture
def quick() -> Plan:
    """One short round of single-stream."""
    scenario = Scenario("single-stream", min_seconds=0.2, max_seconds=5.0, min_queries=70)
    return Plan("quick", (scenario,), warm_up=2, cold_starts=0, profiled_images=0)
