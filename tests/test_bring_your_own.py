"""Teachers over learned latents, from folder to images by commands alone: distill, export, verify, generate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from foreign_teacher import SIZE, write_bridge_teacher, write_epsilon_teacher
from test_pipeline import csg_edge

from csg_edge.datasets.phantom import write_phantoms
from csg_edge.training import trajectories
from csg_edge.training.teachers import load_teacher


def write_own_teacher(folder: Path) -> Path:
    """A teacher over latents of an autoencoder, both trained by our commands, for two iterations each."""
    data, run = folder.with_name("to_train"), folder.with_name("autoencoder")
    write_phantoms(data, count=12, seed=2, size=SIZE)
    shape = ("--size", SIZE, "--downsample", 8, "--channels", 3, "--width", 16)
    csg_edge("train-autoencoder", "--data", data, "--out", run, *shape, "--iterations", 2, "--batch", 2)
    config = folder.with_name("run.toml")
    config.write_text("[network]\nwidths = [32]\nblocks = [1]\n[optimisation]\nwarmup = 1\nbatch = 2\niterations = 2\n")
    out = folder.with_name("trained")
    options = ("--data", data, "--out", out, "--image-size", SIZE, "--sheet-every", 1)
    csg_edge("train", "--config", config, "--autoencoder", run / "autoencoder", *options)
    return out / "teacher"


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
    few = ("--trajectories", trajectories.SHARD, "--iterations", 2, "--batch", 2, "--guidance", guidance)
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
