"""Teacher and student training on tiny networks: the mathematics, the data, and that nothing is lost when stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import SIZE, TINY, tiny_model
from torch import Tensor

from csg_edge.bundle.golden import read_case
from csg_edge.bundle.manifest import find_bundle, read_bundle
from csg_edge.conditions.fibres import nothing_given
from csg_edge.datasets.batches import BatchSource, read_training_sets
from csg_edge.errors import TrainingError
from csg_edge.export.graph import FewStepGraph
from csg_edge.labels import MSK_SCHEMA, NO_MASK
from csg_edge.noise import noise_for
from csg_edge.training import loop, trajectories
from csg_edge.training.block_dct import BlockDct, BlockDctConfig, dct_matrix
from csg_edge.training.device import tensors
from csg_edge.training.distil import distil
from csg_edge.training.loop import LoopConfig
from csg_edge.training.model import WEIGHTS, CsgModel
from csg_edge.training.process import euler, multistep, teacher_timesteps, training_timesteps
from csg_edge.training.student import start_student
from csg_edge.training.teacher import TeacherConfig, train
from csg_edge.training.trajectories import Trajectories, TrajectoryConfig, make_trajectories

CPU = torch.device("cpu")
LOOP = LoopConfig(iterations=6, batch=2, warmup=2)


@pytest.fixture(scope="module")
def source(phantom_set: Path) -> BatchSource:
    sets = read_training_sets([phantom_set], MSK_SCHEMA, split="train", size=SIZE)
    return BatchSource(sets, [1.0], batch=4, dropout=0.3, seed=3)


@pytest.fixture
def teacher(source: BatchSource) -> CsgModel:
    return tiny_model("teacher", deviation=0.1, images=source.draw(0).image)


class TestAutoencoder:
    def test_matrix_is_orthonormal(self) -> None:
        matrix = dct_matrix(4)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(16), atol=1e-6, rtol=0)

    def test_lossless_and_of_unit_variance(self, source: BatchSource) -> None:
        image = tensors(source.draw(1), CPU).image
        autoencoder = BlockDct(BlockDctConfig.fit(image.numpy()))
        latent = autoencoder.encode(image)
        assert latent.shape == (4, 16, SIZE // 4, SIZE // 4)
        assert torch.equal(autoencoder.decode(latent), image)
        assert latent.square().mean().item() == pytest.approx(1.0, abs=0.01)
        assert latent.mean(dim=(0, 2, 3)).abs().max().item() < 1e-3


class TestProcess:
    def test_one_euler_step_follows_a_straight_flow_to_its_end(self) -> None:
        clean, noise = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 4)
        torch.testing.assert_close(euler(lambda z, t: noise - clean, noise, (1.0, 0.0)), clean)

    def test_multistep_is_of_second_order_at_one_evaluation_a_step(self) -> None:
        """dz/dt = z from t = 1 to 0 shrinks by exp(-1), on uneven steps; half the step, a quarter of the error."""
        start = torch.ones(1, 1, 1, 1, dtype=torch.float64)

        def error(count: int) -> float:
            calls = []
            found = multistep(lambda z, t: calls.append(t) or z, start, teacher_timesteps(count))
            assert calls == list(teacher_timesteps(count)[:-1])
            return abs(found.item() - np.exp(-1.0))

        assert error(32) / error(64) == pytest.approx(4.0, rel=0.15)

    def test_timesteps_of_the_teacher_fall_from_noise_to_data(self) -> None:
        for steps in (1, 2, 11, 50):
            timesteps = teacher_timesteps(steps)
            assert len(timesteps) == steps + 1
            assert timesteps[0] == pytest.approx(1.0) and timesteps[-1] == 0.0
            assert all(later < earlier for earlier, later in pairwise(timesteps))

    def test_timesteps_cover_noise_and_data(self) -> None:
        drawn = training_timesteps(10_000, torch.Generator().manual_seed(0))
        assert 0.0 < drawn.min() < 0.05
        assert 0.95 < drawn.max() <= 1.0


class TestData:
    def test_a_batch_depends_on_seed_and_index_alone(self, source: BatchSource) -> None:
        streamed = dict(source.stream(2, 5))
        for index, batch in streamed.items():
            assert all(np.array_equal(one, other) for one, other in zip(batch, source.draw(index), strict=True))
        assert not np.array_equal(streamed[2].image, streamed[3].image)

    def test_masks_stay_label_maps_and_conditions_are_dropped(self, source: BatchSource) -> None:
        batches = [source.draw(index) for index in range(30)]
        masks = np.concatenate([batch.mask.reshape(len(batch.mask), -1) for batch in batches])
        contexts = np.concatenate([batch.context.reshape(len(batch.context), -1) for batch in batches])
        dropped = (masks == NO_MASK).all(axis=1)
        assert ((masks == NO_MASK).any(axis=1) == dropped).all()
        assert masks[~dropped].max() < len(MSK_SCHEMA)
        assert 0.15 < dropped.mean() < 0.45
        assert 0.15 < (contexts == 0).all(axis=1).mean() < 0.45

    def test_one_group_cannot_give_contexts(self, source: BatchSource) -> None:
        data = source.sets[0]
        alone = replace(data, groups=("one",) * len(data))
        with pytest.raises(TrainingError, match="another group"):
            BatchSource([alone], [1.0], batch=1, dropout=0.0, seed=0)

    def test_without_contexts_one_group_is_enough(self, source: BatchSource) -> None:
        data = source.sets[0]
        alone = replace(data, groups=("one",) * len(data))
        without = BatchSource([alone], [1.0], batch=4, dropout=0.0, seed=3, contexts=False)
        streamed = dict(without.stream(1, 3))
        for index, batch in streamed.items():
            assert batch.context.shape == batch.image.shape and not batch.context.any()
            assert batch.mask.max() < len(MSK_SCHEMA) and batch.image.any()
            assert all(np.array_equal(one, other) for one, other in zip(batch, without.draw(index), strict=True))


class TestNetwork:
    def test_conditions_matter_and_can_be_dropped(self, teacher: CsgModel, source: BatchSource) -> None:
        batch = tensors(source.draw(4), CPU)
        mask, context = batch.mask[:1].clamp(max=9), torch.full_like(batch.context[:1], 90)
        noise = torch.randn(teacher.latent_shape(1))

        def velocity(mask: Tensor, context: Tensor) -> Tensor:
            with torch.no_grad():
                return teacher.velocity(teacher.conditions(mask, context))(noise, 0.7)

        base = velocity(mask, context)
        none = torch.zeros_like(context)
        for other in (velocity(9 - mask, context), velocity(mask, 2 * context), velocity(mask, none)):
            assert (other - base).abs().mean() > 1e-3

    def test_guidance_one_is_the_plain_model_and_acts_near_noise_only(
        self, teacher: CsgModel, source: BatchSource
    ) -> None:
        batch = tensors(source.draw(5), CPU)
        noise = torch.randn(teacher.latent_shape(4))
        with torch.no_grad():
            plain = teacher.guided_velocity(batch.mask, batch.context, guidance=1.0)
            strong = teacher.guided_velocity(batch.mask, batch.context, guidance=3.0)
            assert not torch.allclose(plain(noise, 0.9), strong(noise, 0.9))
            torch.testing.assert_close(plain(noise, 0.2), strong(noise, 0.2))


class TestModelFolder:
    def test_round_trip_in_fp16(self, teacher: CsgModel, tmp_path: Path) -> None:
        teacher.save(tmp_path / "teacher")
        loaded = CsgModel.load(tmp_path / "teacher")
        assert (loaded.role, loaded.image_size, loaded.schema) == ("teacher", SIZE, MSK_SCHEMA)
        for name, value in teacher.network.state_dict().items():
            torch.testing.assert_close(loaded.network.state_dict()[name], value.half().float(), atol=0, rtol=0)

    def test_the_shipped_student_still_makes_its_golden_images(self) -> None:
        bundle = read_bundle(find_bundle("msk-256"))
        student = CsgModel.load(Path(__file__).parents[1] / "export" / "msk-256.student").eval()
        case = bundle.manifest.golden[0]
        mask, context, expected, given, *_ = read_case(bundle, case, 1)
        inputs = [mask, context, noise_for(case.seed, student.latent_shape(1)[1:])]
        if student.prior is not None:
            inputs.append(nothing_given() if given is None else given)
        with torch.no_grad():
            made = FewStepGraph(student, 1)(*(torch.from_numpy(item[None]) for item in inputs))
        image = (made[0] if student.prior is not None else made)[0]
        assert (np.abs(image.numpy().astype(int) - expected) <= 1).mean() >= 0.999

    def test_damage_is_named(self, teacher: CsgModel, tmp_path: Path) -> None:
        teacher.save(tmp_path / "teacher")
        weights = tmp_path / "teacher" / WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(TrainingError, match="diffusion_pytorch_model"):
            CsgModel.load(tmp_path / "teacher")
        with pytest.raises(TrainingError, match="missing"):
            CsgModel.load(tmp_path / "nowhere")


def stop_at(iteration: int) -> Callable[[Callable[[int], Tensor]], Callable[[int], Tensor]]:
    """Wrap a loss so that SIGTERM arrives while it is computed."""

    def wrap(loss: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        def stopping(index: int) -> Tensor:
            if index == iteration:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss(index)

        return stopping

    return wrap


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Make the next training runs be stopped at an iteration, or run through again with None."""
    original = loop.fit

    def choose(iteration: int | None) -> None:
        def fit(state: loop.TrainingState, loss: Callable[[int], Tensor], *rest: object, **options: object) -> bool:
            return original(state, stop_at(iteration)(loss) if iteration is not None else loss, *rest, **options)

        monkeypatch.setattr("csg_edge.training.loop.fit", fit)
        monkeypatch.setattr("csg_edge.training.distil.fit", fit)

    return choose


