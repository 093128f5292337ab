"""From a student to a bundle.

The graph is the model, holds no sampler leftovers, and the same student gives the same files.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_model import SIZE, TINY, tiny_model

from csg_edge.bundle.manifest import read_bundle
from csg_edge.errors import EngineError, InputError, TrainingError
from csg_edge.export.assemble import export_bundle
from csg_edge.export.graph import FewStepGraph, check_student, export_graphs
from csg_edge.export.precision import simulate_half, to_half
from csg_edge.export.weights import STORED, WEIGHTS_NAME, WIDEN, read_graph
from csg_edge.generation.verify import verify_bundle
from csg_edge.labels import MSK_SCHEMA
from csg_edge.runtimes import RUNTIMES, runtime_class
from csg_edge.training.model import CsgModel
from csg_edge.training.networks import CsgUNet
from csg_edge.training.process import parse_steps

FLOAT16 = onnx.TensorProto.FLOAT16
Graphs = dict[tuple[int, int | None], Path]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> CsgModel:
    """A tiny random student, through a folder, as `csg-edge distill` leaves it."""
    model = tiny_model("student", deviation=0.05)
    folder = tmp_path_factory.mktemp("student") / "student"
    model.save(folder)
    return CsgModel.load(folder).eval()


@pytest.fixture(scope="module")
def graphs(student: CsgModel, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return export_graphs(student, [1, 2], tmp_path_factory.mktemp("graphs"))


def feeds(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "mask": random.integers(0, 10, (1, SIZE, SIZE), dtype=np.uint8),
        "context": random.integers(0, 256, (1, SIZE, SIZE), dtype=np.uint8),
        "noise": random.standard_normal((1, 16, SIZE // 4, SIZE // 4), dtype=np.float32),
    }


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if ".onnx" in runtime_class(name).portable])
@pytest.mark.parametrize("batch", [None, 1], ids=["free batch", "batch 1"])
@pytest.mark.parametrize("steps", [1, 2])
def test_graph_is_the_torch_model(
    student: CsgModel, graphs: Graphs, runtime: str, steps: int, batch: int | None
) -> None:
    reference = FewStepGraph(student, steps).eval()
    with runtime_class(runtime).open(graphs[steps, batch], device="CPU", precision="fp32") as opened:
        for seed in range(3):
            inputs = feeds(seed)
            with torch.no_grad():
                expected = reference(*(torch.from_numpy(value) for value in inputs.values())).numpy()
            levels = np.abs(opened.run(inputs)["image"].astype(int) - expected)
            assert (levels <= 1).mean() >= 0.999
            assert expected.std() > 5  # a flat image would agree with anything


@pytest.mark.parametrize("dropped", ["mask", "context"])
def test_dropped_conditions_survive_export(student: CsgModel, graphs: Graphs, dropped: str) -> None:
    inputs = feeds(0)
    inputs[dropped] = np.full_like(inputs[dropped], 255 if dropped == "mask" else 0)
    with torch.no_grad():
        expected = FewStepGraph(student, 1)(*(torch.from_numpy(value) for value in inputs.values())).numpy()
    with runtime_class("onnxruntime").open(graphs[1, None], device="CPU", precision="fp32") as opened:
        levels = np.abs(opened.run(inputs)["image"].astype(int) - expected)
    assert (levels <= 1).mean() >= 0.999


@pytest.mark.parametrize("batch", [None, 1])
def test_constants_are_folded(student: CsgModel, graphs: Graphs, batch: int | None) -> None:
    model = read_graph(graphs[2, batch])
    assert not {"Sin", "Cos", "Exp", "Constant"} & {node.op_type for node in model.graph.node}
    held = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer]
    for layer in (student.network.time[0], student.network.time[2]):  # of the time network nothing is left
        weight = layer.weight.detach().numpy()
        for stored in (weight, weight.T):
            assert not [item for item in held if item.shape == stored.shape and np.allclose(item, stored)]
    constant = {tensor.name for tensor in model.graph.initializer}
    # Nothing is computed from constants alone but the widening of stored weights.
    idle = [node.name for node in model.graph.node if set(node.input) <= constant and not node.name.startswith(WIDEN)]
    assert idle == []
    if batch == 1:
        assert "Shape" not in {node.op_type for node in model.graph.node}


def test_metadata_says_what_the_graph_is(graphs: Graphs) -> None:
    for (steps, batch), path in graphs.items():
        values = {item.key: item.value for item in read_graph(path, weights=False).metadata_props}
        assert json.loads(values["csg_edge.steps"]) == steps
        assert json.loads(values["csg_edge.batch"]) == batch
        assert json.loads(values["csg_edge.timesteps"]) == ([1.0, 0.0] if steps == 1 else [1.0, 0.5, 0.0])
        assert tuple(json.loads(values["csg_edge.labels"])) == MSK_SCHEMA.names
        assert json.loads(values["csg_edge.image_size"]) == [SIZE, SIZE]
        assert json.loads(values["csg_edge.noise_shape"]) == [16, SIZE // 4, SIZE // 4]
        assert values["csg_edge.producer"].startswith("csg-edge ")


def test_every_node_says_its_stage(graphs: Graphs) -> None:
    nodes = read_graph(graphs[2, 1], weights=False).graph.node
    assert len({node.name for node in nodes}) == len(nodes)
    stages = list(dict.fromkeys(node.name.split("/")[0] for node in nodes if not node.name.startswith(WIDEN)))
    assert stages == ["context", "step_1", "step_2", "decode"]
    names = {node.name for node in nodes}
    assert {"step_1/down.0.0.conv_in/Conv", "step_2/attention/Softmax", "step_2/update/Add", "decode/Conv"} <= names


def test_uint8_inputs_are_cast_before_anything_else(graphs: Graphs) -> None:
    """TensorRT takes no other operator on uint8."""
    for path in graphs.values():
        users = [node for node in read_graph(path, weights=False).graph.node if {"mask", "context"} & set(node.input)]
        assert {node.op_type for node in users} == {"Cast"}


def test_all_graphs_share_one_weights_file(graphs: Graphs) -> None:
    folder = graphs[1, None].parent
    assert {path.name for path in folder.iterdir()} == {
        "steps-1.onnx", "steps-1.batch-1.onnx", "steps-2.onnx", "steps-2.batch-1.onnx", WEIGHTS_NAME
    }  # fmt: skip
    parameters = sum(parameter.numel() for parameter in CsgUNet(TINY).parameters())
    assert (folder / WEIGHTS_NAME).stat().st_size < 2.4 * parameters  # two bytes each, once
    for path in graphs.values():
        assert path.stat().st_size < 300_000


def test_same_student_same_files(student: CsgModel, graphs: Graphs, tmp_path: Path) -> None:
    again = export_graphs(student, [1, 2], tmp_path)
    for key, path in graphs.items():
        assert path.read_bytes() == again[key].read_bytes()
    assert (graphs[1, None].parent / WEIGHTS_NAME).read_bytes() == (tmp_path / WEIGHTS_NAME).read_bytes()


@pytest.mark.slow
def test_bundle_proves_itself_and_is_replaced_whole(student: CsgModel, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    card = tmp_path / "card.md"
    card.write_text("# card\n")
    manifest = export_bundle(student, out, steps=(1,), name="tiny", documents={"MODEL_CARD.md": card})
    assert manifest.steps == (1,)
    assert (out / "MODEL_CARD.md").read_text() == "# card\n"
    assert all(result.status != "failed" for result in verify_bundle(read_bundle(out)))
    assert [(graph.batch, graph.precision) for graph in manifest.graphs] == [(None, "fp32"), (1, "fp32")]
    for graph in manifest.graphs:
        assert graph.error["share_within_1"] >= 0.999
        assert graph.error.keys() >= {"max_levels", "mean_levels", "p50_levels", "p99_levels", "worst_psnr"}
    assert {engine.state for engine in manifest.engines if engine.target.endswith("fp32")} == {"verified"}
    export_bundle(student, out, steps=(1,), name="tiny")
    assert not (out / "MODEL_CARD.md").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_is_no_bundle_is_left_alone(student: CsgModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="not a bundle"):
        export_bundle(student, tmp_path, steps=(1,), name="tiny")
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_steps_are_parsed() -> None:
    assert parse_steps("4,1,2,1") == (1, 2, 4)
    for text in ("3", "1,x", ""):
        with pytest.raises(InputError, match="--steps"):
            parse_steps(text)


class TestHalf:
    def test_the_denoiser_is_fp16_and_what_is_sensitive_is_not(self, graphs: Graphs) -> None:
        half = to_half(read_graph(graphs[2, 1]))
        kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
        convolutions = [node for node in half.graph.node if node.op_type == "Conv"]
        assert {kinds.get(node.input[1]) for node in convolutions if node.name.startswith("step_")} == {FLOAT16}
        assert FLOAT16 not in {kinds.get(node.input[1]) for node in convolutions if not node.name.startswith("step_")}
        made_by = {name: node for node in half.graph.node for name in node.output}
        for node in half.graph.node:
            if node.op_type in ("Softmax", "InstanceNormalization") or node.name == "step_2/update/Mul":
                source = made_by[node.input[0]]
                assert (source.op_type, source.attribute[0].i) == ("Cast", onnx.TensorProto.FLOAT)

    def test_weights_are_those_of_the_fp32_graph(self, graphs: Graphs) -> None:
        full, half = (
            {tensor.name for tensor in model.graph.initializer if tensor.name.startswith(STORED)}
            for model in (read_graph(graphs[1, 1]), to_half(read_graph(graphs[1, 1])))
        )
        assert half
        assert half <= full

    def test_it_is_near_the_fp32_graph_with_every_rounding(self, graphs: Graphs, tmp_path: Path) -> None:
        half = to_half(read_graph(graphs[2, 1]))
        simulated = tmp_path / "simulated.onnx"
        simulated.write_bytes(simulate_half(half).SerializeToString())
        images = []
        for path in (graphs[2, 1], simulated):
            with runtime_class("onnxruntime").open(path, device="CPU", precision="fp32") as opened:
                images.append(opened.run(feeds(0))["image"].astype(int))
        difference = np.abs(images[0] - images[1])
        assert 0 < difference.mean() < 1.0

    def test_the_simulation_rounds_where_onnx_runtime_would_not(self, tmp_path: Path) -> None:
        """1 + 2^-11 is 1 in fp16, however often it is added; ONNX Runtime's own fp16 adds it up in fp32."""
        step = onnx.numpy_helper.from_array(np.full(1, 2.0**-11, np.float16), "step")
        one = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        last = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
        adds = [onnx.helper.make_node("Add", [f"h{index}", "step"], [f"h{index + 1}"]) for index in range(4)]
        nodes = [
            onnx.helper.make_node("Cast", ["x"], ["h0"], to=FLOAT16),
            *adds,
            onnx.helper.make_node("Cast", ["h4"], ["y"], to=onnx.TensorProto.FLOAT),
        ]
        graph = onnx.helper.make_graph(nodes, "sum", [one], [last], [step])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        path = tmp_path / "sum.onnx"
        path.write_bytes(simulate_half(model).SerializeToString())
        with runtime_class("onnxruntime").open(path, device="CPU", precision="fp32") as opened:
            assert opened.run({"x": np.ones(1, np.float32)})["y"] == 1.0

    def test_a_constant_beyond_fp16_keeps_its_node_in_fp32(self, graphs: Graphs) -> None:
        model = read_graph(graphs[1, 1])
        node = next(node for node in model.graph.node if node.name == "step_1/down.0.0.norm_in/Mul")
        constant = next(item for item in model.graph.initializer if item.name == node.input[1])
        array = onnx.numpy_helper.to_array(constant).copy()
        array.flat[0] = 1e6
        constant.CopyFrom(onnx.numpy_helper.from_array(array, constant.name))
        half = to_half(model)
        kept = next(item for item in half.graph.node if item.name == node.name)
        assert kept.input[1] == constant.name

    def test_a_graph_without_stages_is_refused(self) -> None:
        with pytest.raises(EngineError, match="names no stages; export the student again"):
            to_half(onnx.ModelProto())


