"""JSON files of model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from csg_edge.errors import TrainingError


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object. Raises TrainingError if the file is missing or holds anything else."""
    try:
        values = json.loads(path.read_text())
    except OSError:
        raise TrainingError(
            f"{path}: missing; give a folder written by `csg-edge train` or `distill`, or one as in "
            "docs/teacher-format.md"
        ) from None
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{path}: not JSON ({error}); copy the model again") from None
    if not isinstance(values, dict):
        raise TrainingError(f"{path}: holds no JSON object; copy the model again")
    return values
