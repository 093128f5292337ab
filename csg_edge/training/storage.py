"""JSON files of model folders, and folders that are whole or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from csg_edge.errors import TrainingError


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write one JSON object, indented."""
    path.write_text(json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object. Raises TrainingError if the file is missing or holds anything else."""
    try:
        values = json.loads(path.read_text())
    except OSError:
        raise TrainingError(
            f"{path}: missing; give a folder written by `csg-edge train` or `distill`, or one as in "
            "docs/teacher-format.md"
        ) from None
    except ValueError as error:
        raise TrainingError(f"{path}: not JSON ({error}); copy the model again") from None
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: holds no JSON object; copy the model again")
    return values


@contextmanager
def folder_replaced(directory: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `directory` when the block ends without an error."""
    aside = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(aside, directory)
    except OSError as error:
        raise TrainingError(
            f"{directory}: cannot write ({error.strerror or error}); free disk space or choose another --out"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
