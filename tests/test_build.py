"""Engines for a bundle: real builders, what they promise, and a bundle that is changed whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from csg_edge.bundle.manifest import Bundle, Engine, Manifest, read_bundle, write_manifest
from csg_edge.cli.main import main
from csg_edge.errors import BundleError, CsgEdgeError, EngineError, InputError, RuntimeUnavailableError
from csg_edge.export import tensorrt
from csg_edge.export.build import build_bundle
from csg_edge.export.targets import SIXTEEN_BIT, check_target, preference
from csg_edge.export.tensorrt_process import build_engine_apart
from csg_edge.generation.loading import load
from csg_edge.generation.verify import verify_bundle

SMS = ("sm75", "sm80", "sm86", "sm89", "sm120")


@pytest.fixture
def bundle(plain_copy: Path) -> Bundle:
    return read_bundle(plain_copy)


@pytest.fixture(scope="session")
def needs_rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; pip install 'csg-edge[build]'")


def hashes(folder: Path) -> dict[str, str]:
    """Everything in a folder and beside it, by content."""
    files = sorted(path for path in folder.parent.rglob("*") if path.is_file())
    return {str(path.relative_to(folder.parent)): str(hash(path.read_bytes())) for path in files}


@pytest.fixture
def untouched(bundle: Bundle) -> Iterator[Bundle]:
    """A bundle that the test must leave as it is, with nothing left beside it."""
    before = hashes(bundle.path)
    yield bundle
    assert hashes(bundle.path) == before


@pytest.mark.usefixtures("needs_rtx")
class TestTensorRtRtx:
    """TensorRT-RTX compiles ahead of time without a GPU, so these are the engines that users get."""

    def test_fp16_engines_of_two_architectures(self, bundle: Bundle) -> None:
        weights = bundle.manifest.files["graphs/weights.safetensors"]
        targets = ["tensorrt-rtx:sm75:fp16", "tensorrt-rtx:sm120:fp16"]
        manifest, added = build_bundle(bundle, targets, out=bundle.path, steps=(1,))
        assert [engine.target for engine in added] == targets
        assert read_bundle(bundle.path).manifest == manifest
        for engine in added:
            assert engine.built_with.startswith("tensorrt-rtx 1.")
            assert (engine.batch, engine.state) == (1, "unverified")
            assert engine.report["not_run"]
            assert engine.report["layers"]["float16"]["convolution"] == 48  # every one of the denoiser
            # Those of the mask's and the context's encoders, and of the fibre prior.
            assert engine.report["layers"]["float32"] == {"convolution": 8 if manifest.fibre_shape is None else 18}
            assert manifest.files[engine.file].size > 14e6  # holds its weights
        (half,) = [graph for graph in manifest.graphs if graph.precision == "fp16"]
        assert half.error["worst_psnr"] >= 40.0
        assert half.error["mean_levels"] > 0.001  # rounding is really in the figure
        assert manifest.files[half.file].size < 200_000  # its weights are those of the fp32 graph
        assert manifest.files["graphs/weights.safetensors"] == weights

    def test_parser_and_manifest_agree_on_inputs_and_outputs(self, shipped: Path) -> None:
        built = tensorrt.build_engine(shipped / "graphs/steps-1.batch-1.onnx", runtime="tensorrt-rtx", device="sm86")
        field = read_bundle(shipped).manifest.fibre_shape
        fibres = {} if field is None else dict.fromkeys(("fibre", "fibre_used"), ("float32", (1, *field)))
        assert built.ports == {
            "mask": ("uint8", (1, 256, 256)),
            "context": ("uint8", (1, 256, 256)),
            "noise": ("float32", (1, 16, 64, 64)),
            "image": ("uint8", (1, 256, 256)),
            **fibres,
        }

    def test_other_inputs_than_the_manifest_promises_are_refused(self, bundle: Bundle) -> None:
        wrong = replace(bundle, manifest=replace(bundle.manifest, noise_shape=(16, 32, 32), golden=()))
        with pytest.raises(EngineError, match=r"builder reports .*64, 64.* manifest promises .*32, 32"):
            build_bundle(wrong, ["tensorrt-rtx:sm86:fp32"], out=bundle.path, steps=(1,))

    def test_same_graph_same_bytes_whatever_was_built_before(self, shipped: Path, tmp_path: Path) -> None:
        graph = shipped / "graphs/steps-1.batch-1.onnx"
        first = build_engine_apart(graph, runtime="tensorrt-rtx", device="sm89")
        with pytest.raises(EngineError):  # in one process, a failed build changes the bytes of the next engine
            build_engine_apart(quantised(tmp_path, symmetric=False), runtime="tensorrt-rtx", device="sm86")
        second = build_engine_apart(graph, runtime="tensorrt-rtx", device="sm89")
        assert first == second
        assert first.reproducible == "yes"

    def test_an_int8_graph_with_symmetric_scales(self, tmp_path: Path) -> None:
        graph = quantised(tmp_path, symmetric=True)
        built = tensorrt.build_engine(graph, runtime="tensorrt-rtx", device="sm86")
        assert built.layers["int8"]["convolution"] == 2
        assert built.ports["x"] == ("float32", (1, 16, 32, 32))

    def test_an_int8_graph_with_zero_points_is_refused(self, tmp_path: Path) -> None:
        graph = quantised(tmp_path, symmetric=False)
        with pytest.raises(EngineError, match=r"tensorrt-rtx .* cannot (read|build) it"):
            tensorrt.build_engine(graph, runtime="tensorrt-rtx", device="sm86")

    def test_what_an_architecture_cannot_do_is_said_by_its_builder(self, untouched: Bundle) -> None:
        with pytest.raises(EngineError, match=r"steps-1.*cannot build it.*SM75.*FP32 GEMM.*choose another target"):
            build_bundle(untouched, ["tensorrt-rtx:sm75:fp32"], out=untouched.path, steps=(1,))

    def test_a_rebuilt_engine_takes_the_place_of_the_old_one(self, bundle: Bundle) -> None:
        targets = ["tensorrt-rtx:sm86:fp16"]
        first, _ = build_bundle(bundle, targets, out=bundle.path, steps=(1,))
        second, _ = build_bundle(read_bundle(bundle.path), targets, out=bundle.path, steps=(1,))
        assert first == second

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", ["fp16", "fp32"])
    def test_every_architecture_and_number_of_steps(self, bundle: Bundle, precision: str) -> None:
        sms = SMS if precision == "fp16" else SMS[1:]
        manifest, added = build_bundle(bundle, [f"tensorrt-rtx:{sm}:{precision}" for sm in sms], out=bundle.path)
        assert len(added) == len(sms) * len(bundle.manifest.steps)
        sizes = {engine.steps: manifest.files[engine.file].size for engine in added if "sm86" in engine.target}
        assert sizes[4] < 1.5 * sizes[1]  # the weights are in an engine once, however many steps use them


def quantised(folder: Path, *, symmetric: bool) -> Path:
    """Two convolutions, quantised by ONNX Runtime with Q/DQ nodes."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((16, 16, 3, 3)).astype(np.float32), f"w{index}")
        for index in range(2)
    ]
    nodes = [
        helper.make_node("Conv", [source, f"w{index}"], [result], name=f"step_1/{index}/Conv", pads=[1] * 4)
        for index, (source, result) in enumerate([("x", "a"), ("b", "y")])
    ]
    nodes.insert(1, helper.make_node("Relu", ["a"], ["b"], name="step_1/Relu"))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 16, 32, 32]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "small", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "f.onnx")

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": random.standard_normal((1, 16, 32, 32)).astype(np.float32)} for _ in range(4)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    quantize_static(
        folder / "f.onnx",
        folder / "q.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": symmetric, "WeightSymmetric": True},
    )
    return folder / "q.onnx"


