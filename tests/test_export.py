"""From a student to a bundle.

The graph is the model, holds no sampler leftovers, and the same student gives the same files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from csg_edge.bundle import read_bundle
from csg_edge.errors import InputError
from csg_edge.export.assemble import export_bundle, parse_steps
from csg_edge.export.graph import WEIGHTS_NAME, FewStepGraph, export_graphs
from csg_edge.labels import MSK_SCHEMA
from csg_edge.runtimes import RUNTIMES, runtime_class
from csg_edge.training.autoencoder import BlockDct, BlockDctConfig
from csg_edge.training.model import CsgModel
from csg_edge.training.networks import CsgUNet, NetworkConfig
from csg_edge.verify import verify_bundle

SIZE = 64
TINY = NetworkConfig(classes=len(MSK_SCHEMA), widths=(32, 32), blocks=(1, 1), embedding=32, mask_features=8, heads=2)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> CsgModel:
    """A tiny random student, through a folder, as `csg-edge distill` leaves it."""
    torch.manual_seed(0)
    network = CsgUNet(TINY)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    random = np.random.default_rng(0)
    bands = BlockDctConfig.fit(random.integers(0, 256, (4, SIZE, SIZE), dtype=np.uint8))
    model = CsgModel(network, BlockDct(bands), schema=MSK_SCHEMA, image_size=SIZE, role="student")
    folder = tmp_path_factory.mktemp("student") / "student"
    model.save(folder)
    return CsgModel.load(folder).eval()


@pytest.fixture(scope="module")
def graphs(student: CsgModel, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return export_graphs(student, [1, 2], tmp_path_factory.mktemp("graphs"))


def feeds(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "mask": random.integers(0, 10, (1, SIZE, SIZE), dtype=np.uint8),
        "context": random.integers(0, 256, (1, SIZE, SIZE), dtype=np.uint8),
        "noise": random.standard_normal((1, 16, SIZE // 4, SIZE // 4), dtype=np.float32),
    }


@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if ".onnx" in runtime_class(name).portable])
@pytest.mark.parametrize("steps", [1, 2])
def test_graph_is_the_torch_model(student: CsgModel, graphs: dict[int, Path], runtime: str, steps: int) -> None:
    reference = FewStepGraph(student, steps).eval()
    with runtime_class(runtime).open(graphs[steps], device="CPU", precision="fp32") as opened:
        for seed in range(3):
            inputs = feeds(seed)
            with torch.no_grad():
                expected = reference(*(torch.from_numpy(value) for value in inputs.values())).numpy()
            levels = np.abs(opened.run(inputs)["image"].astype(int) - expected)
            assert (levels <= 1).mean() >= 0.999
            assert expected.std() > 5  # a flat image would agree with anything


@pytest.mark.parametrize("dropped", ["mask", "context"])
def test_dropped_conditions_survive_export(student: CsgModel, graphs: dict[int, Path], dropped: str) -> None:
    inputs = feeds(0)
    inputs[dropped] = np.full_like(inputs[dropped], 255 if dropped == "mask" else 0)
    with torch.no_grad():
        expected = FewStepGraph(student, 1)(*(torch.from_numpy(value) for value in inputs.values())).numpy()
    with runtime_class("onnxruntime").open(graphs[1], device="CPU", precision="fp32") as opened:
        levels = np.abs(opened.run(inputs)["image"].astype(int) - expected)
    assert (levels <= 1).mean() >= 0.999


def test_no_time_network_is_left_in_the_graph(graphs: dict[int, Path]) -> None:
    model = onnx.load(graphs[2], load_external_data=False)
    assert not {"Sin", "Cos", "Exp"} & {node.op_type for node in model.graph.node}


def test_steps_share_one_weights_file(graphs: dict[int, Path]) -> None:
    folder = graphs[1].parent
    assert {path.name for path in folder.iterdir()} == {"steps-1.onnx", "steps-2.onnx", WEIGHTS_NAME}
    parameters = sum(parameter.numel() for parameter in CsgUNet(TINY).parameters())
    assert (folder / WEIGHTS_NAME).stat().st_size < 2.2 * parameters  # two bytes each, once
    for path in graphs.values():
        assert path.stat().st_size < 300_000


def test_same_student_same_files(student: CsgModel, graphs: dict[int, Path], tmp_path: Path) -> None:
    again = export_graphs(student, [1, 2], tmp_path)
    for steps, path in graphs.items():
        assert path.read_bytes() == again[steps].read_bytes()
    assert (graphs[1].parent / WEIGHTS_NAME).read_bytes() == (tmp_path / WEIGHTS_NAME).read_bytes()


@pytest.mark.slow
def test_bundle_proves_itself_and_is_replaced_whole(student: CsgModel, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    card = tmp_path / "card.md"
    card.write_text("# card\n")
    manifest = export_bundle(student, out, steps=(1,), name="tiny", documents={"MODEL_CARD.md": card})
    assert manifest.steps == (1,)
    assert (out / "MODEL_CARD.md").read_text() == "# card\n"
    assert all(result.status != "failed" for result in verify_bundle(read_bundle(out)))
    assert manifest.export["onnxruntime_against_torch"]["steps_1"]["share_within_1"] >= 0.999
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
