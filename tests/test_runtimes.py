"""One contract, every runtime. A runtime that this machine lacks is skipped with the reason."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in_cuda import StandInCuda, tensorrt_of

import csg_edge
from csg_edge.bundle.golden import read_case
from csg_edge.bundle.manifest import read_bundle
from csg_edge.cache import BlobCache
from csg_edge.conditions.fibres import nothing_given
from csg_edge.errors import (
    CancelledError,
    CsgEdgeError,
    EngineError,
    InputError,
    RuntimeUnavailableError,
    TimedOutError,
)
from csg_edge.runtimes import RUNTIMES, runtime_class
from csg_edge.runtimes.base import Runtime
from csg_edge.runtimes.cuda import Cuda
from csg_edge.runtimes.ov import OpenVinoRuntime
from csg_edge.runtimes.trt import TensorRtRtxRuntime, TensorRtRuntime


@pytest.fixture(scope="module")
def feeds(shipped: Path) -> dict[str, Any]:
    bundle = read_bundle(shipped)
    mask, context, *_ = read_case(bundle, bundle.manifest.golden[0], 1)
    noise = np.random.default_rng(0).standard_normal((1, 16, 64, 64), dtype=np.float32)
    fibre = {} if bundle.manifest.fibre_shape is None else {"fibre": nothing_given()[None]}
    return {"mask": mask[None], "context": context[None], "noise": noise, **fibre}


@pytest.fixture(scope="class")
def engine(request: pytest.FixtureRequest, shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one-step graph of the shipped bundle, as the runtime of the test class takes it."""
    return Path(request.cls.engine(shipped / "graphs" / "steps-1.onnx", tmp_path_factory.mktemp("engine")))


@pytest.fixture(scope="class")
def runtime(request: pytest.FixtureRequest, engine: Path) -> Any:
    cls = request.cls
    with cls.kind().open(engine, device=cls.device, precision=cls.precision) as opened:
        yield opened


