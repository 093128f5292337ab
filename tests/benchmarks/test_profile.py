"""Time per node becomes time per stage, however a runtime fuses and renames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from csg_edge.benchmarks.profile import NodeTime, assign_stages, profile_engine, read_ort_events, summarise_profile


def node(name: str, ms: float = 1.0, origin: str = "", operator: str = "Convolution") -> NodeTime:
    return NodeTime(name, origin, operator, "fp32", ms)


def test_a_node_without_a_stage_counts_to_the_next_that_has_one() -> None:
    nodes = [
        node("noise_reorder"),  # feeds what follows
        node("context/stem/Conv"),
        node("MVN_12"),
        node("fused", origin="Multiply_3,step_1/up/Conv,step_2/down/Add"),  # the last one names it
        node("conv2d_47_nchwc"),
        node("decode/DepthToSpace"),
        node("image"),
    ]
    assert assign_stages(nodes) == ["context", "context", "step_2", "step_2", "decode", "decode", "decode"]
    assert assign_stages([node("anything")]) == ["whole graph"]


def test_medians_by_stage_and_operator() -> None:
    def inference(ms: float) -> list[NodeTime]:
        return [node("context/a", ms), node("step_1/b", 2 * ms), node("step_1/c", 3 * ms, operator="Reorder")]

    found = summarise_profile([inference(1.0), inference(2.0), inference(9.0)])
    assert found["stages_ms"] == {"step_1": 10.0, "context": 2.0}
    assert found["operators_ms"] == {"Convolution": 6.0, "Reorder": 6.0}
    assert found["stage_operators_ms"]["step_1 Reorder"] == 6.0
    assert found["profiled_ms"] == 12.0
    assert found["slowest"][0]["node"] == "step_1/c"


def test_kernels_of_onnxruntime_are_split_by_run() -> None:
    def kernel(ts: int, name: str) -> dict[str, object]:
        return {"cat": "Node", "ts": ts, "dur": 1500, "name": f"{name}_kernel_time", "args": {"op_name": "Conv"}}

    runs = [{"cat": "Session", "ts": ts, "dur": 90, "name": "model_run"} for ts in (100, 200)]
    found = read_ort_events([*runs, kernel(210, "decode/b"), kernel(110, "context/a"), kernel(50, "context/loading")])
    assert [[item.name for item in run] for run in found] == [["context/a"], ["decode/b"]]
    assert found[0][0].ms == 1.5


@pytest.mark.parametrize("target", ["openvino:CPU:fp32", "onnxruntime:CPU:fp32"])
def test_every_stage_of_a_real_engine_has_time(shipped: Path, tmp_path: Path, target: str) -> None:
    blank = np.ones((1, 256, 256), np.uint8)
    np.savez(tmp_path / "library.npz", masks=blank, contexts=blank)
    request = {
        "bundle": str(shipped), "target": target, "steps": 2, "threads": 1, "library": str(tmp_path / "library.npz"),
        "seed": 0, "warm_up": 1, "images": 1,
    }  # fmt: skip
    found = profile_engine(request)
    assert set(found["stages_ms"]) == {"context", "step_1", "step_2", "decode"}
    # Two evaluations of one network; decoding is next to nothing.
    assert found["stages_ms"]["step_1"] > found["stages_ms"]["decode"]
    assert next(iter(found["operators_ms"])).startswith("Conv")
