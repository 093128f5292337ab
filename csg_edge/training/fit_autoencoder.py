"""Training a KL autoencoder on ultrasound, for latent diffusion in the sense of CSG.

AutoencoderKL (Rombach et al., arXiv 2112.10752) of one grey channel. An L1 loss alone returns the mean of what speckle
may be, which is blur. Two terms keep it: differences of neighbouring pixels at three scales, and the local power
spectrum, which asks for as much texture of every size at every place without asking where each speckle lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csg_edge.datasets.batches import BatchSource, read_training_sets
from csg_edge.datasets.labelled_set import find_sets, read_set, schema_of, splits_of
from csg_edge.errors import InputError
from csg_edge.storage import folder_replaced, write_json
from csg_edge.training.autoencoder import image_to_unit
from csg_edge.training.autoencoders import load_autoencoder
from csg_edge.training.device import Tensors, autocast, seeded
from csg_edge.training.device_batches import batches_on
from csg_edge.training.diffusers_files import import_diffusers
from csg_edge.training.learned_autoencoder import KlAutoencoder
from csg_edge.training.loop import LoopConfig, fit_on_batches, start_or_resume

DOWNSAMPLES = (2, 4, 8, 16)
ATTENTION_FROM = 8  # at finer latents, attention over all pixels costs more than all else
NORM_GROUPS = 4  # with fewer than four channels in a group, normalising takes the brightness away
SCALES = (1, 2, 4)
TILE = 32  # pixels: some speckles wide, yet local
POWER_FLOOR = (2.0 / 255.0) ** 2 / 12.0  # of rounding to uint8, in units of -1..1
STATISTICS_BATCHES = 16
MEASURED = 8  # images at a time


@dataclass(frozen=True)
class AutoencoderConfig:
    """Data, shape and loss of an autoencoder; how it is optimised is in LoopConfig."""

    data: tuple[Path, ...]
    image_size: int = 256
    channels: int = 4
    downsample: int = 8
    width: int = 16  # channels at full size; doubled at each of the first two levels below
    gradient: float = 1.0
    spectrum: float = 0.02
    kl: float = 1e-4

    def __post_init__(self) -> None:
        if self.downsample not in DOWNSAMPLES:
            raise InputError(f"--downsample {self.downsample}: choose among {', '.join(map(str, DOWNSAMPLES))}")
        if not 1 <= self.channels <= 64:
            raise InputError(f"--channels {self.channels}: give 1 to 64 latent channels")
        if self.width < 16 or self.width % 16:
            raise InputError(f"--width {self.width}: give a multiple of 16")
        multiple = max(TILE, 4 * self.downsample)
        if self.image_size < 2 * TILE or self.image_size % multiple:
            raise InputError(f"--size {self.image_size}: give a multiple of {multiple} from {2 * TILE}")


def train_autoencoder(config: AutoencoderConfig, loop: LoopConfig, *, out: Path, device: torch.device) -> bool:
    """Train or resume in `out`; writes `out/autoencoder` at the end. Returns False when stopped early.

    The folder is diffusers' own layout with fp16 weights, latents scaled to zero mean and unit variance, and
    `reconstruction.json`, which tells how true its images are.
    """
    sets = read_training_sets(list(config.data), schema_of(config.data), split="train", size=config.image_size)
    shares = [1.0] * len(sets)
    source = BatchSource(sets, shares, batch=loop.batch, dropout=0.0, seed=loop.seed, contexts=False)
    torch.manual_seed(loop.seed)
    network = make_network(config).to(device, memory_format=torch.channels_last)
    state = start_or_resume(network, loop, out)

    def loss(iteration: int, batch: Tensors) -> Tensor:
        unit = image_to_unit(batch.image)
        with autocast(device, loop.precision):
            posterior = network.encode(unit).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=seeded(loop.seed, iteration)).to(device)
            made = network.decode(mean + (0.5 * logvar).exp() * noise, return_dict=False)[0]
        divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return reconstruction_loss(made.float(), unit, config) + config.kl * divergence

    finished = fit_on_batches(state, source, loss, loop, device=device, directory=out, label="autoencoder")
    network.eval()
    _normalise(network, source, device)
    folder = out / "autoencoder"
    with folder_replaced(folder) as aside:
        KlAutoencoder(network).save(aside)
        write_json(aside / "reconstruction.json", measure_reconstruction(aside, config, device=device))
    return finished


def make_network(config: AutoencoderConfig) -> Any:
    """A diffusers AutoencoderKL with weights drawn from torch's generator."""
    levels = config.downsample.bit_length()
    return import_diffusers().AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=config.channels,
        block_out_channels=tuple(config.width * min(2**level, 4) for level in range(levels)),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        norm_num_groups=NORM_GROUPS,
        sample_size=config.image_size,
        mid_block_add_attention=config.downsample >= ATTENTION_FROM,
    )


