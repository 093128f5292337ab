"""Teachers that others made: what they sample is what their makers would, and what does not fit is said in one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_teacher import (
    CLASSES,
    GREYS,
    SIZE,
    change_json,
    write_bridge_teacher,
    write_epsilon_teacher,
    write_json,
    write_kl_autoencoder,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from csg_edge.cli.main import main
from csg_edge.datasets.phantom import write_phantoms
from csg_edge.errors import CsgEdgeError, InputError, TrainingError
from csg_edge.labels import MSK_SCHEMA, NO_MASK
from csg_edge.noise import noise_for
from csg_edge.quality.cases import plan_cases, read_real
from csg_edge.training import trajectories
from csg_edge.training.bridge import PREDICTIONS, BrownianBridge
from csg_edge.training.diffusers_files import MODULES, make_scheduler
from csg_edge.training.diffusers_teacher import BRIDGE, FLOW, SCHEDULES, DiffusersProcess, DiffusersTeacher
from csg_edge.training.model import CsgModel
from csg_edge.training.reference import TeacherReference
from csg_edge.training.student import start_student
from csg_edge.training.teacher_format import SAMPLERS, TeacherFormat
from csg_edge.training.teachers import folder_digest, load_teacher
from csg_edge.training.trajectories import Trajectories, TrajectoryConfig, make_trajectories

WEIGHTS = "diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def epsilon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_epsilon_teacher(tmp_path_factory.mktemp("teachers") / "epsilon")


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bridge_teacher(tmp_path_factory.mktemp("teachers") / "bridge")


@pytest.fixture
def copy(epsilon: Path, tmp_path: Path) -> Path:
    """The epsilon teacher, for damaging."""
    return Path(shutil.copytree(epsilon, tmp_path / "teacher"))


@pytest.fixture
def bridge_copy(bridge: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bridge, tmp_path / "bridge"))


def conditions(count: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, len(CLASSES), (count, 8, 8), generator=generator, dtype=torch.uint8)
    context = torch.randint(0, 256, (count, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return mask.repeat_interleave(SIZE // 8, 1).repeat_interleave(SIZE // 8, 2), context


def noises(teacher: Any, seed: int = 0, count: int = 2) -> Tensor:
    return torch.randn(teacher.latent_shape(count), generator=torch.Generator().manual_seed(seed))


def make(teacher: Any, mask: Tensor, context: Tensor, noise: Tensor, *, guidance: float = 1.0) -> Tensor:
    with torch.no_grad():
        return teacher.integrate(mask, context, noise, guidance=guidance)


class TestDiffusion:
    @pytest.mark.parametrize("sampler", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
    @pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
    def test_the_three_predictions_of_one_denoiser_give_one_sample(self, sampler: str, schedule: str) -> None:
        base = {"beta_schedule": schedule, "clip_sample": False}
        alphas = make_scheduler({"_class_name": "DDPMScheduler", **base}, "DDPMScheduler").alphas_cumprod

        def denoise(latent: Tensor, timestep: Tensor) -> Tensor:  # any function serves
            return torch.tanh(latent.roll(1, dims=3)) * (1.0 - timestep / 2000.0)

        def prediction(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
            def predict(latent: Tensor, timestep: Tensor) -> Tensor:
                signal, noise = alphas[timestep].sqrt(), (1.0 - alphas[timestep]).sqrt()
                clean = denoise(latent, timestep)
                epsilon = (latent - signal * clean) / noise
                return {"sample": clean, "epsilon": epsilon, "v_prediction": signal * epsilon - noise * clean}[kind]

            return predict

        noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        samples = {}
        for kind in ("sample", "epsilon", "v_prediction"):
            process = DiffusersProcess(make_scheduler({**base, "prediction_type": kind}, sampler))
            samples[kind] = process.sample(prediction(kind), noise, start=None, steps=8)
        for kind in ("epsilon", "v_prediction"):
            torch.testing.assert_close(samples[kind], samples["sample"], atol=2e-3, rtol=2e-3)
        assert samples["sample"].std() > 0.1

    @pytest.mark.parametrize("clip", [True, False])
    def test_ddim_is_the_loop_of_diffusers_own_pipeline(self, copy: Path, clip: bool) -> None:
        from diffusers import DDIMPipeline, DDPMScheduler, UNet2DModel

        torch.manual_seed(3)
        unet = UNet2DModel(sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=8,
                           block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
                           up_block_types=("UpBlock2D",) * 2).eval()  # fmt: skip
        shutil.rmtree(copy / "unet")
        unet.save_pretrained(copy / "unet")
        DDPMScheduler(clip_sample=clip, beta_schedule="squaredcos_cap_v2").save_pretrained(copy / "scheduler")
        change_json(copy / "csg.json", mask={"channels": "none"}, context={"channels": "none"}, sampler={"steps": 5})
        teacher = load_teacher(copy)
        pipeline = DDIMPipeline(unet, DDPMScheduler.from_pretrained(copy / "scheduler"))
        pipeline.scheduler.register_to_config(clip_sample=clip)
        pipeline.set_progress_bar_config(disable=True)
        expected = pipeline(2, torch.Generator().manual_seed(7), num_inference_steps=5, output_type="np").images
        ours = make(teacher, *conditions(), noises(teacher, seed=7))
        shown = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        torch.testing.assert_close(shown, torch.from_numpy(expected), atol=1e-5, rtol=0)
        assert shown.std() > 0.1

    @pytest.mark.parametrize("shift", [1.0, 3.0])
    def test_a_straight_flow_is_followed_to_its_end(self, shift: float) -> None:
        clean, noise = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
        process = DiffusersProcess(make_scheduler({"shift": shift}, "FlowMatchEulerDiscreteScheduler"))
        for steps in (1, 5):
            torch.testing.assert_close(
                process.sample(lambda z, t: noise - clean, noise, start=None, steps=steps), clean, atol=1e-5, rtol=0
            )


class TestBridge:
    def test_marginals_lie_at_the_image_and_at_the_condition(self) -> None:
        clean, end, noise = torch.randn(3, 1, 2, 4, 4).unbind()
        bridge = BrownianBridge.from_json({"m_min": 0.0, "m_max": 1.0, "max_variance": 2.0, "num_train_timesteps": 5})
        torch.testing.assert_close(bridge.diffuse(clean, end, noise, 0), clean)
        torch.testing.assert_close(bridge.diffuse(clean, end, noise, 4), end)
        assert bridge.variance(2) == pytest.approx(1.0)  # s / 2, halfway, the largest
        paper = BrownianBridge.from_json({})
        assert (paper.weight(0), paper.weight(999)) == (0.001, 1.0)

    @pytest.mark.parametrize("kind", PREDICTIONS)
    def test_every_prediction_tells_the_image_again(self, kind: str) -> None:
        clean, end, noise = torch.randn(3, 1, 2, 4, 4).unbind()
        bridge = BrownianBridge(prediction=kind, m_max=0.999)
        for index in (0, 300, 999):
            latent = bridge.diffuse(clean, end, noise, index)
            target = bridge.target(clean, end, noise, index)
            torch.testing.assert_close(bridge.clean(target, latent, end, index), clean, atol=2e-3, rtol=0)

    @pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
    def test_it_samples_the_distribution_of_a_perfect_denoiser(self, eta: float) -> None:
        """Pixels N(0.3, 0.5^2), for which the best estimate is known."""
        bridge, mean, variance = BrownianBridge(eta=eta, m_max=0.999), 0.3, 0.25
        end = torch.full((1, 1, 96, 96), -1.0)

        def predict(latent: Tensor, timestep: Tensor) -> Tensor:
            weight, noise = bridge.weight(int(timestep)), bridge.variance(int(timestep))
            expected = (1 - weight) * mean + weight * end
            gain = (1 - weight) * variance / ((1 - weight) ** 2 * variance + noise)
            return latent - (mean + gain * (latent - expected))

        noise = torch.randn(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
        made = bridge.sample(predict, noise, start=end, steps=500)
        assert made.mean().item() == pytest.approx(mean, abs=0.03)
        assert made.std().item() == pytest.approx(variance**0.5, rel=0.05)

    @pytest.mark.parametrize("eta", [0.0, 1.0])
    def test_two_noises_give_two_images_and_one_noise_one(self, bridge_copy: Path, eta: float) -> None:
        change_json(bridge_copy / "scheduler" / "scheduler_config.json", eta=eta)
        teacher = load_teacher(bridge_copy)
        mask, context = (item[:1].expand(2, -1, -1) for item in conditions())
        noise = noises(teacher)
        made = make(teacher, mask, context, noise)
        assert torch.equal(made, make(teacher, mask, context, noise))
        assert (made[0] - made[1]).abs().mean() > 0.02
        torch.testing.assert_close(make(teacher, mask[:1], context[:1], noise[1:]), made[1:], atol=1e-4, rtol=1e-4)

    def test_it_starts_at_the_painted_mask(self, bridge_copy: Path) -> None:
        teacher = load_teacher(bridge_copy)
        mask, context = conditions()
        painted = torch.stack([torch.tensor(GREYS), 255 - torch.tensor(GREYS), torch.full((10,), 128)], dim=1)
        unit = painted[mask.long()].permute(0, 3, 1, 2) / 127.5 - 1.0
        with torch.no_grad():
            expected = teacher.autoencoder.module.encode(unit).latents
            torch.testing.assert_close(teacher._enter(mask, context).start, expected)


class TestConditions:
    def test_mask_context_and_noise_all_matter(self, epsilon: Path) -> None:
        teacher = load_teacher(epsilon)
        mask, context = conditions()
        noise = noises(teacher)
        base = make(teacher, mask, context, noise)
        assert base.shape == teacher.latent_shape(2) == (2, 3, 16, 16)
        others = [
            make(teacher, 9 - mask, context, noise),
            make(teacher, mask, 255 - context, noise),
            make(teacher, torch.full_like(mask, NO_MASK), context, noise),
            make(teacher, mask, torch.zeros_like(context), noise),
            make(teacher, mask, context, noise + 0.1),
        ]
        for other in others:
            assert (other - base).abs().mean() > 1e-3 * base.abs().mean()

    def test_guidance_leads_away_from_no_conditions(self, epsilon: Path) -> None:
        teacher = load_teacher(epsilon, steps=1)
        mask, context = conditions()
        noise = noises(teacher)
        given = make(teacher, mask, context, noise)
        free = make(teacher, torch.full_like(mask, NO_MASK), torch.zeros_like(context), noise)
        guided = make(teacher, mask, context, noise, guidance=3.0)
        torch.testing.assert_close(guided, free + 3.0 * (given - free), atol=2e-3, rtol=1e-3)

    def test_without_dropped_conditions_there_is_no_guidance_and_nothing_is_dropped(
        self, bridge: Path, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        teacher = load_teacher(bridge, steps=2)
        with pytest.raises(TrainingError, match=r"--guidance 2.0: .* give 1"):
            make(teacher, *conditions(), noises(teacher), guidance=2.0)
        monkeypatch.setattr(trajectories, "SHARD", 8)
        guided = TrajectoryConfig((phantom_set,), trajectories=16, guidance=2.0)
        with pytest.raises(TrainingError, match=r"--guidance 2.0: .* give 1"):
            make_trajectories(teacher, guided, tmp_path / "guided", device=CPU, precision="fp32")
        assert not (tmp_path / "guided").exists()
        config = TrajectoryConfig((phantom_set,), trajectories=16)
        make_trajectories(teacher, config, tmp_path, device=CPU, precision="fp32")
        stored = Trajectories(tmp_path, 16)
        rows = stored.read(range(16))
        assert (rows.mask != NO_MASK).flatten(1).any(1).all() and rows.context.flatten(1).any(1).all()

    def test_the_order_of_channels_is_the_folders(self, copy: Path) -> None:
        teacher = load_teacher(copy)
        change_json(copy / "csg.json", channel_order=["mask", "context", "latent"])
        other = load_teacher(copy)
        convolution = other.unet.conv_in.weight  # (32, 13, 3, 3): make it expect mask, latent
        convolution.data = torch.cat([convolution[:, 3:], convolution[:, :3]], dim=1)
        inputs = (*conditions(), noises(teacher))
        torch.testing.assert_close(make(other, *inputs), make(teacher, *inputs), atol=1e-3, rtol=1e-3)

    def test_the_fingerprint_covers_weights_steps_and_schedule(self, copy: Path) -> None:
        prints = {load_teacher(copy).fingerprint(), load_teacher(copy, steps=7).fingerprint()}
        change_json(copy / "scheduler" / "scheduler_config.json", beta_end=0.01)
        prints.add(load_teacher(copy).fingerprint())
        path = copy / "context_encoder" / "model.safetensors"
        save_file({name: value + 1 for name, value in load_file(path).items()}, path)
        prints.add(load_teacher(copy).fingerprint())
        assert len(prints) == 4

    def test_weights_in_shards_are_read(self, copy: Path) -> None:
        whole = load_teacher(copy)
        (copy / "unet" / WEIGHTS).unlink()
        whole.unet.save_pretrained(copy / "unet", max_shard_size="100KB")
        assert (copy / "unet" / f"{WEIGHTS}.index.json").is_file()
        assert load_teacher(copy).fingerprint() == whole.fingerprint()


class TestStudent:
    def test_a_new_student_fits_the_teachers_latents(
        self, epsilon: Path, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trajectories, "SHARD", 2)
        teacher = load_teacher(epsilon)
        config = TrajectoryConfig((phantom_set,), trajectories=2)
        make_trajectories(teacher, config, tmp_path / "t", device=CPU, precision="fp32")
        stored = Trajectories(tmp_path / "t", 2)
        student, deviation = start_student(teacher, stored, seed=4)
        clean = stored.sample(2)[0]
        assert (clean / deviation).std().item() == pytest.approx(1.0)
        with torch.no_grad():
            levels = teacher.autoencoder.decode(clean).int() - student.autoencoder.decode(clean / deviation)
        assert deviation > 2 and levels.abs().max() <= 1
        assert student.latent_shape(1) == teacher.latent_shape(1)
        assert student.context_transform.patch == 4  # whatever the latents are
        student.save(tmp_path / "student")
        loaded = CsgModel.load(tmp_path / "student").eval()
        mask, context = conditions()
        with torch.no_grad():
            first, second = (model.conditions(mask, context) for model in (student.eval(), loaded))
            latent = noises(teacher)
            # fp16 weights of the decoder
            assert (student.autoencoder.decode(latent).int() - loaded.autoencoder.decode(latent)).abs().max() <= 1
        assert first.stem.shape == (2, 64, 16, 16)
        torch.testing.assert_close(first.style, second.style, atol=2e-3, rtol=2e-3)
        with pytest.raises(TrainingError, match="trajectories of another teacher"):
            make_trajectories(load_teacher(epsilon, steps=2), config, tmp_path / "t", device=CPU, precision="fp32")


class TestDocument:
    """docs/teacher-format.md is what a user writes a folder by."""

    text = (Path(__file__).parents[1] / "docs" / "teacher-format.md").read_text(encoding="utf-8")

    def test_its_examples_are_read(self) -> None:
        found = [
            json.loads(block) for block in re.findall(r"\n\n((?:    .*\n)+)", self.text) if block.startswith("    {")
        ]
        formats = [TeacherFormat.from_json(item) for item in found if "format" in item]
        bridges = [BrownianBridge.from_json(item) for item in found if item.get("_class_name") == "BrownianBridge"]
        assert formats and bridges
        assert formats[0].droppable and formats[0].steps == 50
        assert bridges[0] == BrownianBridge()

    def test_it_names_every_class_that_is_read(self) -> None:
        for name in (*MODULES, *SCHEDULES, FLOW, BRIDGE, *SAMPLERS, *PREDICTIONS):
            assert f"`{name}`" in self.text, name


def test_a_validation_samples_any_teacher(epsilon: Path, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "set", count=15, seed=1, size=SIZE)
    real = read_real([tmp_path / "set"], MSK_SCHEMA, size=SIZE, split="train")
    cases = plan_cases(real.held_out, count=2, seed=0)
    made = TeacherReference(epsilon).make(cases)
    teacher = load_teacher(epsilon)
    noise = torch.from_numpy(np.stack([noise_for(seed, (3, 16, 16)) for seed in cases.seeds]))
    mask, context = torch.from_numpy(cases.wanted.masks), torch.from_numpy(cases.contexts.images)
    with torch.no_grad():
        expected = teacher.autoencoder.decode(make(teacher, mask, context, noise)).numpy()
    assert np.abs(made.images.astype(int) - expected).mean() < 6  # bf16 where the processor has it
    assert expected.std() > 20


Damage = Callable[[Path], object]


def rewrite_weights(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


BAD: dict[str, tuple[Damage, str]] = {
    "no csg.json and no model of ours": (
        lambda f: (f / "csg.json").unlink(), "no teacher; give a folder of `csg-edge train`"),
    "a pipeline without csg.json": (
        lambda f: ((f / "csg.json").unlink(), write_json(f / "model_index.json", {"_class_name": "MyPipeline"})),
        "'MyPipeline', and no csg.json"),
    "missing key": (lambda f: change_json(f / "csg.json", mask=None), "csg.json: no 'mask'"),
    "unknown key": (lambda f: change_json(f / "csg.json", steps=3), "csg.json: unknown key 'steps'"),
    "unknown value": (
        lambda f: change_json(f / "csg.json", mask={"channels": "onehot"}), "'onehot'; choose among one_hot"),
    "wrong format": (lambda f: change_json(f / "csg.json", format=2), "format 2; this csg-edge reads 1"),
    "not JSON": (lambda f: (f / "csg.json").write_text("{"), "csg.json: not JSON"),
    "channels that do not add up": (
        lambda f: change_json(f / "csg.json", context={"channels": "latents", "tokens": "latents"}),
        "in_channels is 13, but .* 3 latent \\+ 10 mask classes \\+ 3 context latents = 16"),
    "other classes": (
        lambda f: write_json(f / "label_schema.json", {"names": ["background", "nerve"]}),
        "3 latent \\+ 2 mask classes = 5"),
    "tokens to a UNet that wants them, left out": (
        lambda f: change_json(f / "csg.json", context={"channels": "none"}), "tokens is none, but the UNet has"),
    "unknown UNet": (lambda f: change_json(f / "unet" / "config.json", _class_name="UNet3D"), "class 'UNet3D'"),
    "unknown autoencoder": (
        lambda f: change_json(f / "vae" / "config.json", _class_name="AutoencoderTiny"), "class 'AutoencoderTiny'"),
    "unknown scheduler": (
        lambda f: change_json(f / "scheduler" / "scheduler_config.json", _class_name="os.system"),
        "class 'os.system' is unknown; give one of DDPMScheduler"),
    "unknown prediction": (
        lambda f: change_json(f / "scheduler" / "scheduler_config.json", prediction_type="score"), "'score'"),
    "unknown noise schedule": (
        lambda f: change_json(f / "scheduler" / "scheduler_config.json", beta_schedule="magic"),
        "scheduler_config.json: not a usable DDPMScheduler"),
    "image size that does not divide": (lambda f: change_json(f / "csg.json", image_size=72), "give a multiple of 32"),
    "latents that do not fit the tokens": (
        lambda f: change_json(f / "csg.json", image_size=96), "position is \\(16, 24\\), there are 36 tokens of 24"),
    "too many steps": (lambda f: change_json(f / "csg.json", sampler={"steps": 2000}), "1000 timesteps; give fewer"),
    "no autoencoder": (lambda f: shutil.rmtree(f / "vae"), "no autoencoder; give exactly one of vae"),
    "missing weights": (
        lambda f: rewrite_weights(f / "unet" / WEIGHTS, lambda w: w.pop("conv_in.bias")),
        "1 weights are missing, conv_in.bias first"),
    "unexpected weights": (
        lambda f: rewrite_weights(f / "unet" / WEIGHTS, lambda w: w.update(more=torch.zeros(1))),
        "1 weights are unexpected, more first"),
    "weights of another shape": (
        lambda f: change_json(f / "unet" / "config.json", block_out_channels=[64, 32]), "not a readable UNet2DCond"),
    "truncated weights": (
        lambda f: (f / "unet" / WEIGHTS).write_bytes((f / "unet" / WEIGHTS).read_bytes()[:-9]), "not a readable UNet"),
    "a pickle": (
        lambda f: (f / "unet" / WEIGHTS).rename(f / "unet" / "diffusion_pytorch_model.bin"),
        "a pickle, which may run any code .*save_file\\(torch.load"),
    "an autoencoder of other latents": (
        lambda f: write_kl_autoencoder(f / "vae", latent_channels=4), "3 channels out, the autoencoder has 4 latent"),
    "an autoencoder of another size": (
        lambda f: write_kl_autoencoder(f / "vae", levels=6), "multiple of 128, .* latents of 1/32 size"),
    "an autoencoder of colours and depth": (
        lambda f: write_kl_autoencoder(f / "vae", image_channels=4), "4 channels in .* 1 or 3 image channels"),
    "class labels": (
        lambda f: change_json(f / "unet" / "config.json", class_embed_type="identity"), "class_embed_type is"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_said_in_one_line(copy: Path, name: str) -> None:
    damage, message = BAD[name]
    damage(copy)
    with pytest.raises(TrainingError, match=message) as caught:
        load_teacher(copy)
    assert "\n" not in str(caught.value)


def test_a_bridge_without_its_needs(bridge_copy: Path) -> None:
    csg = json.loads((bridge_copy / "csg.json").read_text())
    scheduler = bridge_copy / "scheduler" / "scheduler_config.json"
    for changes, message in (
        ({"mask": {"channels": "none"}}, "no palette; the mask becomes an image"),
        ({"mask": {"channels": "none", "palette": GREYS[:4]}}, "palette has 4 colours, label_schema.json 10 classes"),
        ({"mask": {"channels": "none", "palette": [300] * 10}}, "0..255"),
        ({"sampler": {"steps": 1}}, "2 sampling steps or more"),
    ):
        write_json(bridge_copy / "csg.json", {**csg, **changes})
        with pytest.raises(TrainingError, match=message):
            load_teacher(bridge_copy)
    write_json(bridge_copy / "csg.json", csg)
    for changes, message in (
        ({"prediction_type": "epsilon"}, "a bridge has grad, noise, ysubx"),
        ({"prediction_type": "noise"}, "give m_max < 1"),
        ({"m_min": 0.9, "m_max": 0.1}, "m_min < m_max"),
        ({"variance": 1.0}, "knows no 'variance'"),
    ):
        write_json(scheduler, {"_class_name": "BrownianBridge", **changes})
        with pytest.raises(TrainingError, match=message):
            load_teacher(bridge_copy)


def test_steps_are_for_teachers_of_others(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(InputError, match=r"--teacher-steps 3: .* leave out"):
        load_teacher(Path(__file__).parents[1] / "export" / "msk-256.teacher", steps=3)
    with pytest.raises(CsgEdgeError, match="--teacher-steps 0"):
        load_teacher(copy, steps=0)
    with pytest.raises(TrainingError, match="no model weights"):
        folder_digest(tmp_path / "nowhere")


def test_the_command_line_refuses_and_leaves_nothing(
    copy: Path, phantom_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_json(copy / "csg.json", mask={"channels": "latents", "palette": GREYS})
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main.main(["distill", str(copy), "--data", str(phantom_set), "--out", str(out)], prog_name="csg-edge")
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert "3 latent + 3 mask latents = 6" in line and line.count("\n") == 1
    assert not out.exists()


def test_a_teacher_that_gives_no_numbers_stops(
    copy: Path, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trajectories, "SHARD", 2)
    teacher = load_teacher(copy, steps=1)
    assert isinstance(teacher, DiffusersTeacher)
    teacher.unet.conv_out.bias.data.fill_(float("nan"))
    config = TrajectoryConfig((phantom_set,), trajectories=2)
    with pytest.raises(TrainingError, match="not finite"):
        make_trajectories(teacher, config, tmp_path / "t", device=CPU, precision="fp32")
    assert not list((tmp_path / "t").glob("shard*"))