class TestOpenVino:
    def test_ir_is_verified_on_the_cpu_and_marked_where_the_device_is_absent(self, bundle: Bundle) -> None:
        targets = ["openvino:CPU:fp32", "openvino:GPU:fp16", "openvino:NPU:fp16"]
        manifest, added = build_bundle(bundle, targets, out=bundle.path, steps=(1,))
        cpu = next(engine for engine in added if engine.target == "openvino:CPU:fp32")
        assert (cpu.state, cpu.batch, cpu.built_with) == ("verified", 1, "")
        assert cpu.report["golden"]["share_within_1"] >= 0.999
        assert {engine.file for engine in added} == {"engines/openvino/steps-1.batch-1.xml"}  # one IR serves all
        weights = manifest.files["graphs/weights.safetensors"].size
        assert manifest.files["engines/openvino/steps-1.batch-1.bin"].size < 1.02 * weights  # fp16 where that is exact
        import openvino

        devices = openvino.Core().available_devices
        for engine in added:
            if engine.target.split(":")[1] not in devices:
                assert engine.state == "unverified"
                assert "finds no device" in engine.report["not_run"]
        shapes = {port.any_name: tuple(port.shape) for port in openvino.Core().read_model(bundle.file(cpu.file)).inputs}
        field = bundle.manifest.fibre_shape
        fibre = {} if field is None else {"fibre": (1, *field)}
        assert shapes == {"mask": (1, 256, 256), "context": (1, 256, 256), "noise": (1, 16, 64, 64), **fibre}

    def test_same_graph_same_bytes(self, bundle: Bundle, tmp_path: Path) -> None:
        files = []
        for out in (tmp_path / "a", tmp_path / "b"):
            manifest, _ = build_bundle(bundle, ["openvino:CPU:bf16"], out=out, steps=(2,))
            files.append({name: entry for name, entry in manifest.files.items() if name.startswith("engines/")})
        assert len(files[0]) == 2
        assert files[0] == files[1]

    def test_the_generator_runs_what_was_built(self, bundle: Bundle) -> None:
        mask = np.zeros((256, 256), np.uint8)
        options = {"runtime": "openvino", "precision": "fp32"}
        with load(bundle.path, **options) as generator:
            before = generator.generate_one(mask, mask, 3).astype(int)
        build_bundle(bundle, ["openvino:CPU:fp32"], out=bundle.path, steps=(1,))
        with load(bundle.path, **options) as generator:
            assert generator.engine.file.endswith(".xml")
            after = generator.generate_one(mask, mask, 3)
        assert (np.abs(before - after) <= 1).mean() >= 0.999


