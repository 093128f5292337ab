"""Synthetic images inside training loops: what comes back, who draws it, and what the cache may grow to."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.dataloader import DataLoader as MonaiLoader
from monai.data.dataset import Dataset as MonaiDataset
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.intensity.dictionary import ScaleIntensityRanged
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from csg_edge.datasets.phantom import make_phantom
from csg_edge.errors import InputError
from csg_edge.integrations.arrays import CsgEdge
from csg_edge.integrations.monai import RandCsgEdged
from csg_edge.integrations.pytorch import CsgEdgeDataset, CsgEdgeTransform
from csg_edge.integrations.torchio import CsgEdgeSubject
from csg_edge.labels import MSK_SCHEMA

Image = NDArray[np.uint8]
PAIRS = [tuple(make_phantom(seed)[:2]) for seed in range(4)]


class Pairs:
    """Four real pairs; in a test, all of one, so that only draws tell items apart."""

    def __init__(self, repeated: int = 0) -> None:
        self.repeated = repeated

    def __len__(self) -> int:
        return self.repeated or len(PAIRS)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = PAIRS[0 if self.repeated else index]
        return torch.from_numpy(image)[None].float() / 255, torch.from_numpy(mask).long()


@pytest.fixture(scope="module")
def always() -> CsgEdge:
    return CsgEdge(probability=1.0)


class TestArrays:
    def test_a_pair_for_a_pair(self, always: CsgEdge) -> None:
        image, mask = PAIRS[0]
        made, labels = always.make(image, mask, np.random.default_rng(1))
        assert made.shape == labels.shape == image.shape
        assert made.dtype == labels.dtype == np.uint8
        assert not np.array_equal(made, image)
        assert set(np.unique(labels)) <= set(np.unique(mask))
        again = always.make(image, mask, np.random.default_rng(1))
        np.testing.assert_array_equal(again[0], made)
        assert not np.array_equal(always.make(image, mask, np.random.default_rng(2))[0], made)

    def test_now_and_then(self) -> None:
        image, mask = PAIRS[0]
        random, augment = np.random.default_rng(0), CsgEdge(probability=0.3)
        kept = [augment.make(image, mask, random)[0] is image for _ in range(60)]
        assert 0.5 < np.mean(kept) < 0.9
        assert CsgEdge(probability=0.0).make(image, mask, random) == (image, mask)

    def test_own_classes_and_sizes(self) -> None:
        image, mask = PAIRS[0]
        names = ("background", *sorted(MSK_SCHEMA.names[1:]))
        table = np.array([names.index(name) for name in MSK_SCHEMA.names], np.uint8)
        own = np.ascontiguousarray(table[mask][:200, :180])
        made, labels = CsgEdge(probability=1.0, classes=names).make(image[:200, :180], own, np.random.default_rng(0))
        assert made.shape == labels.shape == (200, 180)
        assert set(np.unique(labels)) <= set(np.unique(own))
        with pytest.raises(InputError, match="classes does not name"):
            CsgEdge(probability=1.0, classes=("background", "muscle"), vary="insert:vessel").make(
                image, np.ones((256, 256), np.uint8), np.random.default_rng(0)
            )

    def test_contexts_of_others(self, tmp_path: Path) -> None:
        from csg_edge.conditions.files import write_png

        for place, (image, _) in enumerate(PAIRS[1:]):
            write_png(tmp_path / f"{place}.png", image)
        image, mask = PAIRS[0]
        by_folder = CsgEdge(probability=1.0, contexts=tmp_path).make(image, mask, np.random.default_rng(3))
        by_array = CsgEdge(probability=1.0, contexts=[pair[0] for pair in PAIRS[1:]]).make(
            image, mask, np.random.default_rng(3)
        )
        np.testing.assert_array_equal(by_folder[0], by_array[0])

    def test_the_look_of_contexts_changes(self, always: CsgEdge) -> None:
        image, mask = PAIRS[0]
        still = CsgEdge(probability=1.0, appearance=None)
        pairs = [(always, still)] * 8
        made = [[edge.make(image, mask, np.random.default_rng(k)) for edge in pair] for k, pair in enumerate(pairs)]
        changed = [not np.array_equal(one[0], other[0]) for one, other in made]
        assert 2 <= sum(changed) <= 8  # seven in ten
        assert all(np.array_equal(one[1], other[1]) for one, other in made)

    def test_what_the_segmenter_does_not_find_is_not_used(self, always: CsgEdge) -> None:
        pytest.importorskip("monai", reason="the quality extra is not installed")
        image, mask = PAIRS[0]
        free = always.make(image, mask, np.random.default_rng(1))
        for check in (0.0, {}, {"tendon": 1.0}):
            same = CsgEdge(probability=1.0, check=check).make(image, mask, np.random.default_rng(1))
            np.testing.assert_array_equal(same[0], free[0])
        with pytest.raises(InputError, match="nervus"):
            CsgEdge(probability=1.0, check={"nervus": 0.5}).make(image, mask, np.random.default_rng(1))
        strict = CsgEdge(probability=1.0, check=1.0).make(image, mask, np.random.default_rng(1))
        np.testing.assert_array_equal(strict[0], image)
        np.testing.assert_array_equal(strict[1], mask)

    def test_what_is_near_to_a_context_is_not_used(self, always: CsgEdge) -> None:
        pytest.importorskip("monai", reason="the quality extra is not installed")
        image, mask = PAIRS[0]
        contexts = [pair[0] for pair in PAIRS]
        free = CsgEdge(probability=1.0, contexts=contexts).make(image, mask, np.random.default_rng(1))
        same = CsgEdge(probability=1.0, contexts=contexts, nearest=0.01).make(image, mask, np.random.default_rng(1))
        np.testing.assert_array_equal(same[0], free[0])
        # The image itself stands in the place of a real one that is too near to be of use.
        for near in ([*contexts, free[0]], [free[0]]):
            edge = CsgEdge(probability=1.0, contexts=contexts, nearest=0.3)
            edge._contexts = list(near)
            assert not edge._is_new(free[0], image)
        assert CsgEdge(probability=1.0, contexts=contexts, nearest=0.01)._is_new(free[0], image)
        assert not CsgEdge(probability=1.0, nearest=0.0)._is_new(image, image)  # the pair's own image again
        strict = CsgEdge(probability=1.0, contexts=contexts, nearest=1.0).make(image, mask, np.random.default_rng(1))
        assert strict[0] is image
        with pytest.raises(InputError, match="nearest"):
            CsgEdge(nearest=1.5)

    def test_albumentations_convention(self, always: CsgEdge) -> None:
        image, mask = PAIRS[0]
        found = always(image=image, mask=mask, name="kept")
        assert found.keys() == {"image", "mask", "name"}
        assert found["image"].shape == image.shape

    def test_cache_gives_the_same_and_stays_small(self, tmp_path: Path) -> None:
        image, mask = PAIRS[0]
        kept = CsgEdge(probability=1.0, variants=3, cache=tmp_path)
        random = np.random.default_rng(0)
        made = {kept.make(image, mask, random)[0].tobytes() for _ in range(12)}
        assert len(made) == len(list(tmp_path.glob("*.npz"))) == 3
        other = CsgEdge(probability=1.0, variants=3, cache=tmp_path)
        assert other.make(image, mask, np.random.default_rng(7))[0].tobytes() in made
        assert other._opened is None  # nothing was made
        small = CsgEdge(probability=1.0, variants=200, cache=tmp_path, cache_mb=0.4)
        for _ in range(70):
            small.make(image, mask, random)
        sizes = [path.stat().st_size for path in tmp_path.glob("*.npz")]
        assert sum(sizes) <= 0.4e6 + 32 * max(sizes)
        once = CsgEdge(probability=1.0, variants=1, cache=tmp_path)
        first = once.make(image, mask, random)[0]
        for left in (4, 200):  # bytes: not even the head of an archive; its head alone
            for path in tmp_path.glob("*.npz"):
                path.write_bytes(path.read_bytes()[:left])
            np.testing.assert_array_equal(once.make(image, mask, random)[0], first)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"probability": 1.5}, "probability 1.5"),
            ({"cache": "here"}, "it needs variants"),
            ({"contexts": []}, "an empty list"),
            ({"check": 2.0}, "check 2"),
            ({"check": {"nerve": -1.0}}, "check -1"),
            ({"variants": 2, "cache_mb": 0}, "cache_mb 0"),
        ],
    )
    def test_wrong_options(self, options: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            CsgEdge(**options)


class TestPyTorch:
    def test_shapes_types_and_levels(self, always: CsgEdge) -> None:
        image, mask = Pairs()[1]
        for levels in ((0.0, 1.0), (-1.0, 1.0)):
            shown = image * (levels[1] - levels[0]) + levels[0]
            made, labels = CsgEdgeTransform(always, levels=levels)(shown, mask, np.random.default_rng(0))
            assert (made.shape, made.dtype) == (image.shape, image.dtype)
            assert (labels.shape, labels.dtype) == (mask.shape, mask.dtype)
            assert levels[0] <= made.min() < made.mean() - 0.05
            assert made.max() <= levels[1]
        with pytest.raises(InputError, match="image of shape"):
            CsgEdgeTransform(always)(torch.zeros(3, 8, 8), torch.zeros(8, 8))

    @pytest.mark.parametrize("start", ["fork", "spawn"])
    def test_no_two_workers_draw_alike(self, start: str) -> None:
        data = CsgEdgeDataset(Pairs(repeated=8), CsgEdge(probability=1.0))
        loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context=start)

        def epoch() -> set[bytes]:
            return {image.numpy().tobytes() for images, _ in loader for image in images}

        torch.manual_seed(0)
        first, second = epoch(), epoch()
        assert len(first | second) == 16
        torch.manual_seed(0)
        assert epoch() == first

    def test_goes_through_pickle(self, always: CsgEdge) -> None:
        image, mask = PAIRS[0]
        always.make(image, mask, np.random.default_rng(1))
        copy = pickle.loads(pickle.dumps(always))
        np.testing.assert_array_equal(
            copy.make(image, mask, np.random.default_rng(1))[0], always.make(image, mask, np.random.default_rng(1))[0]
        )


class TestMonai:
    def test_a_dictionary_with_metadata(self) -> None:
        image, mask = Pairs()[0]
        data = {"image": MetaTensor(image, meta={"filename_or_obj": "a"}), "label": mask[None], "name": "a"}
        made = RandCsgEdged(("image", "label"), prob=1.0).set_random_state(seed=3)(data)
        assert isinstance(made["image"], MetaTensor)
        assert made["image"].meta["filename_or_obj"] == "a"
        assert made["label"].shape == (1, 256, 256)
        assert made["name"] == "a"
        again = RandCsgEdged(("image", "label"), prob=1.0).set_random_state(seed=3)(data)
        assert torch.equal(made["image"], again["image"])
        assert not torch.equal(made["image"], data["image"])
        kept = RandCsgEdged(("image", "label"), prob=0.0)(data)
        assert torch.equal(kept["image"], data["image"])

    def test_in_its_loader(self) -> None:
        pairs = [
            {"image": 255 * Pairs(repeated=8)[index][0], "label": Pairs(repeated=8)[index][1][None]}
            for index in range(8)
        ]
        steps = Compose(
            [ScaleIntensityRanged("image", 0, 255, -1, 1), RandCsgEdged(("image", "label"), 1.0, levels=(-1.0, 1.0))]
        )
        loader = MonaiLoader(MonaiDataset(pairs, steps), batch_size=2, num_workers=2)
        found = {image.numpy().tobytes() for batch in loader for image in batch["image"]}
        assert len(found) == 8


class TestTorchio:
    def test_a_subject(self, always: CsgEdge) -> None:
        """By its calling convention: the data is a tensor (1, W, H, 1), set by `set_data`."""

        class Part:
            def __init__(self, data: torch.Tensor) -> None:
                self.data = data

            def set_data(self, data: torch.Tensor) -> None:
                self.data = data

        image, mask = Pairs()[0]
        subject = {
            "image": Part(image.transpose(1, 2)[..., None]), "label": Part(mask[None].transpose(1, 2)[..., None])
        }  # fmt: skip
        made = CsgEdgeSubject(always)(subject)
        assert made["image"].data.shape == (1, 256, 256, 1)
        found = made["label"].data[0, :, :, 0].T
        assert (found == mask).float().mean() > 0.6
        with pytest.raises(InputError, match="single slices"):
            CsgEdgeSubject(always)({"image": Part(torch.zeros(1, 8, 8, 4)), "label": Part(torch.zeros(1, 8, 8, 4))})