@pytest.mark.parametrize(
    ("size", "good"), [(64, True), (96, True), (512, True), (100, False), (48, False), (0, False), (544, False)]
)
def test_image_sizes_are_multiples_of_32_up_to_512(student: CsgModel, size: int, good: bool) -> None:
    before, student.image_size = student.image_size, size
    try:
        if good:
            check_student(student)
        else:
            with pytest.raises(InputError, match=rf"--size {size}: give a multiple of 32 up to 512"):
                check_student(student)
    finally:
        student.image_size = before


def test_another_size_than_the_training_size(student: CsgModel, tmp_path: Path) -> None:
    before, student.image_size = student.image_size, 96
    try:
        paths = export_graphs(student, [1], tmp_path)
        random = np.random.default_rng(0)
        inputs = {
            "mask": random.integers(0, 10, (1, 96, 96), dtype=np.uint8),
            "context": random.integers(0, 256, (1, 96, 96), dtype=np.uint8),
            "noise": random.standard_normal((1, 16, 24, 24), dtype=np.float32),
        }
        with torch.no_grad():
            expected = FewStepGraph(student, 1)(*(torch.from_numpy(value) for value in inputs.values())).numpy()
        for path in paths.values():
            with runtime_class("onnxruntime").open(path, device="CPU", precision="fp32") as opened:
                levels = np.abs(opened.run(inputs)["image"].astype(int) - expected)
            assert (levels <= 1).mean() >= 0.999
    finally:
        student.image_size = before


def test_a_teacher_is_no_student(student: CsgModel, tmp_path: Path) -> None:
    teacher = CsgModel(student.network, student.autoencoder, schema=student.schema, image_size=SIZE, role="teacher")
    with pytest.raises(InputError, match="this is a teacher; make a student of it with `csg-edge distill`"):
        export_bundle(teacher, tmp_path / "out", steps=(1,), name="tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_student_with_other_channels_than_its_autoencoder(student: CsgModel, tmp_path: Path) -> None:
    network = CsgUNet(replace(TINY, latent_channels=8))
    other = CsgModel(network, student.autoencoder, schema=student.schema, image_size=SIZE, role="student")
    with pytest.raises(InputError, match=r"8 latent channels at 1/4 size, the autoencoder makes 16"):
        export_bundle(other, tmp_path / "out", steps=(1,), name="tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_student_whose_weights_are_of_other_widths_names_the_layer(student: CsgModel, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    student.save(folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "widths": [64, 32]}))
    with pytest.raises(TrainingError, match=r"size mismatch for .*copy the model again"):
        CsgModel.load(folder)