class TestOnnxRuntime:
    def test_providers_open_the_graphs_themselves(self, bundle: Bundle) -> None:
        targets = ["onnxruntime:CUDA:fp16", "onnxruntime:TensorRT:fp32", "onnxruntime:OpenVINO:fp32"]
        manifest, added = build_bundle(bundle, targets, out=bundle.path, steps=(1,))
        by_target = {engine.target: engine for engine in added}
        assert by_target["onnxruntime:CUDA:fp16"].file == "graphs/steps-1.fp16.onnx"
        assert by_target["onnxruntime:TensorRT:fp32"].file == "graphs/steps-1.onnx"
        assert not [name for name in manifest.files if name.startswith("engines/")]
        results = {result.target: result.status for result in verify_bundle(read_bundle(bundle.path))}
        for engine in added:
            assert (results[engine.target] == "passed") == (engine.state == "verified")


def test_engines_stand_in_order_of_preference(bundle: Bundle) -> None:
    manifest, _ = build_bundle(bundle, ["openvino:NPU:fp16", "openvino:GPU:fp16"], out=bundle.path, steps=(1,))
    targets = list(dict.fromkeys(engine.target for engine in manifest.engines))
    assert targets == [
        "openvino:GPU:fp16", "openvino:NPU:fp16", "openvino:CPU:bf16", "openvino:CPU:fp32", "onnxruntime:CPU:fp32"
    ]  # fmt: skip
    faster_first = ["tensorrt:sm86:fp16", "tensorrt-rtx:sm86:fp16", "onnxruntime:CUDA:fp16"]
    assert sorted(reversed(faster_first), key=lambda text: preference(Engine(text, 1, "", SIXTEEN_BIT))) == faster_first


