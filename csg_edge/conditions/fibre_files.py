"""Fibre fields as files, and drawn over their images.

NAME.npz                          `fibre`, float32 (3, 16, 16), as `fibres` has it
NAME.csv                          a line for each cell: row, column, direction in degrees, coherence, how much is given
NAME.direction.png with           degrees from the horizontal + 90, 0 to 179 (whole degrees), 255 where nothing is given
NAME.coherence.png beside it      coherence x 255
"""

from __future__ import annotations

import csv
import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csg_edge.conditions.fibres import GIVEN, SHAPE, SIDE, Field, check_field, directions
from csg_edge.conditions.files import read_context, write_png
from csg_edge.errors import InputError
from csg_edge.storage import write_whole, written_whole

FORMATS = ("npz", "csv", "png")
COLUMNS = ("row", "column", "direction_deg", "coherence", "given")
DIRECTION, COHERENCE = ".direction.png", ".coherence.png"
NOT_GIVEN = 255
LARGEST = 1 << 20  # bytes; a field has three thousand

Image = NDArray[np.uint8]


def both_names(name: str, kind: str | None) -> list[str]:
    """Names of the files, one or two, that a field is written to in one of FORMATS; none for None."""
    if kind == "png":
        return [f"{name}{DIRECTION}", f"{name}{COHERENCE}"]
    return [] if kind is None else [f"{name}.{kind}"]


