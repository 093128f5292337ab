"""Inputs as people have them: small files that stand for kinds, and what reading each must give."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import run

from csg_edge.conditions.files import list_images, read_context, read_mask
from csg_edge.datasets.labelled_set import read_set
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA

INPUTS = Path(__file__).parent / "inputs"


def outcome(read: Callable[[], object]) -> str:
    """What a person would see: size and values, or the refusal."""
    try:
        found = read()
    except InputError as error:
        return str(error).replace(f"{INPUTS}/", "")
    if isinstance(found, np.ndarray):
        return f"{found.shape[0]} x {found.shape[1]}, {' '.join(map(str, np.unique(found)[:6]))}"
    return str(found)


def classes_of(folder: str) -> np.ndarray:
    return read_set(INPUTS / folder, MSK_SCHEMA, split="train", size=16).masks[0]


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "orientation-6.jpg": (lambda: read_context(INPUTS / "orientation-6.jpg").shape, "(32, 48)"),
    "equal-channels-full-alpha.png": (
        lambda: read_mask(INPUTS / "equal-channels-full-alpha.png", MSK_SCHEMA),
        "16 x 16, 0 1 3",
    ),
    "many-pixels.png": (
        lambda: read_mask(INPUTS / "many-pixels.png", MSK_SCHEMA),
        "9000 x 9000 pixels, more than 50,000,000",
    ),
    "cine.dcm": (lambda: read_context(INPUTS / "cine.dcm#1"), "48 x 32, 0 10 20 30 40 50"),
    "stack.tif": (lambda: read_context(INPUTS / "stack.tif#1"), "48 x 32, 0 10 20 30 40 50"),
    "frames-no-number.dcm": (
        lambda: read_context(INPUTS / "frames-no-number.dcm"),
        "frames-no-number.dcm: its header cannot be read",
    ),
    "mask.nii.gz": (lambda: read_mask(INPUTS / "mask.nii.gz", MSK_SCHEMA), "16 x 16, 0 1 3"),
    "ignore-255.png": (lambda: read_mask(INPUTS / "ignore-255.png", MSK_SCHEMA), "16 x 16, 0 1 3 255"),
    "cvat": (lambda: read_mask(INPUTS / "cvat" / "mask.png", MSK_SCHEMA), "16 x 16, 0 1 3"),
    "mask-4-bits.png": (lambda: read_mask(INPUTS / "mask-4-bits.png", MSK_SCHEMA), "16 x 16, 0 1 3"),
    "nnunet-ignore": (lambda: classes_of("nnunet-ignore"), "16 x 16, 0 7 255"),
    "nnunet-regions": (lambda: classes_of("nnunet-regions"), "16 x 16, 0 7 9"),
    "companions": (lambda: [path.name for path in list_images(INPUTS / "companions")], "['leg.png']"),
    "semicolons": (
        lambda: read_set(INPUTS / "semicolons", MSK_SCHEMA, split="val", size=16).groups[0][:12],
        "semicolons/p",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_kind_is_read_or_refused_as_it_should_be(case: str) -> None:
    read, expected = CASES[case]
    assert expected in outcome(read)


def test_text_burned_in_is_said(phantom_set: Path, tmp_path: Path) -> None:
    mask = sorted((phantom_set / "masks").iterdir())[0]
    done = run("generate", "--mask", mask, "--context", INPUTS / "burned-in.dcm", "--out", tmp_path / "out",
               "--runtime", "onnxruntime", "--precision", "fp32")  # fmt: skip
    assert done.returncode == 0 and "burned into its pixels" in done.stderr


def test_every_input_is_small_and_used() -> None:
    names = {path.name for path in INPUTS.iterdir()} - {"README.md", "burned-in.dcm"}
    assert names == CASES.keys()
    assert all(path.stat().st_size < 12_000 for path in INPUTS.rglob("*") if path.is_file())


def table() -> None:
    """Write what this code makes of each input, as CSV: `python tests/test_inputs.py`, also with older code."""
    width = shutil.get_terminal_size((160, 20)).columns
    with Path("/dev/stdout").open("w", newline="") as file:
        writer = csv.writer(file)
        for case, (read, _) in CASES.items():
            try:
                said = outcome(read)
            except Exception as error:
                said = f"traceback: {type(error).__name__}: {error}"
            writer.writerow((case, " ".join(said.split())[:width]))


if __name__ == "__main__":
    table()
