"""Hostile and broken sets: one line each, in bounded memory and time, and nothing written or lost."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import resource
import shutil
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from csg_edge.conditions import nifti
from csg_edge.conditions.files import read_context, write_png
from tests.command import run
from tests.dicom_files import write_dicom

MEMORY = 400 << 10  # KiB more than before, at the most
SECONDS = 60.0


def huge_png(path: Path, side: int) -> None:
    """A PNG that says it has side x side pixels, all zero, in some kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"\0" * min(side * (side + 1), 50_000_000), 9)
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )  # fmt: skip


def nnunet(folder: Path, **about: object) -> None:
    """Make the folder an nnU-Net data set with this description."""
    (folder / "manifest.csv").unlink()
    (folder / "images").rename(folder / "imagesTr")
    (folder / "masks").rename(folder / "labelsTr")
    for path in (folder / "imagesTr").iterdir():
        path.rename(path.with_name(f"{path.stem}_0000.png"))
    names = json.loads((folder / "labels.json").read_text())["names"]
    usual = {"channel_names": {"0": "us"}, "labels": {n: i for i, n in enumerate(names)}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps({**usual, **about}))


def replace_image(make: Callable[[Path], object], suffix: str = ".png") -> Callable[[Path], None]:
    """Put another file in the place of one image."""

    def damage(folder: Path) -> None:
        path = folder / "images" / "000003.png"
        path.unlink()
        make(path.with_suffix("").with_name(f"000003{suffix}"))

    return damage


def plain(folder: Path) -> None:
    """Without a table, so that files decide."""
    (folder / "manifest.csv").unlink()


def gz_bomb(path: Path) -> None:
    header = bytearray(nifti.encode(np.zeros((8, 8), np.uint8), (1, 1, 1), packed=False))
    struct.pack_into("<8h", header, 40, 3, 30000, 30000, 1, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(bytes(header) + bytes(200 << 20), 9, mtime=0))


def dicom_of(path: Path, **elements: object) -> None:
    write_dicom(path, np.full((64, 64), 90, np.uint8), **elements)  # type: ignore[arg-type]


def truncated_dicom(path: Path) -> None:
    dicom_of(path)
    path.write_bytes(path.read_bytes()[:-2000])


def unknown_syntax(path: Path) -> None:
    dicom_of(path)
    explicit, other = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.7\0"
    path.write_bytes(path.read_bytes().replace(explicit, other))


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def bytes_name(folder: Path) -> None:
    plain(folder)
    for name in ("images", "masks"):
        target = os.fsencode(folder / name) + b"/\xff\xfe.png"
        shutil.copy(folder / name / "000000.png", target)


def many_classes(folder: Path) -> None:
    (folder / "labels.json").write_text(json.dumps({"names": [f"c{k}" for k in range(3000)]}))


def other_mask(mask: np.ndarray[tuple[int, int], np.dtype[np.uint8]]) -> Callable[[Path], None]:
    return lambda folder: write_png(folder / "masks" / "000003.png", mask)


def table(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "manifest.csv").write_text(text)

    return write


