"""Teachers over learned latents, from folder to images by commands alone: distill, export, verify, generate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from foreign_teacher import SIZE, write_bridge_teacher, write_epsilon_teacher
from test_pipeline import csg_edge

from csg_edge.labels import MSK_SCHEMA
from csg_edge.phantom import make_phantom, write_phantoms
from csg_edge.training import distil
from csg_edge.training.autoencoder import BlockDct, BlockDctConfig, load_autoencoder
from csg_edge.training.model import CsgModel
from csg_edge.training.networks import CsgUNet, NetworkConfig
from csg_edge.training.teachers import load_teacher


def write_own_teacher(folder: Path) -> Path:
    """A teacher of ours with random weights, over latents of an autoencoder that our command trained."""
    data, run = folder.with_name("for_autoencoder"), folder.with_name("autoencoder")
    write_phantoms(data, count=12, seed=2, size=SIZE)
    shape = ("--size", SIZE, "--downsample", 8, "--channels", 3, "--width", 16)
    csg_edge("train-autoencoder", "--data", data, "--out", run, *shape, "--iterations", 2, "--batch", 2)
    autoencoder = load_autoencoder(run / "autoencoder")
    torch.manual_seed(0)
    network = CsgUNet(NetworkConfig(classes=len(MSK_SCHEMA), latent_channels=3, patch=8, widths=(32,), blocks=(1,)))
    torch.nn.init.normal_(network.head.weight, std=0.1)
    transform = BlockDct(BlockDctConfig.fit(np.stack([make_phantom(seed, size=SIZE).image for seed in range(4)])))
    CsgModel(
        network, autoencoder, schema=MSK_SCHEMA, image_size=SIZE, role="teacher", context_transform=transform
    ).save(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "guidance"),
    [(write_epsilon_teacher, 1.5), (write_bridge_teacher, 1.0), (write_own_teacher, 2.0)],
    ids=["epsilon", "bridge", "own, KL latents"],
)
def test_from_folder_to_images(write: Callable[[Path], Path], guidance: float, tmp_path: Path) -> None:
    data, run, bundle, out = (tmp_path / name for name in ("data", "run", "bundle", "out"))
    write_phantoms(data, count=12, seed=1, size=SIZE)
    teacher = write(tmp_path / "teacher")
    shape = list(load_teacher(teacher).latent_shape(1)[1:])
    few = ("--trajectories", distil.SHARD, "--iterations", 2, "--batch", 2, "--guidance", guidance)
    csg_edge("distill", teacher, "--data", data, "--out", run, *few)
    csg_edge("export", run / "student", "--out", bundle, "--steps", "1")

    described = json.loads(csg_edge("info", bundle, "--json"))
    assert described["image_size"] == [SIZE, SIZE] and described["noise_shape"] == shape
    verified = json.loads(csg_edge("verify", bundle, "--json"))
    assert verified["passed"] is True
    exact = [row for row in verified["engines"] if row["target"].endswith("fp32")]
    assert exact and all(row["status"] == "passed" for row in exact)

    csg_edge("generate", "--mask", data / "masks", "--context", data / "contexts", "--bundle", bundle, "--out", out)
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(out.glob("0*.png"))]
    assert len(images) == 12
    assert all(image.shape == (SIZE, SIZE) and image.std() > 1 for image in images)
    assert np.abs(images[0].astype(int) - images[1]).mean() > 1
