"""Learned autoencoders behind the interface of the block DCT, and the command that trains one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from foreign_teacher import change_json, write_bridge_teacher, write_kl_autoencoder
from torch import Tensor

from csg_edge.datasets.phantom import make_phantom
from csg_edge.errors import InputError, TrainingError
from csg_edge.labels import MSK_SCHEMA
from csg_edge.training import loop
from csg_edge.training.autoencoder import image_to_unit
from csg_edge.training.autoencoders import load_autoencoder
from csg_edge.training.block_dct import BlockDct, BlockDctConfig
from csg_edge.training.fit_autoencoder import AutoencoderConfig, local_log_power, train_autoencoder
from csg_edge.training.loop import LoopConfig
from csg_edge.training.model import CsgModel
from csg_edge.training.networks import CsgUNet, NetworkConfig, fit_height

CPU = torch.device("cpu")
SIZE = 64
TINY = LoopConfig(iterations=6, batch=2, warmup=2)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.from_numpy(np.stack([make_phantom(seed, size=SIZE).image for seed in range(2)]))


class TestKl:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_latents_are_diffusers_own_scaled(self, tmp_path: Path, images: Tensor, channels: int) -> None:
        write_kl_autoencoder(tmp_path, image_channels=channels)
        change_json(tmp_path / "config.json", shift_factor=0.25)
        autoencoder = load_autoencoder(tmp_path)
        assert (autoencoder.channels, autoencoder.patch) == (3, 4)
        with torch.no_grad():
            latent = autoencoder.encode(images)
            unit = image_to_unit(images).repeat(1, channels, 1, 1)
            encoded = autoencoder.module.encode(unit).latent_dist.mode()
            torch.testing.assert_close(latent, (encoded - 0.25) * 1.5)
            grey = autoencoder.module.decode(encoded).sample.mean(dim=1)
            made = autoencoder.decode(latent)
        assert made.dtype == torch.uint8 and made.shape == images.shape
        assert (made - ((grey + 1) * 127.5).clamp(0, 255)).abs().max() <= 0.51
        assert not any(parameter.requires_grad for parameter in autoencoder.parameters())

    def test_per_channel_statistics_are_used(self, tmp_path: Path, images: Tensor) -> None:
        write_kl_autoencoder(tmp_path)
        plain = load_autoencoder(tmp_path)
        change_json(tmp_path / "config.json", latents_mean=[0.1, 0.2, 0.3], latents_std=[1.0, 2.0, 4.0])
        scaled = load_autoencoder(tmp_path)
        mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.1, 0.2, 0.3], [1.0, 2.0, 4.0]))
        with torch.no_grad():
            latent = scaled.encode(images)
            torch.testing.assert_close(latent, (plain.encode(images) / 1.5 - mean) * 1.5 / deviation)
            assert (scaled.decode(latent).int() - plain.decode(plain.encode(images))).abs().max() <= 1

    def test_saved_again_it_is_the_same_in_fp16(self, tmp_path: Path, images: Tensor) -> None:
        write_kl_autoencoder(tmp_path / "first")
        first = load_autoencoder(tmp_path / "first")
        (tmp_path / "second").mkdir()
        first.save(tmp_path / "second")
        second = load_autoencoder(tmp_path / "second")
        for name, value in first.module.state_dict().items():
            assert torch.equal(second.module.state_dict()[name], value.half().float())
        with torch.no_grad():
            torch.testing.assert_close(second.encode(images), first.encode(images), atol=5e-3, rtol=5e-3)


def test_vq_takes_the_code_that_diffusers_takes(tmp_path: Path, images: Tensor) -> None:
    autoencoder = load_autoencoder(write_bridge_teacher(tmp_path) / "vqvae")
    with torch.no_grad():
        encoded = 0.05 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        codes, _, _ = autoencoder.module.quantize(encoded)
        torch.testing.assert_close(autoencoder.quantise(encoded), codes)
        assert len(codes.permute(0, 2, 3, 1).reshape(-1, 3).unique(dim=0)) > 8
        latent = autoencoder.encode(images)
        expected = autoencoder.module.decode(latent).sample.mean(dim=1)
        assert (autoencoder.decode(latent) - ((expected + 1) * 127.5).clamp(0, 255)).abs().max() <= 0.51


@pytest.mark.parametrize(("name", "message"), [("AutoencoderTiny", "give one of BlockDct"), (None, "class 'None'")])
def test_another_class_is_refused(tmp_path: Path, name: str | None, message: str) -> None:
    write_kl_autoencoder(tmp_path)
    change_json(tmp_path / "config.json", _class_name=name)
    with pytest.raises(TrainingError, match=message):
        load_autoencoder(tmp_path)


def test_a_scale_of_nothing_is_refused(tmp_path: Path) -> None:
    write_kl_autoencoder(tmp_path)
    change_json(tmp_path / "config.json", scaling_factor=0)
    with pytest.raises(TrainingError, match="scaling_factor 0; give a number above 0"):
        load_autoencoder(tmp_path)


def test_a_block_dct_with_too_few_bands(tmp_path: Path) -> None:
    BlockDct(BlockDctConfig(2, (0.0,) * 4, (1.0,) * 4)).save(tmp_path)
    assert load_autoencoder(tmp_path).channels == 4
    change_json(tmp_path / "config.json", mean=[0.0])
    with pytest.raises(TrainingError, match="a block of 2 has 4 bands"):
        load_autoencoder(tmp_path)


class TestModel:
    @pytest.mark.parametrize("levels", [2, 3, 4])  # latents finer than the block DCT of the context, equal, coarser
    def test_context_and_latents_may_lie_on_two_grids(self, tmp_path: Path, images: Tensor, levels: int) -> None:
        write_kl_autoencoder(tmp_path / "vae", levels=levels)
        autoencoder = load_autoencoder(tmp_path / "vae")
        config = NetworkConfig(
            classes=len(MSK_SCHEMA), latent_channels=3, patch=autoencoder.patch, widths=(32, 32), blocks=(1, 1),
            embedding=32, mask_features=8, heads=2,
        )  # fmt: skip
        transform = BlockDct(BlockDctConfig.fit(images.numpy()))
        model = CsgModel(
            CsgUNet(config), autoencoder, schema=MSK_SCHEMA, image_size=SIZE, role="student",
            context_transform=transform,
        )  # fmt: skip
        model.save(tmp_path / "student")
        loaded = CsgModel.load(tmp_path / "student")
        with torch.no_grad():
            conditions = loaded.conditions(torch.zeros_like(images), images)
            assert conditions.stem.shape[2:] == (SIZE // autoencoder.patch,) * 2
            assert loaded.velocity(conditions)(torch.zeros(loaded.latent_shape(2)), 1.0).shape == loaded.latent_shape(2)
            torch.testing.assert_close(loaded.context_transform.encode(images), transform.encode(images))

    def test_a_learned_autoencoder_needs_a_block_dct_for_the_context(self, tmp_path: Path) -> None:
        write_kl_autoencoder(tmp_path)
        network = CsgUNet(NetworkConfig(classes=len(MSK_SCHEMA), latent_channels=3))
        with pytest.raises(TrainingError, match="needs a block DCT for its context"):
            CsgModel(network, load_autoencoder(tmp_path), schema=MSK_SCHEMA, image_size=SIZE, role="teacher")

    def test_rows_are_averaged_or_repeated(self) -> None:
        profile = torch.arange(4.0).view(1, 1, 4, 1)
        assert fit_height(profile, 2).flatten().tolist() == [0.5, 2.5]
        assert fit_height(profile, 4) is profile
        assert fit_height(profile, 8).flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


class TestTraining:
    def test_other_speckle_is_better_than_no_speckle(self) -> None:
        """L1 alone says the opposite, and so returns blur."""
        speckle = [np.random.default_rng(seed).rayleigh(40.0, (1, SIZE, SIZE)) for seed in (0, 1)]
        speckle = [np.stack([cv2.GaussianBlur(item[0], (0, 0), 1.0)]) for item in speckle]
        true, other = (torch.from_numpy(item)[:, None].float() / 127.5 - 1.0 for item in speckle)
        blur = torch.full_like(true, true.mean().item())
        assert (blur - true).abs().mean() < (other - true).abs().mean()
        distance = [(local_log_power(made) - local_log_power(true)).abs().mean() for made in (blur, other)]
        assert distance[1] < 0.5 * distance[0]

    def test_interrupted_equals_uninterrupted_and_the_folder_is_a_model(
        self, phantom_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = AutoencoderConfig((phantom_set,), image_size=SIZE, downsample=4, channels=3, width=16)
        assert train_autoencoder(config, TINY, out=tmp_path / "through", device=CPU)
        through = loop.fit

        def stopped(state: loop.TrainingState, loss: Callable[[int], Tensor], *rest: object, **options: object) -> bool:
            def stopping(index: int) -> Tensor:
                if index == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return loss(index)

            return through(state, stopping, *rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "fit", stopped)
            assert not train_autoencoder(config, TINY, out=tmp_path / "resumed", device=CPU)
        assert train_autoencoder(config, TINY, out=tmp_path / "resumed", device=CPU)
        for name in ("checkpoint.safetensors", "losses.csv", "autoencoder/diffusion_pytorch_model.safetensors",
                     "autoencoder/config.json"):  # fmt: skip
            assert (tmp_path / "through" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes(), name

        folder = tmp_path / "through" / "autoencoder"
        report = json.loads((folder / "reconstruction.json").read_text())
        assert report["images"] > 0 and report["splits"] == ["val"]
        assert report["latent_mean_square"] == pytest.approx(1.0, abs=0.5)  # other images than it was scaled on
        assert 5.0 < report["psnr_db"] < 40.0 and report["spectrum_gap_nats"] > 0.0
        from diffusers import AutoencoderKL

        theirs = AutoencoderKL.from_pretrained(folder, local_files_only=True)
        assert theirs.config.scaling_factor == load_autoencoder(folder).module.config.scaling_factor
        assert theirs.config.scaling_factor != 0.18215

    @pytest.mark.slow
    def test_it_learns(self, phantom_set: Path, tmp_path: Path) -> None:
        config = AutoencoderConfig((phantom_set,), image_size=SIZE, downsample=2, channels=4, width=16)
        options = LoopConfig(iterations=80, batch=4, warmup=10, learning_rate=2e-3)
        train_autoencoder(config, options, out=tmp_path, device=CPU)
        report = json.loads((tmp_path / "autoencoder" / "reconstruction.json").read_text())
        assert report["psnr_db"] > 16.0

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"downsample": 3}, "--downsample 3: choose among 2, 4, 8, 16"),
            ({"channels": 0}, "--channels 0"),
            ({"width": 20}, "--width 20: give a multiple of 16"),
            ({"image_size": 100}, "--size 100"),
        ],
    )
    def test_bad_shapes_are_refused(self, changes: dict[str, int], message: str) -> None:
        with pytest.raises(InputError, match=message):
            AutoencoderConfig((), **changes)
