"""The generator on the shipped bundle: determinism, agreement of runtimes, choice of engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import csg_edge
from csg_edge.bundle import read_bundle
from csg_edge.errors import InputError, RuntimeUnavailableError
from csg_edge.generator import Generator, choose_engine
from csg_edge.phantom import make_phantom
from csg_edge.verify import verify_bundle

MASKS = [make_phantom(seed, appearance_seed=1).mask for seed in range(3)]
CONTEXTS = [make_phantom(seed + 50, appearance_seed=1).image for seed in range(3)]


@pytest.fixture(scope="module")
def generator() -> Generator:
    with csg_edge.load(runtime="openvino", precision="fp32") as opened:
        yield opened


def test_shape_and_type(generator: Generator) -> None:
    images = generator.generate(MASKS, CONTEXTS, [1, 2, 3])
    assert images.shape == (3, 256, 256)
    assert images.dtype == np.uint8


def test_an_image_depends_on_its_own_inputs_alone(generator: Generator) -> None:
    together = generator.generate(MASKS, CONTEXTS, [1, 2, 3])
    reversed_ = generator.generate(MASKS[::-1], CONTEXTS[::-1], [3, 2, 1])[::-1]
    alone = [generator.generate_one(MASKS[index], CONTEXTS[index], index + 1) for index in range(3)]
    np.testing.assert_array_equal(together, reversed_)
    np.testing.assert_array_equal(together, alone)


def test_a_fresh_generator_gives_the_same_bytes(generator: Generator) -> None:
    with csg_edge.load(runtime="openvino", precision="fp32") as other:
        np.testing.assert_array_equal(
            other.generate_one(MASKS[0], CONTEXTS[0], 5), generator.generate_one(MASKS[0], CONTEXTS[0], 5)
        )


@pytest.mark.parametrize("change", ["seed", "mask", "context"])
def test_seed_mask_and_context_all_matter(generator: Generator, change: str) -> None:
    image = generator.generate_one(MASKS[0], CONTEXTS[0], 5).astype(int)
    other = generator.generate_one(
        MASKS[1] if change == "mask" else MASKS[0],
        255 - CONTEXTS[0] if change == "context" else CONTEXTS[0],
        6 if change == "seed" else 5,
    )
    assert np.abs(image - other).mean() > 1.0


def test_one_context_serves_all(generator: Generator) -> None:
    shared = generator.generate(MASKS, CONTEXTS[:1], [1, 2, 3])
    np.testing.assert_array_equal(shared[2], generator.generate_one(MASKS[2], CONTEXTS[0], 3))


def test_other_sizes_are_stretched(generator: Generator) -> None:
    mask = np.kron(MASKS[0], np.ones((2, 3), np.uint8))
    image = generator.generate_one(mask, CONTEXTS[0], 5)
    np.testing.assert_array_equal(image, generator.generate_one(MASKS[0], CONTEXTS[0], 5))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_onnx_runtime_and_openvino_agree(generator: Generator, steps: int) -> None:
    """Issue: at fp32 within 1 grey level on 99 % of pixels."""
    with (
        csg_edge.load(runtime="openvino", precision="fp32", steps=steps) as first,
        csg_edge.load(runtime="onnxruntime", precision="fp32", steps=steps) as second,
    ):
        ours = first.generate(MASKS, CONTEXTS, [1, 2, 3]).astype(int)
        theirs = second.generate(MASKS, CONTEXTS, [1, 2, 3])
    assert (np.abs(ours - theirs) <= 1).mean() >= 0.99


def test_golden_cases_hold_on_this_machine(shipped: Path) -> None:
    results = verify_bundle(read_bundle(shipped))
    assert [result for result in results if result.status == "failed"] == []
    assert {result.target for result in results if result.status == "passed"} >= {
        "openvino:CPU:fp32",
        "onnxruntime:CPU:fp32",
    }


@pytest.mark.parametrize(
    ("masks", "contexts", "seeds"),
    [
        ([], [], []),
        (MASKS, CONTEXTS[:2], [1, 2, 3]),
        (MASKS, CONTEXTS, [1, 2]),
        ([MASKS[0].astype(np.int64)], CONTEXTS[:1], [1]),
        ([MASKS[0] + 10], CONTEXTS[:1], [1]),
        (MASKS[:1], [CONTEXTS[0].astype(np.float32)], [1]),
        (MASKS[:1], CONTEXTS[:1], [-1]),
        (MASKS[:1], CONTEXTS[:1], [1.5]),
    ],
    ids=["nothing", "contexts", "seeds", "mask type", "class", "context type", "negative seed", "fractional seed"],
)
def test_bad_calls(generator: Generator, masks: list, contexts: list, seeds: list) -> None:
    with pytest.raises(InputError):
        generator.generate(masks, contexts, seeds)


class TestChoice:
    def choose(self, shipped: Path, **options: object) -> str:
        defaults = {"runtime": "auto", "device": "auto", "precision": "auto", "steps": 1}
        return choose_engine(read_bundle(shipped), **{**defaults, **options}).target

    def test_auto_takes_the_first_that_can_run(self, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        engines = list(dict.fromkeys(engine.target for engine in read_bundle(shipped).manifest.engines))
        runnable = [None, "not here"]
        for absent in range(len(engines)):
            monkeypatch.setattr(
                "csg_edge.generator.why_not", lambda engine, n=absent: runnable[engine.target in engines[:n]]
            )
            assert self.choose(shipped) == engines[absent]

    def test_nothing_can_run(self, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("csg_edge.generator.why_not", lambda engine: "install it")
        with pytest.raises(RuntimeUnavailableError, match="install it"):
            self.choose(shipped)

    def test_options_narrow_the_choice(self, shipped: Path) -> None:
        assert self.choose(shipped, runtime="onnxruntime") == "onnxruntime:CPU:fp32"
        assert self.choose(shipped, precision="fp32") == "openvino:CPU:fp32"

    @pytest.mark.parametrize(
        "options", [{"runtime": "tflite"}, {"steps": 3}, {"precision": "fp8"}, {"device": "TPU"}], ids=str
    )
    def test_unknown_options_name_what_there_is(self, shipped: Path, options: dict[str, object]) -> None:
        with pytest.raises(InputError, match=r"choose|has"):
            self.choose(shipped, **options)