def test_out_is_a_copy_and_the_source_stays(untouched: Bundle, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("other") / "bundle"
    build_bundle(untouched, ["openvino:CPU:fp32"], out=out, steps=(1,))
    copy = read_bundle(out).manifest
    assert set(untouched.manifest.files) < set(copy.files)


REFUSED = {
    "not a target": ("openvino:CPU", InputError, "write runtime:device:precision"),
    "runtime": ("tflite:CPU:fp32", InputError, "runtime tflite is unknown; choose among openvino"),
    "device": ("openvino:TPU:fp32", InputError, "openvino has no device TPU; choose among CPU, GPU, NPU"),
    "no compute capability": ("tensorrt-rtx:CPU:fp32", InputError, "no device CPU; choose among smNN"),
    "precision": ("openvino:CPU:fp16", InputError, "fp16 is not offered on openvino:CPU; choose among bf16, fp32"),
    "NPU precision": ("openvino:NPU:fp32", InputError, "choose among fp16, int8"),
    "no int8 graph": ("onnxruntime:CPU:int8", BundleError, "no int8 graph of 1 steps.*csg-edge calibrate"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_target_that_is_not_offered(untouched: Bundle, case: str) -> None:
    target, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        build_bundle(untouched, ["openvino:CPU:fp32", target], out=untouched.path, steps=(1,))


@pytest.mark.usefixtures("needs_rtx")
def test_a_compute_capability_that_this_builder_does_not_know(untouched: Bundle) -> None:
    message = r"tensorrt-rtx:sm90: tensorrt-rtx 1\.\S+ builds for sm75, sm80, .*, not sm90; choose one of these"
    with pytest.raises(InputError, match=message):
        build_bundle(untouched, ["tensorrt-rtx:sm90:fp16"], out=untouched.path)


@pytest.mark.parametrize(
    ("target", "module", "remedy"),
    [
        ("tensorrt-rtx:sm86:fp16", "tensorrt_rtx", "pip install 'csg-edge\\[build\\]'"),
        ("tensorrt:sm86:fp16", "tensorrt", "pip install 'csg-edge\\[tensorrt\\]', or build for tensorrt-rtx"),
        ("openvino:CPU:fp32", "openvino", "pip install 'csg-edge\\[build\\]'"),
    ],
)
def test_a_builder_that_is_not_installed(
    untouched: Bundle, monkeypatch: pytest.MonkeyPatch, target: str, module: str, remedy: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeUnavailableError, match=f"is not installed; {remedy}"):
        build_bundle(untouched, [target], out=untouched.path)


def test_options_of_tensorrt_elsewhere(untouched: Bundle) -> None:
    with pytest.raises(InputError, match="--version-compatible and --timing-cache are for tensorrt"):
        options = tensorrt.Options(version_compatible=True)
        build_bundle(untouched, ["openvino:CPU:fp32"], out=untouched.path, options=options)


def test_steps_that_the_bundle_lacks(untouched: Bundle) -> None:
    with pytest.raises(InputError, match="--steps 3: the bundle has 1, 2, 4"):
        build_bundle(untouched, ["openvino:CPU:fp32"], out=untouched.path, steps=(1, 3))


def test_a_folder_that_is_no_bundle_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="not empty and not a bundle"):
        build_bundle(bundle, ["openvino:CPU:fp32"], out=out)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def with_graph(bundle: Bundle, change: object) -> Manifest:
    """Rewrite the static one-step graph of a bundle."""
    path = bundle.path / "graphs/steps-1.batch-1.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)  # type: ignore[operator]
    path.write_bytes(model.SerializeToString())
    return write_manifest(bundle.path, bundle.manifest)


@pytest.mark.usefixtures("needs_rtx")
@pytest.mark.parametrize(("opset", "problem"), [(11, "too old"), (23, "too new")])
def test_a_graph_of_another_opset(bundle: Bundle, opset: int, problem: str) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = opset

    changed = replace(bundle, manifest=with_graph(bundle, change))
    before = hashes(bundle.path)
    with pytest.raises(EngineError, match=f"opset {opset} is {problem}, .* from opset 18 to 20; export"):
        build_bundle(changed, ["tensorrt-rtx:sm86:fp32"], out=bundle.path, steps=(1,))
    assert hashes(bundle.path) == before


def test_an_engine_that_misses_its_tolerance_is_not_added(untouched: Bundle) -> None:
    """Golden images of another seed: whatever is built is not the model that the bundle promises."""
    golden = tuple(replace(case, seed=case.seed + 1) for case in untouched.manifest.golden)
    other = replace(untouched, manifest=replace(untouched.manifest, golden=golden))
    with pytest.raises(EngineError, match=r"beyond tolerance.*nothing was added"):
        build_bundle(other, ["openvino:CPU:fp32"], out=untouched.path, steps=(1,))
    with pytest.raises(EngineError, match=r"fp16\.onnx: PSNR .* fp16 needs 40 dB; choose another precision"):
        build_bundle(other, ["onnxruntime:CUDA:fp16"], out=untouched.path, steps=(1,))


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from csg_edge.cli import main
main.main(sys.argv[2:], prog_name="csg-edge")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
@pytest.mark.parametrize(
    ("target", "limit"),
    [
        ("tensorrt-rtx:sm86:fp16", 1.005),  # the weights can be copied, the engine cannot be written
        ("openvino:CPU:fp32", 1.001),  # nor the IR's weights
        ("openvino:CPU:fp32", 0.1),  # nor anything
    ],
)
def test_a_file_that_the_disk_does_not_take(untouched: Bundle, target: str, limit: float) -> None:
    if target.startswith("tensorrt"):
        pytest.importorskip("tensorrt_rtx")
    largest = int(limit * untouched.manifest.files["graphs/weights.safetensors"].size)
    command = [sys.executable, "-c", LIMITED, str(largest), "build", str(untouched.path), "--target", target]
    done = subprocess.run([*command, "--steps", "1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("built")]
    assert len(lines) == 1
    assert "cannot write" in lines[0]
    assert "free disk space" in lines[0]


class TestCommand:
    def run(self, *arguments: object) -> tuple[int, str, str]:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        return result.exit_code, result.stdout, result.stderr

    def test_the_shipped_bundle_is_not_changed_in_place(self) -> None:
        code, out, err = self.run("build", "msk-256", "--target", "openvino:CPU:fp32")
        assert (code, out) == (2, "")
        assert "give --out FOLDER" in err

    def test_json_is_the_new_engines(self, bundle: Bundle, tmp_path: Path) -> None:
        arguments = ("--target", "openvino:CPU:fp32", "--steps", "1", "--out", tmp_path / "out")
        code, out, err = self.run("build", bundle.path, *arguments, "--json")
        assert code == 0
        (engine,) = json.loads(out)["engines"]
        assert (engine["target"], engine["steps"], engine["state"]) == ("openvino:CPU:fp32", 1, "verified")
        assert err.startswith("built openvino:CPU:fp32, steps 1: engines/openvino/")

    @pytest.mark.parametrize("steps", ["1,x", ""])
    def test_bad_steps(self, bundle: Bundle, steps: str) -> None:
        code, out, err = self.run("build", bundle.path, "--target", "openvino:CPU:fp32", "--steps", steps)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "--steps" in err


def test_every_refusal_is_one_of_ours() -> None:
    for text in ("", ":", "a:b:c", "openvino:CPU:fp64", "tensorrt-rtx:sm:fp16", "onnxruntime:cuda:fp16"):
        with pytest.raises(CsgEdgeError):
            check_target(text)
