"""A thousand bad calls, mixed: each ends in a `CsgEdgeError` with its remedy, and the next good call works."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import csg_edge
from csg_edge.bundle.manifest import find_bundle, read_manifest
from csg_edge.datasets.layouts import open_folder
from csg_edge.errors import CancelledError, CsgEdgeError, TimedOutError
from csg_edge.generation.generator import Generator
from csg_edge.training.config import read_run

CALLS = 1000
GOOD_EVERY = 100
REMEDY = (
    "give ",
    "takes ",
    "is a NumPy array",
    "choose ",
    "again",
    "map your",
    "load",
    "wait longer",
    "has ",
    "check ",
)


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def generator(request: pytest.FixtureRequest) -> Any:
    with csg_edge.load(runtime=request.param, precision="fp32") as opened:
        yield opened


def timed_out(generator: Generator, feeds: dict[str, Any]) -> None:
    handle = generator.runtime.start(feeds)
    try:
        handle.wait(0)
    finally:
        handle.cancel()
    raise TimedOutError("it was done at once; wait longer")  # cannot be on any machine we know


def cancelled(generator: Generator, feeds: dict[str, Any]) -> None:
    handle = generator.runtime.start(feeds)
    handle.cancel()
    handle.wait()
    raise CancelledError("it was done at once; start it again")


def bad_calls(generator: Generator, closed: Generator, damaged: Path) -> dict[str, Callable[[], Any]]:
    mask, context = np.zeros((256, 256), np.uint8), np.zeros((256, 256), np.uint8)
    feeds = {"mask": mask[None], "context": context[None], "noise": np.zeros((1, 16, 64, 64), np.float32)}
    runtime = generator.runtime
    make = generator.generate
    return {
        "mask dtype": lambda: make([mask.astype(np.float32)], [context], [0]),
        "mask rank": lambda: make([mask[0]], [context], [0]),
        "mask not an array": lambda: make([None], [context], [0]),  # type: ignore[list-item]
        "class": lambda: make([mask + 10], [context], [0]),
        "empty mask": lambda: make([mask[:0]], [context], [0]),
        "context dtype": lambda: make([mask], [context.astype(np.int16)], [0]),
        "context colour": lambda: make([mask], [np.zeros((8, 8, 3), np.uint8)], [0]),
        "counts": lambda: make([mask, mask], [context], [0]),
        "nothing": lambda: make([], [], []),
        "negative seed": lambda: make([mask], [context], [-1]),
        "huge seed": lambda: make([mask], [context], [2**64]),
        "seed of text": lambda: make([mask], [context], ["1"]),  # type: ignore[list-item]
        "bool seed": lambda: make([mask], [context], [True]),
        "out dtype": lambda: make([mask], [context], [0], out=np.zeros((1, 256, 256), np.float32)),  # type: ignore[arg-type]
        "out shape": lambda: make([mask], [context], [0], out=np.zeros((256, 256), np.uint8)),
        "feed dtype": lambda: runtime.run({**feeds, "noise": feeds["noise"].astype(np.float64)}),
        "feed shape": lambda: runtime.run({**feeds, "noise": feeds["noise"][..., :32]}),
        "feed rank": lambda: runtime.run({**feeds, "mask": mask}),
        "feed missing": lambda: runtime.run({"mask": mask[None]}),
        "NaN noise": lambda: runtime.run({**feeds, "noise": np.full_like(feeds["noise"], np.nan)}),
        "feed of text": lambda: runtime.start({**feeds, "mask": "mask"}),  # type: ignore[dict-item]
        "out of the runtime": lambda: runtime.run(feeds, {"image": np.zeros((1, 2, 2), np.uint8)}),
        "timed out": lambda: timed_out(generator, feeds),
        "cancelled": lambda: cancelled(generator, feeds),
        "closed": lambda: closed.generate([mask], [context], [0]),
        "closed stream": lambda: next(closed.stream([mask], context, [0])),
        "stream runs out": lambda: list(generator.stream([mask + 11], context, [0])),
        "damaged bundle": lambda: csg_edge.load(damaged),
        "no bundle": lambda: csg_edge.load(damaged / "nowhere"),
        "bundle is a file": lambda: csg_edge.load(damaged / "manifest.json"),
        "runtime": lambda: csg_edge.load(runtime="tflite"),
        "steps": lambda: csg_edge.load(steps=3),
        "threads": lambda: csg_edge.load(threads=0),
        "threads of text": lambda: csg_edge.load(threads="two"),  # type: ignore[arg-type]
    }


def test_a_thousand_bad_calls(generator: Generator, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(find_bundle("msk-256"), tmp_path / "bundle"))
    (damaged / "manifest.sha256").write_text("0")
    closed = csg_edge.load(runtime="onnxruntime")
    closed.close()
    calls = bad_calls(generator, closed, damaged)
    random = np.random.default_rng(5)
    blank = np.zeros((256, 256), np.uint8)
    expected = generator.generate_one(blank, blank, 1)
    seen: Counter[str] = Counter()
    for turn in range(CALLS):
        name = str(random.choice(list(calls)))
        with pytest.raises(CsgEdgeError) as error:
            calls[name]()
        assert any(word in str(error.value) for word in REMEDY), f"{name}: no remedy in {error.value}"
        seen[name] += 1
        if turn % GOOD_EVERY == 0:
            np.testing.assert_array_equal(generator.generate_one(blank, blank, 1), expected)
    assert seen.keys() == calls.keys()
    np.testing.assert_array_equal(generator.generate_one(blank, blank, 1), expected)


@pytest.mark.parametrize("name", ["manifest.json", "labels.json", "run.toml"])
def test_files_nested_without_end_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(("a = " if name.endswith("toml") else "") + "[" * 100_000)
    if name == "labels.json":
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir()
    readers: dict[str, Callable[[], object]] = {
        "manifest.json": lambda: read_manifest(path),
        "labels.json": lambda: open_folder(tmp_path),
        "run.toml": lambda: read_run(path, {}, precision="fp32"),
    }
    with pytest.raises(CsgEdgeError) as refused:
        readers[name]()
    assert str(path) in str(refused.value)