def same_file(first: Path, second: Path) -> bool:
    return first.read_bytes() == second.read_bytes()


class TestResume:
    def test_interrupted_teacher_equals_uninterrupted(
        self, phantom_set: Path, tmp_path: Path, interrupt: Callable[[int | None], None]
    ) -> None:
        config = TeacherConfig((phantom_set,), image_size=SIZE, network=TINY)
        assert train(config, LOOP, out=tmp_path / "through", device=CPU)
        interrupt(2)
        assert not train(config, LOOP, out=tmp_path / "resumed", device=CPU)
        interrupt(None)
        assert train(config, LOOP, out=tmp_path / "resumed", device=CPU)
        for name in ("checkpoint.safetensors", f"teacher/{WEIGHTS}", "losses.csv"):
            assert same_file(tmp_path / "through" / name, tmp_path / "resumed" / name), name

    def test_interrupted_student_equals_uninterrupted(
        self, teacher: CsgModel, phantom_set: Path, tmp_path: Path, interrupt: Callable[[int | None], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(trajectories, "SHARD", 2)
        teacher.save(tmp_path / "teacher")
        config = TrajectoryConfig((phantom_set,), trajectories=4, guidance=2.0)

        def run(out: Path) -> bool:
            model = CsgModel.load(tmp_path / "teacher")
            make_trajectories(model, config, out / "trajectories", device=CPU, precision="fp32")
            stored = Trajectories(out / "trajectories", config.trajectories)
            return distil(start_student(model, stored, seed=0)[0], stored, LOOP, out=out, device=CPU)

        assert run(tmp_path / "through")
        interrupt(3)
        assert not run(tmp_path / "resumed")
        trajectories.shard_path(tmp_path / "resumed" / "trajectories", 1).unlink()  # as if killed while making it
        interrupt(None)
        assert run(tmp_path / "resumed")
        for name in ("trajectories/shard-00001.safetensors", "checkpoint.safetensors", f"student/{WEIGHTS}"):
            assert same_file(tmp_path / "through" / name, tmp_path / "resumed" / name), name

    @pytest.mark.parametrize("seed", [-1, 2**64])
    def test_a_seed_that_no_generator_takes_is_refused(self, seed: int) -> None:
        with pytest.raises(TrainingError, match=f"seed = {seed}"):
            replace(LOOP, seed=seed)
        with pytest.raises(TrainingError, match=f"seed = {seed}"):
            TrajectoryConfig((Path("sets"),), seed=seed)

    def test_trajectories_of_another_teacher_are_refused(
        self, teacher: CsgModel, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trajectories, "SHARD", 1)
        config = TrajectoryConfig((phantom_set,), trajectories=1)
        make_trajectories(teacher, config, tmp_path, device=CPU, precision="fp32")
        with pytest.raises(TrainingError, match="another guidance"):
            make_trajectories(teacher, replace(config, guidance=2.0), tmp_path, device=CPU, precision="fp32")


class TestShares:
    def test_trajectories_are_drawn_by_them(
        self, teacher: CsgModel, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: list[object] = []
        monkeypatch.setattr(trajectories, "SHARD", 1)
        through = trajectories.BatchSource
        monkeypatch.setattr(
            trajectories,
            "BatchSource",
            lambda sets, weights, **rest: drawn.append(weights) or through(sets, weights, **rest),
        )
        config = TrajectoryConfig((phantom_set,), trajectories=1, shares=((phantom_set.name, 3.0),))
        make_trajectories(teacher, config, tmp_path, device=CPU, precision="fp32")
        assert drawn == [[3.0]]
        with pytest.raises(TrainingError, match="another shares"):
            make_trajectories(teacher, replace(config, shares=((phantom_set.name, 2.0),)), tmp_path, device=CPU,
                              precision="fp32")  # fmt: skip
        with pytest.raises(TrainingError, match="share of ghost: no such set"):
            make_trajectories(
                teacher, replace(config, shares=(("ghost", 2.0),)), tmp_path, device=CPU, precision="fp32"
            )

    def test_they_stop_when_their_time_is_over(
        self, teacher: CsgModel, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trajectories, "SHARD", 1)
        config = TrajectoryConfig((phantom_set,), trajectories=50)
        assert not make_trajectories(teacher, config, tmp_path, device=CPU, precision="fp32", seconds=0.0)
        assert len(list(tmp_path.glob("shard-*"))) == 1


class TestLoop:
    def run(self, tmp_path: Path, loss: Callable[[Tensor, int], Tensor], **options: object) -> loop.TrainingState:
        network = torch.nn.Linear(2, 1)
        config = replace(LOOP, **options)
        state = loop.start(network, config)
        loop.fit(state, lambda index: loss(network.weight, index), config, directory=tmp_path, label="test")
        return state

    def test_it_optimises(self, tmp_path: Path) -> None:
        state = self.run(tmp_path, lambda weight, _: (weight - 1).square().sum(), iterations=400, learning_rate=0.05)
        torch.testing.assert_close(state.network.weight, torch.ones(1, 2), atol=0.02, rtol=0)

    def test_not_a_number_stops_and_keeps_the_last_good_checkpoint(self, tmp_path: Path) -> None:
        checkpoint = tmp_path / "checkpoint.safetensors"
        self.run(tmp_path, lambda weight, _: weight.square().sum())
        good = checkpoint.read_bytes()
        with pytest.raises(TrainingError, match="learning-rate"):
            self.run(tmp_path, lambda weight, index: weight.sum() * (float("nan") if index == 3 else 1.0))
        assert checkpoint.read_bytes() == good

    def test_full_disk_keeps_the_last_checkpoint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run(tmp_path, lambda weight, _: weight.square().sum())
        good = (tmp_path / "checkpoint.safetensors").read_bytes()

        def full(tensors: object, path: Path, metadata: object) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(loop, "save_file", full)
        with pytest.raises(TrainingError, match="disk space"):
            self.run(tmp_path, lambda weight, _: weight.square().sum())
        assert (tmp_path / "checkpoint.safetensors").read_bytes() == good
        assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"checkpoint.safetensors", "losses.csv"}

    def test_other_options_are_refused_but_a_longer_run_is_not(self, tmp_path: Path) -> None:
        state = self.run(tmp_path, lambda weight, _: weight.square().sum())
        path = tmp_path / "checkpoint.safetensors"
        loop.load_checkpoint(path, state, replace(LOOP, iterations=9))
        with pytest.raises(TrainingError, match="batch"):
            loop.load_checkpoint(path, state, replace(LOOP, batch=8))

    def test_the_learning_rate_follows_the_clock(self) -> None:
        config = replace(LOOP, minutes=10.0, warmup=1, decay=0.5, learning_rate=1.0)
        rates = [config.rate(7, 60.0 * minute) for minute in (0, 5, 7.5, 10, 11)]
        assert rates == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0], abs=1e-12)
        assert [config.over(10**9, 60.0 * minute) for minute in (9.9, 10)] == [False, True]

    def test_a_run_by_the_clock_takes_its_time_over_interruptions(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """An iteration takes 3 seconds of a clock that stands still otherwise; the run is killed after 4 of 10."""
        now = 1000.0

        class Clock:
            @staticmethod
            def monotonic() -> float:
                return now

        monkeypatch.setattr(loop, "time", Clock)
        network = torch.nn.Linear(2, 1)
        config = replace(LOOP, minutes=0.5, iterations=1)

        def loss(index: int) -> Tensor:
            nonlocal now
            now += 3.0
            if index == 3 and first:
                os.kill(os.getpid(), signal.SIGTERM)
            return network.weight.square().sum()

        first = True
        state = loop.start(network, config)
        assert not loop.fit(state, loss, config, directory=tmp_path, label="clock")
        assert (state.iteration, state.seconds) == (4, 12.0)
        first, now = False, now + 5000.0
        state = loop.start_or_resume(network, config, tmp_path)
        assert loop.fit(state, loss, config, directory=tmp_path, label="clock")
        assert (state.iteration, state.seconds) == (10, 30.0)
        assert f"clock: 10 iterations, {10 * LOOP.batch} images in 0.5 of 0.5 minutes" in capfd.readouterr().err
        # It may be made longer, but not become a run of so many iterations.
        loop.load_checkpoint(tmp_path / "checkpoint.safetensors", state, replace(config, minutes=1.0))
        with pytest.raises(TrainingError, match="of a run by the clock; end it so"):
            loop.load_checkpoint(tmp_path / "checkpoint.safetensors", state, LOOP)

    def test_losses_say_how_many_images_a_second(self, tmp_path: Path) -> None:
        self.run(tmp_path, lambda weight, _: weight.square().sum(), iterations=40)
        rows = [line.split(",") for line in (tmp_path / "losses.csv").read_text().splitlines()]
        assert rows[0] == ["iteration", "loss", "learning_rate", "images_per_second"]
        assert [row[0] for row in rows[1:]] == ["20", "40"]
        assert all(float(row[3]) > 0 for row in rows[1:])

    def test_truncated_checkpoint_is_named(self, tmp_path: Path) -> None:
        state = self.run(tmp_path, lambda weight, _: weight.square().sum())
        path = tmp_path / "checkpoint.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(TrainingError, match="unreadable"):
            loop.load_checkpoint(path, state, LOOP)
