"""One contract, every runtime. A runtime that this machine lacks is skipped with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csg_edge.errors import CsgEdgeError, EngineError, InputError, RuntimeUnavailableError
from csg_edge.runtimes import RUNTIMES, runtime_class
from csg_edge.runtimes.base import Runtime


@pytest.fixture(scope="module")
def feeds() -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        "mask": random.integers(0, 10, (1, 256, 256), dtype=np.uint8),
        "context": random.integers(0, 256, (1, 256, 256), dtype=np.uint8),
        "noise": random.standard_normal((1, 16, 64, 64), dtype=np.float32),
    }


@pytest.fixture(scope="class")
def runtime(request: pytest.FixtureRequest, shipped: Path) -> Any:
    """The one-step graph of the shipped bundle, open in the runtime of the test class."""
    cls, precision = runtime_class(request.cls.name), request.cls.precision
    if reason := cls.why_not("CPU", precision):
        pytest.skip(reason)
    with cls.open(shipped / "graphs" / "steps-1.onnx", device="CPU", precision=precision) as opened:
        yield opened


class RuntimeContract:
    """Subclassed once per runtime."""

    name: str
    precision = "fp32"

    def test_specs_are_those_of_the_one_graph(self, runtime: Runtime) -> None:
        inputs = {spec.name: (spec.dtype, spec.shape[1:]) for spec in runtime.inputs}
        assert inputs == {
            "mask": (np.dtype(np.uint8), (256, 256)),
            "context": (np.dtype(np.uint8), (256, 256)),
            "noise": (np.dtype(np.float32), (16, 64, 64)),
        }
        assert [(spec.name, spec.dtype, spec.shape[1:]) for spec in runtime.outputs] == [
            ("image", np.dtype(np.uint8), (256, 256))
        ]

    def test_same_feeds_same_bytes_and_feeds_untouched(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        before = {name: value.copy() for name, value in feeds.items()}
        first = runtime.run(feeds)["image"]
        kept = first.copy()
        other = runtime.run({**feeds, "noise": -feeds["noise"]})["image"]
        again = runtime.run(feeds)["image"]
        np.testing.assert_array_equal(first, kept)  # an output already handed over is not overwritten
        np.testing.assert_array_equal(first, again)
        assert (other != first).mean() > 0.5
        for name, value in before.items():
            np.testing.assert_array_equal(feeds[name], value)

    def test_effective_precision_is_read_back(self, runtime: Runtime) -> None:
        assert runtime.effective_precision == self.precision

    @pytest.mark.parametrize(
        "change",
        [
            {"noise": np.zeros((1, 16, 64, 64))},  # float64
            {"noise": np.zeros((1, 16, 32, 32), np.float32)},
            {"mask": np.zeros((256, 256), np.uint8)},  # no batch axis
            {"mask": np.zeros((1, 256, 256), np.int64)},
            {"timestep": np.zeros(1, np.float32)},
        ],
        ids=["dtype", "shape", "rank", "integers", "unknown name"],
    )
    def test_bad_feeds_are_refused_and_the_next_good_call_works(
        self, runtime: Runtime, feeds: dict[str, Any], change: dict[str, Any]
    ) -> None:
        with pytest.raises(InputError, match="the engine takes"):
            runtime.run({**feeds, **change})
        assert runtime.run(feeds)["image"].shape == (1, 256, 256)

    def test_missing_feed(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="context"):
            runtime.run({name: value for name, value in feeds.items() if name != "context"})

    def test_closed_runtime_refuses(self, shipped: Path, runtime: Runtime, feeds: dict[str, Any]) -> None:
        path = shipped / "graphs" / "steps-1.onnx"
        other = type(runtime).open(path, device="CPU", precision=self.precision, threads=1)
        other.close()
        other.close()
        with pytest.raises(EngineError, match="closed"):
            other.run(feeds)

    def test_not_a_graph(self, runtime: Runtime, tmp_path: Path) -> None:
        path = tmp_path / "bad.onnx"
        path.write_bytes(b"not a graph")
        with pytest.raises(EngineError, match=r"bad\.onnx.*export it again"):
            type(runtime).open(path, device="CPU", precision=self.precision)

    def test_unknown_device_is_unavailable(self, runtime: Runtime, shipped: Path) -> None:
        with pytest.raises(RuntimeUnavailableError, match="MARS"):
            type(runtime).open(shipped / "graphs" / "steps-1.onnx", device="MARS", precision=self.precision)


class TestOpenVino(RuntimeContract):
    name = "openvino"


class TestOpenVinoBf16(RuntimeContract):
    name = "openvino"
    precision = "bf16"


class TestOnnxRuntime(RuntimeContract):
    name = "onnxruntime"

    def test_batch_of_the_graph_is_free(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        pair = {name: np.concatenate([value, value[..., ::-1]]) for name, value in feeds.items()}
        image = runtime.run(pair)["image"]
        assert image.shape == (2, 256, 256)
        single = runtime.run(feeds)["image"][0].astype(int)
        assert np.abs(image[0] - single).max() <= 1

    def test_other_precisions_are_refused(self) -> None:
        assert "fp32" in (runtime_class("onnxruntime").why_not("CPU", "bf16") or "")


def test_every_runtime_has_a_contract_test() -> None:
    assert {cls.name for cls in RuntimeContract.__subclasses__()} == set(RUNTIMES)


def test_unknown_runtime_names_the_known_ones() -> None:
    with pytest.raises(CsgEdgeError, match="openvino"):
        runtime_class("tflite")
