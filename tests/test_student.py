"""The student's network: what it takes over from its teacher, what it costs, what it was made for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import SIZE, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from csg_edge.cli.main import main
from csg_edge.datasets.phantom import write_phantoms
from csg_edge.errors import InputError, TrainingError
from csg_edge.export.graph import FewStepGraph, export_graphs
from csg_edge.export.weights import read_graph
from csg_edge.labels import MSK_SCHEMA
from csg_edge.quality.evaluators import Encoder
from csg_edge.runtimes import runtime_class
from csg_edge.training import trajectories
from csg_edge.training.autoencoder import unit_to_image
from csg_edge.training.block_dct import BlockDct, BlockDctConfig
from csg_edge.training.device import check_compiler
from csg_edge.training.distil import (
    BLOCK_DCT_TERMS,
    LossTerms,
    check_terms,
    distil,
    orientation_distance,
    relative_distance,
    seam_distances,
    squared_shift,
    texture_distance,
    walk,
)
from csg_edge.training.feature_matching import MatchedFeatures
from csg_edge.training.loop import LoopConfig
from csg_edge.training.model import CsgModel
from csg_edge.training.networks import Affine, CsgUNet, NetworkConfig
from csg_edge.training.process import STUDENT_TIMESTEPS, euler, mix
from csg_edge.training.segmentation_consistency import SegmentationConsistency
from csg_edge.training.student import NETWORKS, continue_student, kernel_friendly, start_student
from csg_edge.training.teacher import MSK_NETWORK
from csg_edge.training.trajectories import Trajectories, TrajectoryConfig, make_trajectories

CPU = torch.device("cpu")
LOOP = LoopConfig(iterations=2, batch=2, warmup=1)
ALL_TERMS = replace(BLOCK_DCT_TERMS, relative=0.5, orientation=0.5)
TINY = NetworkConfig(
    classes=len(MSK_SCHEMA), widths=(32, 64), blocks=(1, 1), embedding=32, mask_features=8, heads=2, deeper=1,
    context_tokens=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher() -> CsgModel:
    return tiny_model("teacher", TINY, deviation=0.1, biases=False).eval()


@pytest.fixture(scope="module")
def stored(teacher: CsgModel, phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Trajectories:
    folder = tmp_path_factory.mktemp("trajectories")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectories, "SHARD", 4)
        patch.setattr(trajectories, "LEAST_OF_KIND", 3)
        make_trajectories(teacher, TrajectoryConfig((phantom_set,), 16), folder, device=CPU, precision="fp32")
        stored = Trajectories(folder, 16)
        assert len(stored.kinds) > 1
        stored.keep(CPU)  # read while shards are small
    return stored


def test_norms_become_the_constants_they_meet(teacher: CsgModel, stored: Trajectories) -> None:
    slim = kernel_friendly(TINY)
    frozen, _ = start_student(teacher, stored, config=slim)
    normalised, _ = start_student(teacher, stored, config=replace(slim, norm="group"))
    plain = CsgUNet(slim).eval()
    plain.load_state_dict(normalised.network.state_dict())
    assert any(isinstance(module, Affine) for module in frozen.network.modules())
    noise, clean, mask, context, _ = stored.read(range(16))
    timestep = torch.full((16,), 0.5)
    latent = mix(clean, noise, timestep)

    def velocity(network: CsgUNet) -> torch.Tensor:
        with torch.no_grad():
            return network(latent, network.embed_time(timestep), frozen.conditions(mask, context))

    wanted = velocity(normalised.network)
    error, without = ((velocity(network) - wanted).norm() / wanted.norm() for network in (frozen.network, plain))
    assert error < 0.25
    assert without > 2.0 * error


def test_a_student_inherits_what_fits(teacher: CsgModel, stored: Trajectories) -> None:
    def inherited(student: CsgModel) -> list[bool]:
        mine, theirs = student.network.state_dict(), teacher.network.state_dict()
        return [torch.equal(mine[name], theirs[name]) for name in mine if name.endswith("conv_in.weight")]

    full, deviation = start_student(teacher, stored)
    assert deviation == 1.0
    assert all(inherited(full))
    slimmer, _ = start_student(teacher, stored, config=replace(kernel_friendly(TINY), widths=(32, 32)))
    assert any(inherited(slimmer))
    assert not all(inherited(slimmer))
    assert not any(inherited(start_student(teacher, stored, inherit=False)[0]))


def test_what_the_shipped_shapes_cost() -> None:
    def gmac(config: NetworkConfig) -> float:
        images = np.random.default_rng(0).integers(0, 256, (2, 256, 256), dtype=np.uint8)
        model = CsgModel(
            CsgUNet(config), BlockDct(BlockDctConfig.fit(images)), schema=MSK_SCHEMA, image_size=256, role="student"
        )
        mask, context = torch.zeros(1, 256, 256, dtype=torch.uint8), torch.ones(1, 256, 256, dtype=torch.uint8)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.velocity(model.conditions(mask, context))(torch.zeros(model.latent_shape(1)), 1.0)
        return counter.get_total_flops() / 2e9

    full, nano = (gmac(kernel_friendly(MSK_NETWORK, network=network)) for network in NETWORKS)
    assert full <= 4.0
    assert nano <= full / 4.0


class TestSteps:
    def test_a_student_is_exported_for_the_steps_it_was_made_for(
        self, teacher: CsgModel, stored: Trajectories, tmp_path: Path
    ) -> None:
        student, _ = start_student(teacher, stored, steps=(2,))
        assert student.inner_places == ((2, 1),)
        assert distil(student, stored, LOOP, out=tmp_path, device=CPU)
        loaded = CsgModel.load(tmp_path / "student")
        assert loaded.steps == (2,)
        with pytest.raises(InputError, match=r"--steps 1,4: the student was made for 2"):
            export_graphs(loaded, (1, 2, 4), tmp_path / "graphs")

    def test_one_step_alone_draws_nothing_but_noise(
        self, teacher: CsgModel, stored: Trajectories, tmp_path: Path
    ) -> None:
        student, _ = start_student(teacher, stored, steps=(1,))
        assert student.inner_places == ()
        assert distil(student, stored, LOOP, out=tmp_path, device=CPU)

    def test_a_run_for_other_steps_is_not_continued(
        self, teacher: CsgModel, stored: Trajectories, tmp_path: Path
    ) -> None:
        distil(start_student(teacher, stored, steps=(1,))[0], stored, LOOP, out=tmp_path, device=CPU)
        with pytest.raises(TrainingError, match="a student of other steps"):
            distil(start_student(teacher, stored, steps=(1, 2))[0], stored, LOOP, out=tmp_path, device=CPU)
        with pytest.raises(TrainingError, match="a student of other network"):
            distil(
                start_student(teacher, stored, steps=(1,), network="nano")[0], stored, LOOP, out=tmp_path, device=CPU
            )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler; install g++")
def test_compiled_training_is_the_same_training(teacher: CsgModel, stored: Trajectories, tmp_path: Path) -> None:
    for name, compiled in (("eager", False), ("compiled", True)):
        student, _ = start_student(teacher, stored)
        assert distil(student, stored, LOOP, terms=ALL_TERMS, compiled=compiled, out=tmp_path / name, device=CPU)
    eager, compiled = (
        CsgModel.load(tmp_path / name / "student").network.state_dict() for name in ("eager", "compiled")
    )
    assert eager.keys() == compiled.keys()  # torch.compile wraps a network; what is saved is the network
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=0.02, atol=1e-3, msg=name)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"--compile: no C\+\+ compiler here; install g\+\+"):
        check_compiler(CPU)


def test_texture_is_told_by_power_and_not_by_place() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 16, 32, 32, generator=generator) for _ in range(2))
    same, soft = texture_distance(first, second), texture_distance(0.7 * first, second)
    assert same < 0.7 * soft
    assert texture_distance(first, first) == 0.0
    assert not torch.allclose(first, second)


def test_an_error_counts_more_in_a_shadow_than_in_a_bright_fascia() -> None:
    generator = torch.Generator().manual_seed(0)
    amplitude = torch.ones(1, 1, 32, 32)
    amplitude[..., 16:, :] = 0.1
    wanted = amplitude * torch.randn(2, 16, 32, 32, generator=generator)
    error = 0.1 * torch.randn(2, 16, 32, 32, generator=generator)
    bright, shadow = error.clone(), error.clone()
    bright[..., 16:, :], shadow[..., :16, :] = 0.0, 0.0
    assert relative_distance(wanted + shadow, wanted) > 4.0 * relative_distance(wanted + bright, wanted)
    # An error in proportion to the speckle counts alike everywhere.
    bright, shadow = (error * amplitude for error in (bright, shadow))
    found = [relative_distance(wanted + 3.0 * item, wanted).item() for item in (bright, shadow)]
    assert 0.5 < found[1] / found[0] < 1.1
    assert relative_distance(wanted, wanted) < 0.011


def test_seams_are_told_from_speckle() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = BlockDct(BlockDctConfig.fit(np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)))
    latent = torch.randn(2, 16, 16, 16, generator=generator)
    image = blocks.decode_unit(latent)
    assert torch.equal(unit_to_image(image), blocks.decode(latent))
    # A grey level that is wrong block by block, and the same error spread evenly over a larger place.
    grid = image + 0.2 * torch.randn(2, 1, 16, 16, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    smooth = image + 0.2 * torch.randn(2, 1, 2, 2, generator=generator).repeat_interleave(32, 2).repeat_interleave(
        32, 3
    )
    found = {name: seam_distances(other, image, patch=4) for name, other in (("grid", grid), ("smooth", smooth))}
    assert found["grid"][0] > 2.0 * found["smooth"][0]
    assert found["grid"][1] > 2.0 * found["smooth"][1]
    assert seam_distances(image, image, patch=4)[1] == 0.0


def test_orientation_is_told_by_direction_and_order_and_not_by_contrast() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")

    def stripes(degrees: float, noise: float) -> torch.Tensor:
        angle = np.radians(degrees)
        waves = torch.sin(0.8 * (np.sin(angle) * columns + np.cos(angle) * rows))
        return (0.4 * waves + noise * torch.randn(rows.shape, generator=generator))[None, None]

    level = stripes(0.0, 0.05)
    same = orientation_distance(level, level)
    assert same < 0.02
    assert orientation_distance(0.5 * level + 0.2, level) < 0.03
    turned = [orientation_distance(stripes(angle, 0.05), level) for angle in (5.0, 15.0, 45.0)]
    assert turned == sorted(turned)
    assert turned[0] > 0.1
    assert abs(orientation_distance(stripes(-15.0, 0.05), level) - turned[1]) < 0.02
    assert orientation_distance(stripes(0.0, 0.5), level) > 0.2  # as directed, with less order
    made = stripes(0.0, 0.3).requires_grad_()
    orientation_distance(made, level).backward()
    assert made.grad is not None
    assert torch.isfinite(made.grad).all()


def test_seams_are_refused_where_there_are_no_blocks(
    teacher: CsgModel, stored: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = start_student(teacher, stored, steps=(1,))
    assert distil(student, stored, LOOP, terms=ALL_TERMS, out=tmp_path / "run", device=CPU)
    monkeypatch.setattr(student, "autoencoder", torch.nn.Identity())
    with pytest.raises(TrainingError, match="--seams"):
        distil(student, stored, LOOP, terms=LossTerms(seams=8.0), out=tmp_path / "other", device=CPU)
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def matched(teacher: CsgModel, stored: Trajectories) -> MatchedFeatures:
    torch.manual_seed(0)
    assert isinstance(teacher.autoencoder, BlockDct)
    return MatchedFeatures(Encoder(), teacher.autoencoder, stored)


class TestFeatureMatching:
    def test_scatter_is_no_shift(self) -> None:
        draws = torch.randn(2000, 4, 8, generator=torch.Generator().manual_seed(0))
        found = torch.stack([squared_shift(draw) for draw in draws])
        assert found.mean().abs() < 0.02  # where the square of the mean would be 0.25
        assert torch.stack([squared_shift(draw + 0.5) for draw in draws]).mean() == pytest.approx(0.25, abs=0.02)

    def test_features_are_scaled_by_the_teachers_own_images(
        self, stored: Trajectories, matched: MatchedFeatures
    ) -> None:
        clean, _ = stored.sample(16)
        blocks = BlockDct(BlockDctConfig.fit(np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE), np.uint8)))
        features = matched(blocks.decode_unit(clean))
        assert features.shape == (16, 15)  # fewer images than components
        torch.testing.assert_close(features.mean(0), torch.zeros(15), atol=1e-3, rtol=0.0)
        torch.testing.assert_close(features.square().mean(0), torch.ones(15), atol=1e-2, rtol=0.0)

    def test_power_that_a_regression_averages_away_comes_back(
        self, teacher: CsgModel, stored: Trajectories, matched: MatchedFeatures
    ) -> None:
        # A student that sees each latent through noise as strong, and can only turn it down.
        blocks = teacher.autoencoder
        assert isinstance(blocks, BlockDct)
        clean, _ = stored.sample(16)
        seen = clean + clean.std() * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        meant = matched(blocks.decode_unit(clean))
        gains = []
        for weight in (0.0, 10.0):
            gain = torch.ones((), requires_grad=True)
            optimizer = torch.optim.Adam([gain], lr=0.05)
            for _ in range(60):
                shift = squared_shift(matched(blocks.decode_unit(gain * seen)) - meant)
                loss = (gain * seen - clean).square().mean().sqrt() + weight * shift
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            gains.append(gain.item())
        assert gains[0] == pytest.approx(0.5, abs=0.03)
        assert gains[1] == pytest.approx(0.5**0.5, abs=0.1)

    def test_a_batch_is_of_one_kind(
        self, teacher: CsgModel, stored: Trajectories, matched: MatchedFeatures, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        def classes(index: int) -> tuple[int, ...]:
            found = np.unique(stored.read([index]).mask.numpy())
            return tuple(found[(found > 0) & (found < 255)].tolist())

        *common, rare = stored.kinds
        assert sorted(index for kind in stored.kinds for index in kind.tolist()) == list(range(16))
        assert all(len({classes(int(index)) for index in kind}) == 1 for kind in common)
        drawn: list[int] = []
        read = stored.read
        monkeypatch.setattr(stored, "read", lambda chosen: drawn.extend(chosen) or read(chosen))
        student, _ = start_student(teacher, stored)
        drawn.clear()
        loop, terms = LoopConfig(iterations=8, batch=4, warmup=1), LossTerms(feature_matching=1.0)
        assert distil(student, stored, loop, terms=terms, features=matched, out=tmp_path, device=CPU)
        batches = [set(drawn[start : start + 4]) for start in range(0, 32, 4)]
        assert all(any(batch <= set(kind.tolist()) for kind in stored.kinds) for batch in batches)
        assert len(rare)

    def test_a_batch_stands_at_one_evaluation(
        self, teacher: CsgModel, stored: Trajectories, matched: MatchedFeatures, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        stands: list[set[tuple[int, int]]] = []

        def watched(student: CsgModel, *inputs: Any) -> torch.Tensor:
            stands.append(set(inputs[-1]))
            return walk(student, *inputs)

        monkeypatch.setattr("csg_edge.training.distil.walk", watched)
        student, _ = start_student(teacher, stored)
        loop = LoopConfig(iterations=6, batch=4, warmup=1)
        terms = LossTerms(feature_matching=1.0)
        assert distil(student, stored, loop, terms=terms, features=matched, out=tmp_path, device=CPU)
        assert len(stands) == 6
        assert all(len(stand) == 1 for stand in stands)
        assert len({next(iter(stand)) for stand in stands}) > 1

    def test_the_command_fits_the_features_once(
        self, teacher: CsgModel, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("csg_edge.training.feature_matching.ITERATIONS", 1)
        monkeypatch.setattr(trajectories, "SHARD", 4)
        teacher.save(tmp_path / "teacher")
        shared = tmp_path / "trajectories"
        few = ["--trajectories", "4", "--trajectories-in", str(shared), "--iterations", "1", "--batch", "2"]
        command = ["distill", str(tmp_path / "teacher"), "--data", str(phantom_set), *few, "--feature-matching", "1"]
        fitted = []
        for name in ("first", "second"):
            with pytest.raises(SystemExit) as done:
                main.main([*command, "--out", str(tmp_path / name)], prog_name="csg-edge")
            assert not done.value.code
            assert json.loads((tmp_path / name / "student.json").read_text())["feature_matching"] == 1.0
            fitted.append((shared / "feature-matching" / "checkpoint.safetensors").read_bytes())
            monkeypatch.setattr(
                "csg_edge.training.fit_evaluators._encoder_loss", lambda *_: lambda *_: pytest.fail("fitted again")
            )
        assert fitted[0] == fitted[1]
        assert (tmp_path / "second" / "student").is_dir()

    def test_without_the_quality_extra_nothing_is_begun(
        self, teacher: CsgModel, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        found = find_spec
        monkeypatch.setattr("csg_edge.cli.options.find_spec", lambda name: None if name == "monai" else found(name))
        teacher.save(tmp_path / "teacher")
        command = ["distill", str(tmp_path / "teacher"), "--data", str(phantom_set), "--feature-matching", "1"]
        with pytest.raises(SystemExit) as stopped:
            main.main([*command, "--out", str(tmp_path / "out")], prog_name="csg-edge")
        assert stopped.value.code == 2
        assert "monai not installed; pip install 'csg-edge[quality]'" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_what_cannot_be_compared_is_refused(self, teacher: CsgModel) -> None:
        with pytest.raises(
            TrainingError, match="--feature-matching: compares the halves of a batch; give a --batch of 2"
        ):
            check_terms(LossTerms(feature_matching=1.0), teacher.autoencoder, batch=1)
        with pytest.raises(TrainingError, match="--feature-matching: not for the latents of a learned autoencoder"):
            check_terms(LossTerms(feature_matching=1.0), torch.nn.Identity(), batch=2)


class Brightness(torch.nn.Module):
    """A segmenter of two classes that tells them by brightness alone."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([-8.0 * images, 8.0 * images], 1)


