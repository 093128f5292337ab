"""The inspector: its counts are those of a hand count, and precision is what the runtime reports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from csg_edge.bundle.manifest import read_bundle
from csg_edge.cli.main import main
from csg_edge.export.build import build_bundle
from csg_edge.export.inspect import inspect_bundle, stages_of
from csg_edge.export.weights import read_graph
from csg_edge.training.networks import CsgUNet
from csg_edge.training.student import kernel_friendly
from csg_edge.training.teacher import MSK_NETWORK

# The shipped student: widths and pixels per level, blocks down and up per level, and four more in the middle.
WIDTHS, PIXELS, BLOCKS = (64, 128, 192), (64 * 64, 32 * 32, 16 * 16), (2, 4, 8)
CLASSES, EMBEDDING = 10, 192


def denoiser_macs() -> int:
    """One evaluation at 256 x 256, counted by hand from the network's definition."""
    total = 9 * 16 * 64 * PIXELS[0]  # stem, of the latent; that of the conditions is in the stage `context`
    for width, pixels, blocks in zip(WIDTHS, PIXELS, BLOCKS, strict=True):
        convolutions = 2 * 9 * width * width * pixels
        modulation = CLASSES * 2 * width * pixels + EMBEDDING * 2 * width  # by class and pixel; by style and time
        total += blocks * (convolutions + modulation)
    for inner, outer in ((0, 1), (1, 2)):
        total += 9 * WIDTHS[inner] * WIDTHS[outer] * PIXELS[outer]  # down, at the coarser size
        total += 9 * WIDTHS[outer] * WIDTHS[inner] * PIXELS[outer]  # up, before the pixels are doubled
    return total + 9 * 64 * 16 * PIXELS[0]  # head


@pytest.fixture(scope="module")
def stages(shipped: Path) -> dict[str, dict[str, object]]:
    return stages_of(read_graph(shipped / "graphs/steps-4.batch-1.onnx", weights=False))


def test_stages_in_order(stages: dict) -> None:
    assert list(stages) == ["context", "step_1", "step_2", "step_3", "step_4", "decode"]


def test_macs_are_those_counted_by_hand(stages: dict) -> None:
    assert stages["step_1"]["macs"] == denoiser_macs()
    # What the classes do to each pixel is the same in every step, and is computed once.
    shared = sum(
        blocks * CLASSES * 2 * width * pixels for width, pixels, blocks in zip(WIDTHS, PIXELS, BLOCKS, strict=True)
    )
    assert stages["step_4"]["macs"] == denoiser_macs() - shared
    assert stages["decode"]["macs"] == 16 * 16 * PIXELS[0]


def test_parameters_are_those_of_the_network_without_its_time_network(stages: dict, shipped: Path) -> None:
    shape = replace(MSK_NETWORK, fibres=read_bundle(shipped).manifest.fibre_shape is not None)
    parts = dict(CsgUNet(kernel_friendly(shape)).named_children())
    sizes = {name: sum(item.numel() for item in part.parameters()) for name, part in parts.items()}
    given = 9 * (32 + 16 + 2) * 64 + 64  # what the stem does with mask, depth profile and coordinates
    outside = sizes["time"] + sizes["style"] + sizes["mask_stem"] + sizes.get("fibres", 0) + given
    # Beside the network's own: the time embedding of the step and a few scalars.
    assert stages["step_1"]["parameters"] == pytest.approx(sum(sizes.values()) - outside, abs=1000)
    by_class = sum(blocks * CLASSES * 2 * width for width, blocks in zip(WIDTHS, BLOCKS, strict=True))
    assert stages["step_1"]["parameters"] - stages["step_3"]["parameters"] == by_class  # used in the first step alone


def test_operators_and_activations(stages: dict) -> None:
    assert stages["step_2"]["operators"]["HardSwish"] == 2 * sum(BLOCKS) + 1
    assert not {"Softmax", "InstanceNormalization", "GroupNormalization"} & set(stages["step_2"]["operators"])
    assert stages["step_1"]["activation_bytes"] == pytest.approx(4 * stages["step_1"]["activations"], rel=0.01)
    assert "Cast" not in stages["step_2"]["operators"]


def test_precision_in_force_is_read_back(bundle_copy: Path) -> None:
    bundle = read_bundle(bundle_copy)
    build_bundle(bundle, ["onnxruntime:CUDA:fp16"], out=bundle_copy, steps=(1,))
    report = inspect_bundle(read_bundle(bundle_copy))
    engines = {(item["target"], item["steps"]): item for item in report["engines"]}
    half = engines["onnxruntime:CUDA:fp16", 1]
    prior = 0 if bundle.manifest.fibre_shape is None else 10  # convolutions of the fibre prior
    assert half["above"] == {"fp32": {"convolution": 8 + prior}}
    assert half["layers"]["fp16"] == {"convolution": 48, "matrix_multiply": 16}
    full = engines["openvino:CPU:fp32", 1]
    assert (full["precision_in_force"], full["above"]) == ("fp32", {})
    assert full["layers"]["fp32"]["convolution"] == 56 + prior
    eight = engines["openvino:CPU:int8", 1]
    if eight["why_not"] is None:
        assert eight["precision_in_force"] == "int8"
        assert eight["layers"]["int8"]["convolution"] > 30
    if engines["openvino:CPU:bf16", 1]["why_not"] is None:
        assert engines["openvino:CPU:bf16", 1]["precision_in_force"] == "bf16"
        assert engines["openvino:CPU:bf16", 1]["layers"]["bf16"]["convolution"] == 56 + prior


@pytest.mark.slow
def test_the_command_for_people_and_programs(bundle_copy: Path) -> None:
    result = CliRunner().invoke(main, ["info", str(bundle_copy), "--graph"])
    assert result.exit_code == 0
    assert "graphs/steps-1.batch-1.onnx: 8.65 M parameters, 3.77 GMAC" in result.stdout
    report = json.loads(CliRunner().invoke(main, ["info", str(bundle_copy), "--graph", "--json"]).stdout)
    assert report["graphs"][0]["stages"].keys() == {"context", "step_1", "decode"}