def many_masks(folder: Path) -> None:
    plain(folder)
    for number in range(100_000):
        (folder / "masks" / f"m{number:06d}.png").touch()


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(60 << 30)


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "20,000 x 20,000 pixels": (replace_image(lambda path: huge_png(path, 20_000)), "20000 x 20000 pixels"),
    "a mask of 20,000 x 20,000": (lambda folder: huge_png(folder / "masks" / "000003.png", 20_000), "pixels"),
    "a bomb in gzip": (replace_image(gz_bomb, ".nii.gz"), "pixels, more than"),
    "60 GB": (replace_image(sparse), "bytes; an image that can be used has fewer"),
    "a pipe for an image": (replace_image(fifo), "not a file"),
    "a pipe for a mask": (lambda folder: fifo(folder / "masks" / "000003.png"), "not a file"),
    "a pipe for the classes": (lambda folder: fifo(folder / "labels.json"), "missing or unreadable"),
    "a pipe for the groups": (lambda folder: (plain(folder), fifo(folder / "groups.csv")), ""),
    "a link to itself": (replace_image(lambda path: path.symlink_to(path.name)), "000003"),
    "a folder that is in itself": (lambda folder: (folder / "images" / "loop.png").symlink_to(folder), ""),
    "a folder for an image": (replace_image(Path.mkdir), "not a file"),
    "a name of other bytes": (bytes_name, "no Unicode"),
    "an empty image": (replace_image(Path.touch), "not a readable image"),
    "text for an image": (replace_image(lambda path: path.write_text("hello")), "not a readable image"),
    "half an image": (
        lambda folder: (folder / "images" / "000003.png").write_bytes(
            (folder / "images" / "000003.png").read_bytes()[:3000]
        ),
        "truncated or damaged",
    ),
    "an image of one level": (
        lambda folder: write_png(folder / "images" / "000003.png", np.full((256, 256), 9, np.uint8)), ""
    ),
    "another transfer syntax": (replace_image(unknown_syntax, ".dcm"), "transfer syntax"),
    "pixels cut off": (replace_image(truncated_dicom, ".dcm"), "cannot be decoded"),
    "lengths that are wrong": (replace_image(lambda path: dicom_of(path, Rows=60000, Columns=60000), ".dcm"), "pixels"),
    "colour Doppler": (
        replace_image(
            lambda path: write_dicom(
                path, np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8), photometric="RGB"
            ),
            ".dcm",
        ),
        "a colour image",
    ),
    "a mask of another size": (other_mask(np.ones((40, 30), np.uint8)), "export both at one size"),
    "a mask in colour": (
        lambda folder: write_png(
            folder / "masks" / "000003.png", np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
        ),
        "a colour mask",
    ),
    "an index without a class": (other_mask(np.full((256, 256), 77, np.uint8)), "class index 77"),
    "no JSON but brackets": (lambda folder: (folder / "labels.json").write_text("[" * 100_000), "unreadable"),
    "three thousand classes": (many_classes, "give 2 to 255 names"),
    "an unknown class": (
        lambda folder: (folder / "labels.json").write_text(json.dumps({"names": ["background", "liver"]})), "liver"
    ),
    "a table of other bytes": (lambda folder: (folder / "manifest.csv").write_bytes(bytes(range(256))), "not readable"),
    "a name that leaves the folder": (table("name,group,split\n../../../etc/passwd,a,train\n"), "no row has a mask"),
    "a group on both sides": (
        table("name,group,split\n000000,a,train\n000001,a,val\n"), "group a is in splits train and val"
    ),
    "an ending that leaves the folder": (lambda folder: nnunet(folder, file_ending="/../../x.png"), "are not read"),
    "labels with gaps": (lambda folder: nnunet(folder, labels={"background": 0, "muscle": 7}), "must number"),
    "folds that are a number": (
        lambda folder: (nnunet(folder), (folder / "splits_final.json").write_text("7")), "write it as nnU-Net does"
    ),
    "100,000 masks": (many_masks, "no image for m000000 and 99999 more"),
    "no set at all": (lambda folder: shutil.rmtree(folder), "no manifest.csv"),
}  # fmt: skip


def state(folder: Path) -> dict[str, str]:
    """Every file below by its hash, without following links or reading pipes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > 1 << 30:
            found[os.fsdecode(path)] = "not read"
        else:
            found[os.fsdecode(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_else(case: str, phantom_set: Path, tmp_path: Path) -> None:
    damage, said = CASES[case]
    folder = tmp_path / "set"
    shutil.copytree(phantom_set, folder)
    damage(folder)
    before = state(folder) if case != "100,000 masks" else {}
    memory, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    done = run("augment", folder, "--out", tmp_path / "out", "--multiply", 2, "--no-checks")
    assert time.monotonic() - begun < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEMORY
    if not said:  # what can be worked with is
        assert done.returncode in (0, 2)
    if done.returncode == 0:
        assert said == ""
        assert read_context(tmp_path / "out" / "images" / "synthetic_000000.png") is not None
        return
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("csg-edge: ")] == [
        done.stderr.splitlines()[-1]
    ]
    assert not (tmp_path / "out").exists()
    if before:
        assert state(folder) == before


def test_there_are_thirty_of_them() -> None:
    assert len(CASES) >= 30
