"""The figures of `verify`, and what an engine may differ by."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from csg_edge.bundle.golden import Difference, error_statistics, within
from csg_edge.bundle.golden import structural_similarity as our_similarity
from csg_edge.bundle.manifest import MANIFEST_NAME, Bundle, Tolerance, read_bundle, read_manifest, write_manifest
from csg_edge.datasets.phantom import make_phantom
from csg_edge.generation.verify import verify_bundle, verify_engine


def pair(seed: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """A phantom and the same with noise of some grey levels."""
    image = make_phantom(seed, size=128).image
    random = np.random.default_rng(seed)
    noisy = np.clip(image + noise * random.standard_normal(image.shape), 0, 255).astype(np.uint8)
    return noisy, image


@pytest.mark.parametrize("noise", [0.5, 5.0, 40.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_psnr_and_ssim_are_those_of_scikit_image(seed: int, noise: float) -> None:
    image, expected = pair(seed, noise)
    difference = Difference.between(image, expected)
    # The settings under which scikit-image follows Wang et al. 2004.
    theirs = structural_similarity(
        expected, image, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert difference.ssim == pytest.approx(theirs, abs=1e-6)
    assert difference.psnr == pytest.approx(peak_signal_noise_ratio(expected, image), abs=1e-9)


def test_equal_images() -> None:
    image, _ = pair(0, 5.0)
    difference = Difference.between(image, image)
    assert (difference.max_levels, difference.p99_levels, difference.psnr) == (0, 0.0, math.inf)
    assert our_similarity(image, image) == pytest.approx(1.0)
    assert difference.to_json()["psnr"] is None


def test_levels_of_a_known_difference() -> None:
    expected = np.full((20, 50), 100, np.uint8)
    image = expected.copy()
    image[0, :5] = 97  # 5 of 1000 pixels by 3
    image[1, :40] = 101  # 40 by 1
    difference = Difference.between(image, expected)
    assert (difference.max_levels, difference.mean_levels, difference.share_within_1) == (3, 0.055, 0.995)
    assert difference.p99_levels == 1.0
    statistics = error_statistics([(image, expected), (expected, expected)])
    assert (statistics["cases"], statistics["max_levels"], statistics["mean_levels"]) == (2, 3, 0.0275)
    assert statistics["p99.9_levels"] == 3.0
    assert statistics["worst_psnr"] == difference.psnr


def test_the_worst_of_each_figure_counts() -> None:
    first = Difference(3, 0.1, 1.0, 0.99, 50.0, 0.99)
    second = Difference(2, 0.2, 2.0, 1.0, 45.0, 1.0)
    assert Difference.worst([first, second]) == Difference(3, 0.2, 2.0, 0.99, 45.0, 0.99)


def test_a_tolerance_holds_levels_and_psnr() -> None:
    expected = np.full((10, 100), 100, np.uint8)
    image = expected.copy()
    image[0, :2] = 102
    assert within(image, expected, Tolerance(levels=1, share=0.998, psnr=50.0), psnr=60.0)
    assert not within(image, expected, Tolerance(levels=1, share=0.999, psnr=50.0), psnr=60.0)
    assert not within(image, expected, Tolerance(levels=255, share=1.0, psnr=61.0), psnr=60.0)


@pytest.fixture
def one_engine(bundle_copy: Path) -> Bundle:
    """The shipped bundle with two golden cases and the ONNX Runtime engine of one step."""
    manifest = read_manifest(bundle_copy / MANIFEST_NAME)
    engines = [item for item in manifest.engines if item.target == "onnxruntime:CPU:fp32" and item.steps == 1]
    write_manifest(bundle_copy, replace(manifest, engines=tuple(engines), golden=manifest.golden[:2]))
    return read_bundle(bundle_copy)


def test_an_engine_has_every_figure(one_engine: Bundle) -> None:
    result = verify_engine(one_engine, one_engine.manifest.engines[0])
    assert (result.status, result.reason, result.effective_precision) == ("passed", "", "fp32")
    assert result.worst is not None
    assert result.worst.max_levels <= 1
    assert result.worst.p99_levels == 0.0
    assert result.worst.ssim > 0.9999


def test_an_engine_beyond_its_tolerance_fails_by_name(one_engine: Bundle) -> None:
    strict = replace(one_engine.manifest.engines[0], tolerance=Tolerance(levels=0, share=1.0, psnr=200.0))
    result = verify_engine(one_engine, strict)
    assert result.status == "failed"
    assert any(case.name in result.reason for case in one_engine.manifest.golden)


@pytest.mark.parametrize("target", ["openvino:NPU:fp16", "tensorrt-rtx:sm86:fp16", "openvino:MARS:fp32"])
def test_an_absent_device_is_not_run(one_engine: Bundle, target: str) -> None:
    result = verify_engine(one_engine, replace(one_engine.manifest.engines[0], target=target))
    assert (result.status, result.worst) == ("not run", None)
    assert result.reason


def test_an_engine_built_by_another_version_is_not_run_and_the_rebuild_command_is_named(bundle_copy: Path) -> None:
    manifest = read_bundle(bundle_copy).manifest
    first = replace(manifest.engines[0], built_with="openvino 2020.1")
    assert first.target.startswith("openvino:CPU")
    write_manifest(bundle_copy, replace(manifest, engines=(first,)))
    result = verify_bundle(read_bundle(bundle_copy))[0]
    assert result.status == "not run"
    assert "built with openvino 2020.1" in result.reason
    assert f"csg-edge build BUNDLE --target {first.target}" in result.reason
