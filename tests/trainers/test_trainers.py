"""What augmentation gives to the packages people train with, judged by those packages; `make test-trainers`.

nnU-Net, TorchIO and Albumentations are in an environment of their own, since nothing here needs them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from csg_edge.conditions.files import read_context, read_mask
from csg_edge.labels import MSK_SCHEMA
from tests.command import run
from tests.nnunet_files import write_raw


@pytest.fixture
def pair(phantom_set: Path) -> tuple[np.ndarray, np.ndarray]:
    name = "000003.png"
    return read_context(phantom_set / "images" / name), read_mask(phantom_set / "masks" / name, MSK_SCHEMA)


@pytest.mark.parametrize("ending", [".png", ".tif", ".nii.gz"])
def test_nnunet_takes_the_larger_set(ending: str, phantom_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed; make test-trainers")
    raw = write_raw(phantom_set, tmp_path / "small" / "Dataset300_Phantom", ending=ending)
    out = tmp_path / "raw" / raw.name
    done = run("augment", raw, "--out", out, "--multiply", 3, "--no-checks", "--size", "model")
    assert done.returncode == 0, done.stderr
    folders = {f"nnUNet_{name}": str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    code = (
        "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as go; go()"
    )
    options = ("-d", "300", "-c", "2d", "-np", "1", "-npfp", "1", "--verify_dataset_integrity")
    planned = subprocess.run(
        [sys.executable, "-c", code, *options], env={**os.environ, **folders}, capture_output=True, text=True,
        check=False, timeout=900,
    )  # fmt: skip
    said = planned.stdout + planned.stderr
    assert planned.returncode == 0, said
    assert "verify_dataset_integrity Done." in said
    assert not re.search(r"^\s*(error|warning):", said, re.IGNORECASE | re.MULTILINE), said
    images = len(list((out / "imagesTr").iterdir()))
    assert images == json.loads((out / "dataset.json").read_text())["numTraining"] > 24
    prepared = tmp_path / "preprocessed" / raw.name
    assert len(list((prepared / "nnUNetPlans_2d").glob("*.pkl"))) == images
    # Its own folds, if it finds none, would part an image from those made for its mask.
    assert len(json.loads((out / "splits_final.json").read_text())) == 5


def test_torchio_loads_batches(pair: tuple[np.ndarray, np.ndarray]) -> None:
    tio = pytest.importorskip("torchio", reason="TorchIO is not installed; make test-trainers")
    import torch

    from csg_edge.integrations.arrays import CsgEdge
    from csg_edge.integrations.torchio import CsgEdgeSubject

    image, mask = (torch.from_numpy(item).T[None, :, :, None].float() for item in pair)
    subjects = [tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=mask)) for _ in range(6)]
    steps = tio.Compose([CsgEdgeSubject(CsgEdge(probability=1.0)), tio.RandomFlip(axes=0, flip_probability=0.0)])
    loader = tio.SubjectsLoader(tio.SubjectsDataset(subjects, transform=steps), batch_size=3, num_workers=2)
    made = [item for batch in loader for item in batch["image"][tio.DATA]]
    assert len({item.numpy().tobytes() for item in made} | {image.numpy().tobytes()}) == 7
    assert all(item.shape == image.shape for item in made)
    for batch in loader:
        assert (batch["label"][tio.DATA] == mask).float().mean() > 0.6


def test_albumentations_goes_on_from_there(pair: tuple[np.ndarray, np.ndarray]) -> None:
    albumentations = pytest.importorskip("albumentations", reason="Albumentations is not installed; make test-trainers")
    from csg_edge.integrations.arrays import CsgEdge

    image, mask = pair
    made = CsgEdge(probability=1.0)(image=image, mask=mask)
    flipped = albumentations.Compose([albumentations.HorizontalFlip(p=1.0)])(**made)
    np.testing.assert_array_equal(flipped["image"], made["image"][:, ::-1])
    np.testing.assert_array_equal(flipped["mask"], made["mask"][:, ::-1])
    assert not np.array_equal(made["image"], image)
