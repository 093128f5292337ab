"""What a validation found: figures with intervals, gates with limits. Plain data, written to and read from JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csg_edge.errors import InputError
from csg_edge.storage import write_json

FORMAT = 3  # 2 had figures of all sets together only; 1 also other names for the C2ST accuracy


@dataclass(frozen=True)
class Figure:
    """One measured number; `low` and `high` bound its 95 % interval over groups, None where it has none.

    `groups` is how many independent groups stand behind it; `note` says what a reader must know to trust it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    groups: int = 0
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """What was measured: the teacher, one engine, or real images against real images (the control)."""

    name: str  # "teacher", "openvino:CPU:bf16, 1 step", "real against real"
    kind: str  # teacher, engine or control
    images: int
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Gate:
    """One line of judgement, `name/SET` for one set; `passed` is None where it could not be judged, never a pass."""

    subject: str
    name: str
    value: float | None
    limit: str  # as a person reads it: "<= 0.0123 (1.10 x teacher)"
    passed: bool | None
    reason: str = ""
    counts: bool = True  # False for a line that says why something has no gate: it is no failure and no pass


@dataclass(frozen=True)
class Record:
    """A whole validation."""

    format: int
    bundle: str
    settings: Mapping[str, Any]  # data sets with image and group counts, seeds, images, mode
    environment: Mapping[str, Any]  # machine, versions, evaluator and bundle hashes
    subjects: tuple[Subject, ...]
    gates: tuple[Gate, ...]
    limits: tuple[str, ...]  # what these figures cannot show
    seconds: Mapping[str, float]  # time per stage

    @property
    def passed(self) -> bool:
        """Whether every gate passed; a gate that could not be judged has not."""
        judged = [gate for gate in self.gates if gate.counts]
        return bool(judged) and all(gate.passed for gate in judged)

    def write(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Record:
        """Raises InputError for a file that is no validation record of this format."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if (found := values["format"]) != FORMAT:
                raise ValueError(f"of format {found}, this csg-edge reads {FORMAT}")
            subjects = tuple(
                Subject(**{**item, "figures": {name: Figure(**figure) for name, figure in item["figures"].items()}})
                for item in values["subjects"]
            )
            gates = tuple(Gate(**item) for item in values["gates"])
            return cls(**{**values, "subjects": subjects, "gates": gates, "limits": tuple(values["limits"])})
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}: no validation record that can be read ({error}); run csg-edge validate again"
            ) from None