class RuntimeContract:
    """Subclassed once per runtime and device."""

    name: str
    device = "CPU"
    precision = "fp32"

    @classmethod
    def kind(cls) -> type[Runtime]:
        return runtime_class(cls.name)

    @classmethod
    def absent(cls) -> str | None:
        """Why this machine cannot run these tests; conftest.py skips them with it."""
        reason = cls.kind().why_not(cls.device, cls.precision)
        return reason and f"{cls.name} on {cls.device}: {reason}"

    @classmethod
    def engine(cls, graph: Path, folder: Path) -> Path:
        return graph

    def open(self, path: Path, **options: Any) -> Runtime:
        return self.kind().open(path, **{"device": self.device, "precision": self.precision, **options})

    def test_specs_are_those_of_the_one_graph(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        inputs = {spec.name: (spec.dtype, spec.shape[1:]) for spec in runtime.inputs}
        assert inputs == {name: (value.dtype, value.shape[1:]) for name, value in feeds.items()}
        outputs = {spec.name: (spec.dtype, spec.shape[1:]) for spec in runtime.outputs}
        used = {"fibre_used": inputs["fibre"]} if "fibre" in inputs else {}
        assert outputs == {"image": (np.dtype(np.uint8), (256, 256)), **used}

    def test_device_versions_and_precision_are_reported(self, runtime: Runtime) -> None:
        assert (runtime.device, runtime.effective_precision) == (self.device, self.precision)
        assert runtime.versions[runtime.name] == runtime.version()
        assert runtime.version()[0].isdigit()

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

    def test_the_image_is_that_of_the_reference(self, runtime: Runtime, feeds: dict[str, Any], shipped: Path) -> None:
        reference = runtime_class("onnxruntime").open(
            shipped / "graphs" / "steps-1.onnx", device="CPU", precision="fp32"
        )
        expected = reference.run(feeds)["image"].astype(int)
        difference = np.abs(runtime.run(feeds)["image"] - expected)
        if self.precision == "fp32":
            assert (difference <= 1).mean() >= 0.999
        else:
            assert difference.mean() < 1.5  # noise and mask here are far from what the student was trained on

    def test_outputs_go_to_the_callers_arrays(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        expected = runtime.run(feeds)["image"]
        images = np.full((3, 256, 256), 7, np.uint8)
        given = images[1:2]
        assert runtime.run(feeds, {"image": given})["image"] is given
        np.testing.assert_array_equal(images[1:2], expected)
        assert (images[[0, 2]] == 7).all()
        images[1] = 7
        assert runtime.start(feeds, {"image": given}).wait()["image"] is given
        np.testing.assert_array_equal(images[1:2], expected)

    def test_read_only_and_strided_feeds_are_read_as_they_are(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        frozen = {
            name: np.frombuffer(value.tobytes(), value.dtype).reshape(value.shape) for name, value in feeds.items()
        }
        strided = {name: np.repeat(value, 2, axis=-1)[..., ::2] for name, value in feeds.items()}
        expected = runtime.run(feeds)["image"]
        np.testing.assert_array_equal(runtime.run(frozen)["image"], expected)
        np.testing.assert_array_equal(runtime.run(strided)["image"], expected)

    def test_allocated_arrays_fit(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        inputs, outputs = runtime.allocate()
        for name, value in feeds.items():
            inputs[name][...] = value
        np.testing.assert_array_equal(runtime.run(inputs, outputs)["image"], runtime.run(feeds)["image"])

    def test_the_same_arrays_with_other_values(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        inputs, outputs = runtime.allocate()
        for name, value in feeds.items():
            inputs[name][:] = value
        first = runtime.run(inputs, out=outputs)["image"].copy()
        inputs["noise"][:] = feeds["noise"][..., ::-1]
        second = runtime.run(inputs, out=outputs)["image"].copy()
        wanted = runtime.run({**feeds, "noise": np.ascontiguousarray(feeds["noise"][..., ::-1])})["image"]
        np.testing.assert_array_equal(second, wanted)
        inputs["noise"][:] = feeds["noise"]
        inputs["noise"].flags.writeable = False
        np.testing.assert_array_equal(runtime.start(inputs, out=outputs).wait()["image"], first)

    def test_two_calls_under_way(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        other = {**feeds, "noise": -feeds["noise"]}
        handles = [runtime.start(item) for item in (feeds, other, feeds)]
        images = [handle.wait(60)["image"] for handle in handles]
        np.testing.assert_array_equal(images[0], runtime.run(feeds)["image"])
        np.testing.assert_array_equal(images[1], runtime.run(other)["image"])
        np.testing.assert_array_equal(images[2], images[0])
        assert handles[0].wait()["image"] is images[0]  # waiting again is fine

    def test_time_limit_cancelling_and_going_on(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        expected = runtime.run(feeds)["image"]
        slow = runtime.start(feeds)
        with pytest.raises(TimedOutError, match="wait longer"):
            slow.wait(0)
        np.testing.assert_array_equal(slow.wait()["image"], expected)
        stopped = runtime.start(feeds)
        stopped.cancel()
        for _ in range(2):
            with pytest.raises(CancelledError, match="start it again"):
                stopped.wait()
        np.testing.assert_array_equal(runtime.run(feeds)["image"], expected)
        ended = runtime.start(feeds)
        ended.wait()
        ended.cancel()  # too late to matter
        np.testing.assert_array_equal(ended.wait()["image"], expected)
        with pytest.raises(InputError, match="seconds"):
            ended.wait(-1)

    def test_a_dropped_handle_leaves_nothing_behind(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        expected = runtime.run(feeds)["image"]
        for _ in range(3):
            runtime.start(feeds)
        gc.collect()
        np.testing.assert_array_equal(runtime.run(feeds)["image"], expected)

    def test_eight_callers_at_once(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        expected = runtime.run(feeds)["image"]
        with ThreadPoolExecutor(8) as pool:
            images = list(pool.map(lambda _: runtime.run(feeds)["image"], range(8)))
        for image in images:
            np.testing.assert_array_equal(image, expected)

    @pytest.mark.parametrize(
        "change",
        [
            {"noise": np.zeros((1, 16, 64, 64))},  # float64
            {"noise": np.zeros((1, 16, 32, 32), np.float32)},
            {"noise": np.full((1, 16, 64, 64), np.nan, np.float32)},
            {"noise": np.full((1, 16, 64, 64), np.inf, np.float32)},
            {"mask": np.zeros((256, 256), np.uint8)},  # no batch axis
            {"mask": np.zeros((0, 256, 256), np.uint8)},
            {"mask": np.zeros((1, 256, 256), np.int64)},
            {"mask": [[0]]},
            {"timestep": np.zeros(1, np.float32)},
        ],
        ids=["dtype", "shape", "NaN", "infinity", "rank", "empty", "integers", "a list", "unknown name"],
    )
    def test_bad_feeds_are_refused_and_the_next_good_call_works(
        self, runtime: Runtime, feeds: dict[str, Any], change: dict[str, Any]
    ) -> None:
        with pytest.raises(InputError, match="the engine takes"):
            runtime.run({**feeds, **change})
        with pytest.raises(InputError, match="the engine takes"):
            runtime.start({**feeds, **change})
        assert runtime.run(feeds)["image"].shape == (1, 256, 256)

    @pytest.mark.parametrize(
        "out",
        [
            {"image": np.zeros((1, 256, 256), np.float32)},
            {"image": np.zeros((2, 256, 256), np.uint8)},
            {"image": np.zeros((1, 256, 512), np.uint8)[..., ::2]},
            {"image": np.broadcast_to(np.uint8(0), (1, 256, 256))},
            {"image": None},
            {"picture": np.zeros((1, 256, 256), np.uint8)},
        ],
        ids=["dtype", "shape", "strided", "read-only", "None", "unknown name"],
    )
    def test_bad_out_arrays_are_refused(self, runtime: Runtime, feeds: dict[str, Any], out: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="out"):
            runtime.run(feeds, out)

    def test_out_must_not_overlap_a_feed(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        both = feeds["mask"].copy()
        with pytest.raises(InputError, match="overlaps"):
            runtime.run({**feeds, "mask": both}, {"image": both})

    def test_missing_feed(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="context"):
            runtime.run({name: value for name, value in feeds.items() if name != "context"})

    def test_closed_runtime_refuses(self, engine: Path, feeds: dict[str, Any]) -> None:
        other = self.open(engine, threads=1)
        last = other.start(feeds)
        closing = threading.Thread(target=other.close)
        closing.start()
        assert last.wait()["image"].shape == (1, 256, 256)  # what is under way is finished first
        closing.join()
        other.close()
        for call in (other.run, other.start):
            with pytest.raises(EngineError, match=r"closed.*open it again"):
                call(feeds)

    def test_closing_ends_what_nobody_waits_for(self, engine: Path, feeds: dict[str, Any]) -> None:
        other = self.open(engine)
        expected = other.run(feeds)["image"]
        handles = [other.start(feeds) for _ in range(2)]
        closing = threading.Thread(target=other.close, daemon=True)
        closing.start()
        closing.join(60)
        assert not closing.is_alive()
        for handle in handles:
            np.testing.assert_array_equal(handle.wait()["image"], expected)

    def test_another_process_must_open_its_own(self, engine: Path, feeds: dict[str, Any]) -> None:
        with self.open(engine) as other:
            other._pid += 1  # as a forked child sees it
            with pytest.raises(EngineError, match="opened by another process; open it again"):
                other.run(feeds)

    def test_not_an_engine(self, engine: Path, tmp_path: Path) -> None:
        path = tmp_path / f"bad{engine.suffix}"
        path.write_bytes(b"not an engine")
        with pytest.raises(EngineError, match=r"bad.*(again|csg-edge build|csg-edge verify)"):
            self.open(path)
        with pytest.raises(EngineError, match=r"gone.*(again|build)"):
            self.open(tmp_path / f"gone{engine.suffix}")

    def test_unknown_device_or_precision_is_unavailable(self, engine: Path) -> None:
        with pytest.raises(RuntimeUnavailableError, match="MARS"):
            self.open(engine, device="MARS")
        with pytest.raises(RuntimeUnavailableError, match="fp8"):
            self.open(engine, precision="fp8")

    def test_the_cache_does_not_change_the_bytes(
        self, runtime: Runtime, engine: Path, feeds: dict[str, Any], tmp_path: Path
    ) -> None:
        expected = runtime.run(feeds)["image"]
        cache = BlobCache(tmp_path)
        for _ in range(2):  # filled, then read
            with self.open(engine, cache=cache, identity="this engine") as cached:
                np.testing.assert_array_equal(cached.run(feeds)["image"], expected)
                assert cached.effective_precision == self.precision


class TestOpenVino(RuntimeContract):
    name = "openvino"


class TestOpenVinoBf16(RuntimeContract):
    name = "openvino"
    precision = "bf16"


class TestOpenVinoGpu(RuntimeContract):
    name = "openvino"
    device = "GPU"
    precision = "fp16"


class TestOpenVinoNpu(RuntimeContract):
    name = "openvino"
    device = "NPU"
    precision = "fp16"


class TestOnnxRuntime(RuntimeContract):
    name = "onnxruntime"

    def test_batch_of_the_graph_is_free(self, runtime: Runtime, feeds: dict[str, Any]) -> None:
        pair = {name: np.concatenate([value, value[..., ::-1]]) for name, value in feeds.items()}
        image = runtime.run(pair)["image"]
        assert image.shape == (2, 256, 256)
        single = runtime.run(feeds)["image"][0].astype(int)
        assert np.abs(image[0] - single).max() <= 1
        with pytest.raises(InputError, match="same batch"):
            runtime.run({**pair, "mask": feeds["mask"]})

    def test_other_precisions_are_refused(self) -> None:
        assert "fp32" in (runtime_class("onnxruntime").why_not("CPU", "bf16") or "")


class TestOnnxRuntimeCuda(RuntimeContract):
    name = "onnxruntime"
    device = "CUDA"


class TestOnnxRuntimeTensorRt(RuntimeContract):
    name = "onnxruntime"
    device = "TensorRT"


class TestOnnxRuntimeOpenVino(RuntimeContract):
    name = "onnxruntime"
    device = "OpenVINO"

    def test_every_golden_image_is_made(self, tmp_path: Path) -> None:
        for steps in (1, 2, 4):
            options = {"runtime": self.name, "device": self.device, "precision": "fp32", "steps": steps}
            with csg_edge.load(cache=tmp_path, **options) as generator:
                assert str(generator.choice).endswith("golden case passed just now")


class TestTorch(RuntimeContract):
    name = "torch"


class TestTensorRtRtx(RuntimeContract):
    """On a GPU: an engine is built from the graph for that very GPU."""

    name = "tensorrt-rtx"
    device = "any NVIDIA GPU"

    @classmethod
    def absent(cls) -> str | None:
        with suppress(CsgEdgeError):  # cuda-bindings missing, which why_not tells
            cls.device = next(iter(Cuda.load().architectures()), cls.device)
        return super().absent()

    @classmethod
    def engine(cls, graph: Path, folder: Path) -> Path:
        kind: Any = cls.kind()
        path = folder / "steps-1.engine"
        path.write_bytes(build_engine(kind.module, graph))
        return path


class TestTensorRt(TestTensorRtRtx):
    name = "tensorrt"


class TestTensorRtRtxOnStandIn(RuntimeContract):
    """The code path without a GPU: see stand_in_cuda.py for what that does and does not say."""

    name = "tensorrt-rtx"
    device = "sm86"
    real: type[TensorRtRtxRuntime] = TensorRtRtxRuntime
    rtx = True
    driver: StandInCuda
    straw: Any = None

    @classmethod
    def kind(cls) -> type[Runtime]:
        return cls.straw

    @classmethod
    def absent(cls) -> str | None:
        return None

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def stand_in(cls) -> Any:
        module = f"straw_{cls.real.module}"
        cls.driver = StandInCuda()
        tensorrt_of(cls.driver, module, rtx=cls.rtx)
        cls.straw = type("Straw", (cls.real,), {"module": module})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Cuda, "load", lambda: Cuda(cls.driver))
            yield

    @classmethod
    def engine(cls, graph: Path, folder: Path) -> Path:
        path = folder / "steps-1.engine"
        path.write_text(str(graph))
        return path

    def test_the_driver_gets_back_all_it_gave(self, engine: Path, feeds: dict[str, Any]) -> None:
        gc.collect()
        held, streams, pinned = len(self.driver.memory), len(self.driver.streams), len(self.driver.pinned)
        with self.open(engine) as runtime:
            inputs, _ = runtime.allocate()
            handles = [runtime.start(feeds) for _ in range(3)]
            tensors = len(runtime.inputs) + len(runtime.outputs)
            assert len(self.driver.memory) == held + 3 * tensors  # a lane each
            assert len(self.driver.pinned) == pinned + tensors
            for handle in handles:
                handle.wait()
        del inputs, _, handles, handle
        gc.collect()
        assert (len(self.driver.memory), len(self.driver.streams)) == (held, streams)
        assert len(self.driver.pinned) == pinned

    def test_launches_are_captured_once_they_repeat(self, engine: Path, feeds: dict[str, Any]) -> None:
        launched = self.driver.launched
        with self.open(engine) as runtime:
            for _ in range(4):
                runtime.run(feeds)
        assert self.driver.launched - launched == (0 if self.rtx else 3)  # RTX captures by itself

    def test_kernels_made_for_this_gpu_are_kept(self, engine: Path, tmp_path: Path) -> None:
        cache = BlobCache(tmp_path)
        for _ in range(2):
            self.open(engine, cache=cache, identity="this engine").close()
        assert cache.size()[0] == (1 if self.rtx else 0)

    def test_another_gpu_is_told_from_this_one(self) -> None:
        assert "no GPU of architecture sm120 here but sm86; csg-edge build" in (
            self.kind().why_not("sm120", "fp16") or ""
        )


class TestTensorRtOnStandIn(TestTensorRtRtxOnStandIn):
    name = "tensorrt"
    real = TensorRtRuntime
    rtx = False


def build_engine(module: str, graph: Path) -> bytes:
    """A plan for the GPU at hand, fp32, batch 1."""
    import importlib

    tensorrt = importlib.import_module(module)
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(graph)), [str(parser.get_error(index)) for index in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = (1, *tuple(tensor.shape)[1:])
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


def test_tensorrt_rtx_types_are_known_to_numpy() -> None:
    tensorrt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    assert [np.dtype(tensorrt.nptype(kind)) for kind in (tensorrt.DataType.UINT8, tensorrt.DataType.FLOAT)] == [
        np.dtype(np.uint8),
        np.dtype(np.float32),
    ]
    for name in ("CudaGraphStrategy", "TensorIOMode", "Runtime", "Logger"):
        assert hasattr(tensorrt, name)
    for name in ("set_tensor_address", "set_input_shape", "execute_async_v3"):
        assert hasattr(tensorrt.IExecutionContext, name)


def test_cuda_functions_exist_by_the_names_we_use() -> None:
    api = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    straw = {name for name in vars(StandInCuda) if name.startswith("cuda")}
    straw |= {"cudaGraphDestroy", "cudaEventDestroy", "cudaSetDevice"}
    assert {name for name in straw if not hasattr(api, name)} == set()


def test_every_runtime_has_a_contract_test() -> None:
    assert {cls.name for cls in subclasses(RuntimeContract)} == set(RUNTIMES)


def subclasses(cls: type) -> set[Any]:
    return {found for child in cls.__subclasses__() for found in {child, *subclasses(child)}}


@pytest.mark.parametrize("name", RUNTIMES)
def test_an_absent_device_is_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    kind = runtime_class(name)
    reason = kind.why_not("MARS", "fp32")
    assert reason
    with pytest.raises(RuntimeUnavailableError) as refusal:
        kind.open(tmp_path / "any", device="MARS", precision="fp32")
    assert str(refusal.value) == reason


def test_int8_engines_take_the_fastest_type_there_is_for_the_rest() -> None:
    from csg_edge.runtimes import ov

    assert ov._hint("int8", ["FP32", "INT8", "BF16"]) == "bf16"
    assert ov._hint("int8", ["FP32", "INT8"]) == "f32"
    assert ov._hint("int8", ["FP32", "BF16"]) is None
    assert (
        OpenVinoRuntime.takes("openvino 1.0")
        == f"built with openvino 1.0, here is openvino {OpenVinoRuntime.version()}"
    )
    assert OpenVinoRuntime.takes("") is None


def test_unknown_runtime_names_the_known_ones() -> None:
    with pytest.raises(CsgEdgeError, match="openvino"):
        runtime_class("tflite")