def reconstruction_loss(made: Tensor, unit: Tensor, config: AutoencoderConfig) -> Tensor:
    """(B, 1, H, W) in -1..1, made and true -> weighted sum of pixel, gradient and spectrum terms."""
    pixel = (made - unit).abs().mean()
    gradient = torch.stack([_gradient_error(made, unit, scale) for scale in SCALES]).mean()
    spectrum = (local_log_power(made) - local_log_power(unit)).abs().mean()
    return pixel + config.gradient * gradient + config.spectrum * spectrum


def _gradient_error(made: Tensor, unit: Tensor, scale: int) -> Tensor:
    error = F.avg_pool2d(made - unit, scale) if scale > 1 else made - unit
    return error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def local_log_power(unit: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B, tiles, TILE, TILE / 2 + 1) natural logarithm of power per pixel in half-overlapping tiles.

    Power is averaged over neighbouring frequencies: that of a single one is a draw, not a property of the texture.
    """
    tiles = F.unfold(unit, TILE, stride=TILE // 2).transpose(1, 2).unflatten(2, (TILE, TILE))
    edge = torch.hann_window(TILE, periodic=False, device=unit.device)
    window = edge[:, None] * edge
    tiles = (tiles - tiles.mean(dim=(2, 3), keepdim=True)) * window
    spectrum = torch.fft.rfft2(tiles)
    power = (spectrum.real.square() + spectrum.imag.square()) / window.square().sum()
    return (F.avg_pool2d(power, 3, stride=1, padding=1, count_include_pad=False) + POWER_FLOOR).log()


@torch.no_grad()
def _normalise(network: Any, source: BatchSource, device: torch.device) -> None:
    """Write into the config the mean and scale by which latents of training images are about standard normal."""
    batches = batches_on(device, source)
    images = (image_to_unit(batches.draw(index).image) for index in range(STATISTICS_BATCHES))
    latents = torch.cat([network.encode(unit).latent_dist.mean.flatten().double() for unit in images])
    network.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1.0 / latents.std().item())


@torch.no_grad()
def measure_reconstruction(folder: Path, config: AutoencoderConfig, *, device: torch.device) -> dict[str, Any]:
    """How true the images of the autoencoder in `folder` are, on the val split of each set, or train without one.

    PSNR in dB is the mean over images; the spectrum gap is that of `csg_edge.quality.spectrum`, in nats.
    """
    from csg_edge.quality.spectrum import radial_log_spectra, spectrum_gap

    autoencoder = load_autoencoder(folder).to(device)
    images, splits = [], set()
    for directory in (directory for root in config.data for directory in find_sets(root)):
        split = "val" if "val" in splits_of(directory) else "train"
        splits.add(split)
        images.append(read_set(directory, schema_of([directory]), split=split, size=config.image_size).images)
    true = np.concatenate(images)
    made, square, count = [], 0.0, 0
    for begin in range(0, len(true), MEASURED):
        latent = autoencoder.encode(torch.from_numpy(true[begin : begin + MEASURED]).to(device))
        made.append(autoencoder.decode(latent).cpu().numpy())
        square, count = square + latent.square().sum().item(), count + latent.numel()
    again = np.concatenate(made)
    levels = again.astype(np.float64) - true
    errors = np.maximum((levels**2).mean(axis=(1, 2)), 1e-12)
    return {
        "images": len(true),
        "splits": sorted(splits),
        "psnr_db": float((10.0 * np.log10(255.0**2 / errors)).mean()),
        "mean_difference_levels": float(np.abs(levels).mean()),
        "spectrum_gap_nats": spectrum_gap(radial_log_spectra(true), radial_log_spectra(again)),
        "latent_mean_square": square / count,
        "values_per_pixel": config.channels / config.downsample**2,
    }