class TestSegmentationConsistency:
    def test_only_what_is_less_than_in_real_images_counts(self) -> None:
        mask = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
        mask[:, 8:24, 8:24] = 1
        shown = 2.0 * mask[:, None] - 1.0
        found = SegmentationConsistency(Brightness(), torch.tensor([torch.nan, 0.8]))
        assert found.dice(shown, mask)[1].item() == pytest.approx(1.0, abs=1e-3)
        assert found(shown, mask) == 0.0
        faint = torch.where(mask[:, None] == 1, -0.1, -1.0).requires_grad_()
        short = found(faint, mask)
        assert 0.1 < short < 0.8
        short.backward()
        assert faint.grad is not None
        assert (faint.grad[mask[:, None] == 1] < 0).all()  # brighter, and it is found

    def test_what_nobody_labelled_or_measured_does_not_count(self) -> None:
        mask = torch.full((1, SIZE, SIZE), 255, dtype=torch.uint8)
        dark = torch.full((1, 1, SIZE, SIZE), -1.0)
        found = SegmentationConsistency(Brightness(), torch.tensor([torch.nan, 0.8]))
        assert found(dark, mask) == 0.0
        mask[:, 8:24, 8:24] = 1
        assert found(dark, mask) > 0.5
        unknown = SegmentationConsistency(Brightness(), torch.tensor([torch.nan, torch.nan]))
        assert unknown(dark, mask) == 0.0

    def test_the_command_fits_the_segmenter_once(
        self, teacher: CsgModel, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        monkeypatch.setattr("csg_edge.training.segmentation_consistency.ITERATIONS", 1)
        monkeypatch.setattr(trajectories, "SHARD", 4)
        teacher.save(tmp_path / "teacher")
        shared = tmp_path / "trajectories"
        few = ["--trajectories", "4", "--trajectories-in", str(shared), "--iterations", "1", "--batch", "2"]
        command = ["distill", str(tmp_path / "teacher"), *few, "--segmentation", "1"]
        with pytest.raises(SystemExit) as refused:
            main.main([*command, "--data", str(phantom_set), "--out", str(tmp_path / "few")], prog_name="csg-edge")
        assert refused.value.code == 2 and "no set has 5 groups" in capsys.readouterr().err
        write_phantoms(tmp_path / "set", count=60, seed=1)
        shutil.rmtree(shared)
        command += ["--data", str(tmp_path / "set")]
        for name in ("first", "second"):
            with pytest.raises(SystemExit) as done:
                main.main([*command, "--out", str(tmp_path / name)], prog_name="csg-edge")
            assert not done.value.code
            assert json.loads((tmp_path / name / "student.json").read_text())["segmentation"] == 1.0
            monkeypatch.setattr(
                "csg_edge.training.fit_evaluators._segmentation_loss", lambda *_: lambda *_: pytest.fail("fitted again")
            )
        assert (tmp_path / "second" / "student").is_dir()

    def test_it_is_for_images_of_blocks(self) -> None:
        with pytest.raises(TrainingError, match="--segmentation: not for the latents of a learned autoencoder"):
            check_terms(LossTerms(segmentation=1.0), torch.nn.Identity(), batch=2)


def test_a_run_with_another_loss_is_not_continued(teacher: CsgModel, stored: Trajectories, tmp_path: Path) -> None:
    student, _ = start_student(teacher, stored, steps=(1,))
    assert distil(student, stored, LOOP, terms=LossTerms(texture=0.1), out=tmp_path, device=CPU)
    with pytest.raises(TrainingError, match="a student of other texture"):
        distil(start_student(teacher, stored, steps=(1,))[0], stored, LOOP, out=tmp_path, device=CPU)


def test_the_graph_holds_whole_weights_and_is_the_model(
    teacher: CsgModel, stored: Trajectories, tmp_path: Path
) -> None:
    student, _ = start_student(teacher, stored, steps=(1, 2))
    student.save(tmp_path / "student")
    student = CsgModel.load(tmp_path / "student").eval()
    path = export_graphs(student, (2,), tmp_path / "graphs")[2, 1]
    graph = read_graph(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    widened = {node.output[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in weights}
    assert all(node.input[1] in weights | widened for node in graph.node if node.op_type == "Conv")
    assert not {node.op_type for node in graph.node} & {"InstanceNormalization", "GroupNormalization", "Softmax"}
    random = np.random.default_rng(1)
    feed = {
        "mask": random.integers(0, len(MSK_SCHEMA), (1, SIZE, SIZE), dtype=np.uint8),
        "context": random.integers(0, 256, (1, SIZE, SIZE), dtype=np.uint8),
        "noise": random.standard_normal(student.latent_shape(1), dtype=np.float32),
    }
    with torch.no_grad():
        wanted = FewStepGraph(student, 2).eval()(
            *(torch.from_numpy(feed[name]) for name in ("mask", "context", "noise"))
        )
    with runtime_class("onnxruntime").open(path, device="CPU", precision="fp32") as opened:
        made = opened.run(feed)["image"]
    assert np.abs(made.astype(int) - wanted.numpy()).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, "norm 'batch'"),
        ({"activation": "gelu"}, "activation 'gelu'"),
        ({"attention": False, "context_tokens": True}, "context_tokens"),
        ({"widths": (48, 64)}, "multiples of 32"),
    ],
)
def test_shapes_that_do_not_exist(options: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(TINY, **options)


def test_later_steps_are_learned_where_the_student_itself_stands(teacher: CsgModel, stored: Trajectories) -> None:
    student, _ = start_student(teacher, stored)
    assert student.inner_places == ((2, 1), (4, 1), (4, 2), (4, 3))
    noise, _, mask, context, _ = stored.read(range(5))
    latent, timestep = walk(student, noise, mask, context, None, [(1, 0), *student.inner_places])
    assert timestep.tolist() == pytest.approx([1.0, 0.5, 5 / 6, 0.5, 1 / 6])
    assert torch.equal(latent[0], noise[0])
    for row, (count, taken) in enumerate(student.inner_places, 1):
        one = slice(row, row + 1)
        with torch.no_grad():
            velocity = student.velocity(student.conditions(mask[one], context[one]))
            wanted = euler(velocity, noise[one], STUDENT_TIMESTEPS[count][: taken + 1])
        assert torch.allclose(latent[one], wanted, atol=1e-4)


class TestInit:
    def test_it_goes_on_where_the_earlier_student_stopped(
        self, teacher: CsgModel, stored: Trajectories, tmp_path: Path
    ) -> None:
        distil(start_student(teacher, stored)[0], stored, LOOP, out=tmp_path, device=CPU)
        earlier = CsgModel.load(tmp_path / "student")
        student, deviation = continue_student(tmp_path / "student", teacher, steps=(1,))
        assert (deviation, student.steps) == (1.0, (1,))
        assert student.fingerprint() == earlier.fingerprint()

    def test_what_is_no_student_of_this_teacher_is_refused(
        self, teacher: CsgModel, stored: Trajectories, tmp_path: Path
    ) -> None:
        teacher.save(tmp_path / "teacher")
        with pytest.raises(TrainingError, match="a teacher, not a student"):
            continue_student(tmp_path / "teacher", teacher, steps=(1,))
        student, _ = start_student(teacher, stored)
        student.image_size = 2 * SIZE
        student.save(tmp_path / "larger")
        with pytest.raises(TrainingError, match="image size"):
            continue_student(tmp_path / "larger", teacher, steps=(1,))
