"""Fine-tuning for int8: what is rounded, that it helps, that it resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_model import SIZE, tiny_model

from csg_edge.datasets.batches import BatchSource, read_training_sets
from csg_edge.errors import TrainingError
from csg_edge.labels import MSK_SCHEMA
from csg_edge.training import int8_tuning
from csg_edge.training.device import tensors
from csg_edge.training.int8_tuning import int8_velocity, quantised_layers, round_input, round_weight, tune_int8
from csg_edge.training.loop import LoopConfig
from csg_edge.training.model import WEIGHTS, CsgModel
from csg_edge.training.networks import NetworkConfig

CPU = torch.device("cpu")
LOOP = LoopConfig(iterations=4, batch=2, warmup=1, decay=0.0)
SHAPE = NetworkConfig(
    classes=len(MSK_SCHEMA), widths=(32, 64), blocks=(1, 1), embedding=32, mask_features=8, norm="affine",
    activation="hardswish", attention=False,
)  # fmt: skip


@pytest.fixture
def student() -> CsgModel:
    return tiny_model("student", SHAPE, deviation=0.05, biases=False, steps=(1, 2))


def test_rounding_is_symmetric_with_255_levels_and_lets_gradients_through() -> None:
    features = torch.linspace(-3.0, 2.0, 1001, requires_grad=True)
    rounded = round_input(features)
    assert len(rounded.unique()) <= 255
    assert rounded[0] == -3.0
    assert (rounded - features).abs().max() <= 3.0 / 127 / 2 + 1e-6
    (gradient,) = torch.autograd.grad(rounded.sum(), features)
    assert torch.equal(gradient, torch.ones_like(features))
    weight = torch.randn(4, 3, 3, 3) * torch.tensor([1.0, 0.01, 10.0, 0.0]).view(4, 1, 1, 1)
    error = (round_weight(weight) - weight).abs().flatten(1).amax(dim=1)
    assert (error <= weight.abs().flatten(1).amax(dim=1) / 127 / 2 + 1e-6).all()  # each channel by its own range


def test_the_network_is_rounded_for_that_call_only(student: CsgModel) -> None:
    assert len(quantised_layers(student.network)) > 8
    mask = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    conditions = student.conditions(mask, torch.ones_like(mask))
    noise = torch.randn(student.latent_shape(2))
    with torch.no_grad():
        exact = student.velocity(conditions)(noise, 1.0)
        rounded = int8_velocity(student.network, noise, 1.0, conditions)
        again = student.velocity(conditions)(noise, 1.0)
    assert torch.equal(exact, again)
    assert 1e-4 < ((rounded - exact).norm() / exact.norm()).item() < 0.2


def error_of(student: CsgModel, teacher: CsgModel, folder: Path) -> float:
    """Relative error of the student's rounded velocity to the teacher's exact one, for draws it was not tuned on."""
    sets = read_training_sets([folder], teacher.schema, split="train", size=SIZE)
    batch = tensors(BatchSource(sets, [1.0], batch=8, dropout=0.0, seed=9).draw(0), CPU)
    noise = torch.randn(student.latent_shape(8), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        wanted = teacher.velocity(teacher.conditions(batch.mask, batch.context))(noise, 1.0)
        made = int8_velocity(student.network, noise, 1.0, student.conditions(batch.mask, batch.context))
    return ((made - wanted).norm() / wanted.norm()).item()


def test_tuning_lowers_the_error_of_rounding(
    student: CsgModel, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_tuning, "LEVELS", 7)  # four bits: an error that a short run can be seen to lower
    student.save(tmp_path / "before")
    before = CsgModel.load(tmp_path / "before").eval()
    loop = replace(LOOP, iterations=100, batch=4, learning_rate=1e-3, ema=0.9, decay=0.5)
    assert tune_int8(CsgModel.load(tmp_path / "before"), [phantom_set], loop, out=tmp_path, device=CPU)
    after = CsgModel.load(tmp_path / "student").eval()
    assert error_of(after, before, phantom_set) < 0.85 * error_of(before, before, phantom_set)
    assert after.steps == (1, 2)


def test_a_run_that_was_stopped_is_the_same(student: CsgModel, phantom_set: Path, tmp_path: Path) -> None:
    student.save(tmp_path / "before")

    def run(out: Path, iterations: int) -> bool:
        loop = replace(LOOP, iterations=iterations)
        return tune_int8(CsgModel.load(tmp_path / "before"), [phantom_set], loop, out=out, device=CPU)

    assert run(tmp_path / "through", 4)
    assert run(tmp_path / "resumed", 2)
    assert run(tmp_path / "resumed", 4)
    for name in ("checkpoint.safetensors", f"student/{WEIGHTS}"):
        assert (tmp_path / "through" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()
    student.network.head.bias.data.add_(1.0)
    with pytest.raises(TrainingError, match="other start"):
        tune_int8(student, [phantom_set], LOOP, out=tmp_path / "resumed", device=CPU)


def test_a_teacher_is_refused(student: CsgModel, phantom_set: Path, tmp_path: Path) -> None:
    student.role = "teacher"
    with pytest.raises(TrainingError, match="csg-edge distill"):
        int8_tuning.tune_int8(student, [phantom_set], LOOP, out=tmp_path / "out", device=CPU)
    assert not (tmp_path / "out").exists()
