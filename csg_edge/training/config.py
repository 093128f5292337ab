"""The TOML file that describes a training run; options of `csg-edge train` win over it.

data = ["ultrasound", "phantom"]   # folders are relative to this file
image_size = 256
shares = { phantom = 0.4 }         # how often a set is drawn against the others
init = "earlier/teacher"
[network]
widths = [64, 128, 192]
deeper = 2
[optimisation]
iterations = 3000
learning_rate = 4e-4
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from csg_edge.errors import TrainingError
from csg_edge.labels import MSK_SCHEMA
from csg_edge.training.loop import LoopConfig
from csg_edge.training.networks import NetworkConfig
from csg_edge.training.teacher import TeacherConfig

DERIVED = (
    "classes",
    "latent_channels",
    "patch",
    "context_channels",
)  # of a network: they follow from the label schema and autoencoder
DEFAULT_ITERATIONS = 3000
PATHS = ("data", "init", "autoencoder")


@dataclass(frozen=True)
class TrainingRun:
    """What to train and how."""

    teacher: TeacherConfig
    loop: LoopConfig


def read_run(path: Path | None, given: Mapping[str, Any], *, precision: str) -> TrainingRun:
    """The run that a file and the options beside it describe.

    path: the file, or None. given: values by name, None where an option was not used. precision: for a run that names
    none. Raises TrainingError for an
    unreadable file, an unknown or misplaced key, a value of another type, or a run without data or iterations.
    """
    values = _read(path) if path else {}
    sections = {
        "": (TeacherConfig, {key: value for key, value in values.items() if not isinstance(value, dict)}),
        "network": (NetworkConfig, values.pop("network", {})),
        "optimisation": (LoopConfig, values.pop("optimisation", {})),
    }
    if isinstance(values.get("shares"), dict):
        sections[""][1]["shares"] = tuple(
            (name, _number(path, name, share)) for name, share in values["shares"].items()
        )
    stray = [key for key, value in values.items() if isinstance(value, dict) and key != "shares"]
    if stray:
        raise TrainingError(f"{path}: unknown section [{stray[0]}]; the sections are [network] and [optimisation]")
    checked = {section: _check(path, section, kind, found) for section, (kind, found) in sections.items()}
    for name, value in given.items():
        if value is None or value == ():
            continue
        section = "optimisation" if name in {item.name for item in fields(LoopConfig)} else ""
        checked[section][name] = value
    if not checked[""].get("data"):
        raise TrainingError("no data to train on; give --data FOLDER, or data = [...] in the file of --config")
    network = (
        NetworkConfig(classes=len(MSK_SCHEMA), **{"fibres": True, **checked["network"]}) if checked["network"] else None
    )
    return TrainingRun(
        TeacherConfig(**checked[""], network=network),
        LoopConfig(**{"iterations": DEFAULT_ITERATIONS, "precision": precision, **checked["optimisation"]}),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise TrainingError(f"{path}: cannot read ({error.strerror}); give a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TrainingError(f"{path}: not TOML ({error}); see docs/training.md") from None


def _check(path: Path | None, section: str, kind: type, values: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    where = f"{path}: [{section}] " if section else f"{path}: "
    known = [name for name in hints if name not in DERIVED and name != "network"]
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise TrainingError(f"{where}unknown key {name}; the keys are {', '.join(known)}")
        if name in PATHS and path:
            folders = [value] if isinstance(value, str) else value
            if not isinstance(folders, list) or not all(isinstance(item, str) for item in folders):
                raise TrainingError(f"{where}{name}: {value!r} is not a folder or a list of folders")
            found = tuple(path.parent / item for item in folders)
            checked[name] = found if name == "data" else found[0]
        else:
            checked[name] = _convert(f"{where}{name}", hints[name], value)
    return checked


def _convert(where: str, wanted: Any, value: Any) -> Any:
    """A TOML value as the field's type; a whole number serves as a float."""
    if isinstance(wanted, UnionType):
        wanted = next(item for item in get_args(wanted) if item is not NoneType)
    if get_origin(wanted) is tuple and isinstance(value, list):
        return tuple(_convert(where, get_args(wanted)[0], item) for item in value)
    if get_origin(wanted) is tuple and isinstance(value, tuple):
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(wanted, type) or type(value) is not wanted:
        name = getattr(wanted, "__name__", str(wanted))
        raise TrainingError(f"{where}: {value!r} is not of type {name}")
    return value


def parse_shares(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """["phantom=0.4"] -> (("phantom", 0.4),). Raises TrainingError for anything else."""
    shares = []
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not name or not 0.0 <= share < math.inf:
            raise TrainingError(f"--share {text}: write SET=NUMBER with a number of 0 or more, like phantom=0.4")
        shares.append((name, share))
    return tuple(shares)


def _number(path: Path | None, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise TrainingError(f"{path}: shares.{name}: {value!r} is not a number of 0 or more")
    return float(value)