def field_names(path: Path) -> list[tuple[str, Path]]:
    """The fields that a file or folder holds, by name; of a pair of PNG files the first.

    Raises InputError if there are none.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = [(_name(file), file) for file in files if not file.name.startswith(".") and _name(file)]
    if not found:
        raise InputError(f"{path}: no fibre fields (.npz, .csv or {DIRECTION}); see docs/fibres.md")
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: {twice} is there in two formats; keep one")
    return found


def _name(path: Path) -> str:
    for suffix in (".npz", ".csv", DIRECTION):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return ""


def read_field(path: Path) -> Field:
    """Read a field; of a pair of PNG files either may be named. Raises InputError for a file that holds none."""
    name = path.name.lower()
    if name.endswith((DIRECTION, COHERENCE)):
        return _read_pair(path)
    if not name.endswith((".npz", ".csv")):
        raise InputError(f"{path}: no fibre field; give a .npz or .csv file, or one that ends in {DIRECTION}")
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise InputError(f"{path}: {path.stat().st_size} bytes; a fibre field is a small file, give one")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); check the path") from None
    return check_field(_from_npz(data, path) if name.endswith(".npz") else _from_csv(data, path), name=str(path))


def write_field(folder: Path, name: str, field: Field, *, kind: str = "npz") -> list[Path]:
    """Write a field (3, 16, 16) into a folder in one of FORMATS, whole or not at all; returns the files, one or two.

    Raises InputError for another format, or where it cannot be written.
    """
    angle, coherence = directions(field)
    if kind == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, fibre=field)
        files = {f"{name}.npz": buffer.getvalue()}
    elif kind == "csv":
        lines = [",".join(COLUMNS)]
        for row, column in np.ndindex(SIDE, SIDE):
            here = row, column
            lines.append(f"{row},{column},{angle[here]:.3f},{coherence[here]:.5f},{field[GIVEN][here]:.5f}")
        files = {f"{name}.csv": ("\n".join(lines) + "\n").encode()}
    elif kind == "png":
        degrees = (np.rint(angle) + 90).astype(np.int64) % 180
        levels = np.where(field[GIVEN] > 0.5, degrees, NOT_GIVEN).astype(np.uint8)
        pair = levels, np.rint(255 * np.minimum(coherence, 1)).astype(np.uint8)
        paths = [folder / file for file in both_names(name, kind)]
        for path, image in zip(paths, pair, strict=True):
            with written_whole(path) as aside:
                write_png(aside, image)
        return paths
    else:
        raise InputError(f"fibre field format {kind!r}: choose {', '.join(FORMATS)}")
    try:
        for file, data in files.items():
            write_whole(folder / file, data)
    except OSError as error:
        raise InputError(f"{folder}: cannot write ({error.strerror}); choose a writable folder") from None
    return [folder / file for file in files]


def _from_npz(data: bytes, path: Path) -> NDArray[np.float32]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if (size := archive.getinfo("fibre.npy").file_size) > LARGEST:  # a small file may unpack to a large one
                raise ValueError(f"{size} bytes unpacked")
            field = np.lib.format.read_array(io.BytesIO(archive.read("fibre.npy")), allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, SyntaxError, RuntimeError, MemoryError,
            OverflowError, zipfile.BadZipFile, zlib.error, struct.error) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:100]
        raise InputError(
            f"{path}: no array named fibre ({reason}); write it with np.savez(path, fibre=field)"
        ) from None
    if field.shape == (2, SIDE, SIDE):  # all of it given
        field = np.concatenate([field, np.ones((1, SIDE, SIDE), field.dtype)])
    return np.asarray(field, np.float32) if field.dtype == np.float64 else field


def _from_csv(data: bytes, path: Path) -> NDArray[np.float32]:
    field, seen = np.zeros(SHAPE), np.zeros((SIDE, SIDE), bool)
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode()), strict=True))
        for line, row in enumerate(rows, start=2):
            at = int(row["row"]), int(row["column"])
            if min(at) < 0 or max(at) >= SIDE or seen[at]:
                raise InputError(f"{path}: line {line}: cell {at} is named twice or outside 0 to {SIDE - 1}")
            angle, coherence = np.radians(2 * float(row["direction_deg"])), float(row["coherence"])
            given = float(row.get("given") or 1.0)
            field[:, at[0], at[1]] = coherence * np.cos(angle), coherence * np.sin(angle), given
            seen[at] = True
    except (ValueError, KeyError, TypeError, csv.Error) as error:  # bytes that are no text are a ValueError
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: not a fibre field ({reason}); the columns are {','.join(COLUMNS)}") from None
    return field.astype(np.float32)


def _read_pair(path: Path) -> Field:
    stem = path.name[: -len(DIRECTION)]  # both suffixes are of one length
    levels = read_context(path.with_name(stem + DIRECTION))
    coherence = read_context(path.with_name(stem + COHERENCE))
    if levels.shape != (SIDE, SIDE) or coherence.shape != (SIDE, SIDE):
        raise InputError(f"{path}: {levels.shape} and {coherence.shape}; a fibre field has {SIDE} x {SIDE} pixels")
    given = levels != NOT_GIVEN
    if levels[given].max(initial=0) > 179:
        raise InputError(f"{path}: level {levels[given].max()}; give degrees + 90, 0 to 179, or {NOT_GIVEN}")
    angle = np.radians(2.0 * (levels.astype(np.float64) - 90.0))
    length = np.where(given, coherence / 255.0, 0.0)
    return np.stack([length * np.cos(angle), length * np.sin(angle), given]).astype(np.float32)


def draw_field(image: Image, field: Field, *, colour: tuple[int, int, int] = (0, 200, 255)) -> Image:
    """The image (H, W, 3 BGR) with a line for each cell, along the fibres and as long as they are coherent."""
    import cv2

    canvas = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
    height, width = image.shape
    angle, coherence = directions(field)
    for row, column in np.ndindex(SIDE, SIDE):
        reach = 0.5 * coherence[row, column]
        middle = np.array([(column + 0.5) * width / SIDE, (row + 0.5) * height / SIDE])
        turn = np.radians(angle[row, column])
        step = reach * np.array([np.cos(turn) * width, -np.sin(turn) * height]) / SIDE
        start, stop = (np.rint(16 * (middle + sign * step)).astype(int).tolist() for sign in (-1, 1))
        cv2.line(canvas, start, stop, colour, max(1, width // 256), cv2.LINE_AA, 4)
    return canvas
