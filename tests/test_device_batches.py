"""Batches made on a device against those of the host, which OpenCV makes; here the device is the CPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from csg_edge.conditions.fibres import field_of_image
from csg_edge.datasets.augmentation import Bend, Geometry, Look, Warp, warp
from csg_edge.datasets.batches import Batch, BatchSource, Example, read_training_sets
from csg_edge.datasets.phantom import write_phantoms
from csg_edge.labels import MSK_SCHEMA
from csg_edge.training import trajectories
from csg_edge.training.device import Tensors
from csg_edge.training.device_batches import DeviceBatches, Grid, HostBatches, batches_on, fields_of_images, lanczos
from csg_edge.training.trajectories import Trajectories, TrajectoryConfig, make_trajectories
from tests.tiny_model import tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("sets") / name for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        write_phantoms(folder, count=12, seed=100 * seed)
    return folders


def source_of(folders: list[Path], **options: object) -> BatchSource:
    sets = read_training_sets(folders, MSK_SCHEMA, split="train", size=256)
    given = {"batch": 24, "dropout": 0.2, "seed": 5, "field_dropout": 0.3, "geometry": Bend.draw_tilted, **options}
    return BatchSource(sets, [1.0, 2.0], **given)  # type: ignore[arg-type]


def assert_alike(found: Tensors, expected: Batch) -> None:
    for name in ("image", "context"):
        levels = np.abs(getattr(found, name).numpy().astype(int) - getattr(expected, name))
        # Where rounding takes another of OpenCV's 32 places between two pixels, an edge is some levels off.
        assert (levels > 1).mean() < 5e-4 and levels.mean() < 5e-3, name
    assert (found.mask.numpy() != expected.mask).mean() < 1e-4
    # A field of next to no gradients is one of rounding; its coherence is small.
    assert np.abs(found.field.numpy() - expected.field).max() < 0.02
    assert found.image.dtype == found.mask.dtype == found.context.dtype == torch.uint8
    assert found.field.dtype == torch.float32


class TestDeviceBatches:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"dropout": 0.0, "field_dropout": 0.0},
            {"own_contexts": 1.0},
            {"own_contexts": 0.0},
            {"contexts": False, "field_dropout": None},
            {"geometry": partial(Warp.draw, strength=1.0)},
            {"dropout": 0.99},
        ],
        ids=str,
    )
    def test_the_batches_of_the_host(self, folders: list[Path], options: dict[str, object]) -> None:
        source = source_of(folders, **options)
        made = DeviceBatches(CPU, source)
        for index in (0, 7):
            assert_alike(made.draw(index), source.draw(index))

    def test_a_stream_is_the_batches_in_turn(self, folders: list[Path]) -> None:
        made = DeviceBatches(CPU, source_of(folders, batch=2))
        drawn = list(made.stream(3, 6))
        assert [index for index, _ in drawn] == [3, 4, 5]
        for index, batch in drawn:
            for found, expected in zip(batch, made.draw(index), strict=True):
                assert torch.equal(found, expected)

    def test_the_sets_stay_as_they_are(self, folders: list[Path]) -> None:
        made = DeviceBatches(CPU, source_of(folders))
        first = made.draw(0)
        made.draw(1)
        assert all(torch.equal(one, other) for one, other in zip(first, made.draw(0), strict=True))

    def test_a_batch_in_which_nothing_is_drawn(self, folders: list[Path]) -> None:
        source = source_of(folders)
        plain = Example(1, 3, Look(1.0, 1.0, 0.0), None, False, None, True, False)
        batch = DeviceBatches(CPU, source).made([plain, replace(plain, index=4)])
        np.testing.assert_array_equal(batch.image.numpy(), source.sets[1].images[3:5])
        np.testing.assert_array_equal(batch.mask.numpy(), source.sets[1].masks[3:5])
        assert not batch.context.any() and not batch.field.any()

    def test_a_cpu_takes_those_of_the_host(self, folders: list[Path]) -> None:
        source = source_of(folders)
        chosen = batches_on(CPU, source)
        assert isinstance(chosen, HostBatches)
        np.testing.assert_array_equal(chosen.draw(2).image.numpy(), source.draw(2).image)


@pytest.mark.parametrize("shape", [(64, 96), (256, 256)])
@pytest.mark.parametrize("draw", [Bend.draw, Bend.draw_tilted, partial(Warp.draw, strength=4.0)], ids=str)
def test_sampling_is_that_of_opencv(draw: object, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    geometries: list[Geometry] = [draw(random) for _ in range(4)]  # type: ignore[operator]
    image = cv2.GaussianBlur(random.integers(0, 256, shape, np.uint8), (0, 0), 1.0)
    found = lanczos(torch.from_numpy(image).expand(4, -1, -1), *Grid(shape, CPU).maps(geometries)).numpy()
    for made, geometry in zip(found, geometries, strict=True):
        expected = warp(image, geometry.maps(shape))
        assert (np.abs(made.astype(int) - expected) > 1).mean() < 2e-3


@pytest.mark.parametrize("shape", [(64, 64), (128, 256), (256, 256), (512, 512)])
def test_fields_are_those_of_opencv(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(2)
    images = np.stack([cv2.GaussianBlur(random.integers(0, 256, shape, np.uint8), (0, 0), width, None, 1.0)
                       for width in (1.0, 3.0, 8.0)])  # fmt: skip
    found = fields_of_images(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, np.stack([field_of_image(image) for image in images]), atol=2e-3)


class TestTrajectories:
    def test_shards_made_together_are_those_made_alone(
        self, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trajectories, "SHARD", 2)
        teacher, config = tiny_model("teacher", deviation=0.1).eval(), TrajectoryConfig((folders[0],), 8)
        read = []
        for together in (1, 3):
            monkeypatch.setattr(trajectories, "together_on", lambda device, count=together: count)
            folder = tmp_path / str(together)
            assert make_trajectories(teacher, config, folder, device=CPU, precision="fp32")
            read.append(Trajectories(folder, 8).read(range(8)))
        for name, one, other in zip(read[0]._fields, *read, strict=True):
            torch.testing.assert_close(one, other, atol=0.02, rtol=0.02, msg=name)

    def test_those_kept_on_a_device_are_those_of_the_files(
        self, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trajectories, "SHARD", 2)
        make_trajectories(
            tiny_model("teacher", deviation=0.1).eval(),
            TrajectoryConfig((folders[0],), 6),
            tmp_path,
            device=CPU,
            precision="fp32",
        )
        stored = Trajectories(tmp_path, 6)
        chosen = np.array([4, 0, 5, 4])
        expected = stored.read(chosen)
        stored.keep(CPU)
        assert all(torch.equal(one, other) for one, other in zip(stored.read(chosen), expected, strict=True))
        assert torch.equal(expected.noise[0], expected.noise[3])
