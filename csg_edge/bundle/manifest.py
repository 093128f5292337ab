"""The bundle: a folder with manifest, graphs, engines, golden cases, model card and licences, every file hashed.

Standard library only. Reading checks everything a damaged or forged bundle could get wrong before any runtime sees a
file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from types import NoneType
from typing import Any, TypeVar

from csg_edge.errors import BundleError, CsgEdgeError, InputError
from csg_edge.labels import LabelSchema
from csg_edge.storage import write_json, write_whole

FORMAT = 3
READS = (2, 3)  # before 3 there was no fibre field
FIBRE_SHAPE = (3, 16, 16)  # as csg_edge.conditions.fibres.SHAPE, which needs OpenCV
MANIFEST_NAME = "manifest.json"
DIGEST_NAME = "manifest.sha256"  # the manifest hashes every other file; this hashes the manifest
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
MODELS = Path(__file__).parents[1] / "models"
# What JSON must hold for a field annotated so.
SCALARS: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "int | None": (int, NoneType),
    "str | None": (str, NoneType),
    "Mapping[str, Any]": dict,
}
STATES = ("verified", "unverified")

T = TypeVar("T")

Ports = dict[str, tuple[str, tuple[int, ...]]]
"""Name -> dtype and shape without the batch."""


@dataclass(frozen=True)
class Target:
    """Where an engine runs: runtime, device and precision, written `openvino:CPU:bf16`."""

    runtime: str
    device: str
    precision: str

    def __str__(self) -> str:
        return f"{self.runtime}:{self.device}:{self.precision}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Raises InputError unless `text` has three parts and a known precision."""
        parts = text.split(":")
        if len(parts) != 3 or not all(parts) or parts[2] not in PRECISIONS:
            raise InputError(
                f"target {text!r}: write runtime:device:precision with precision one of {', '.join(PRECISIONS)}"
            )
        return cls(*parts)


@dataclass(frozen=True)
class Tolerance:
    """What an engine may differ from the golden images.

    Grey levels and the share of pixels within them, and PSNR in dB.
    """

    levels: int
    share: float
    psnr: float


@dataclass(frozen=True)
class Graph:
    """An ONNX graph that engines are built from: mask, context, noise[, fibre] -> image[, fibre_used]."""

    steps: int
    precision: str
    batch: int | None  # None: free
    file: str
    error: Mapping[str, Any]  # ONNX Runtime on the CPU against the golden images, grey levels; for people


@dataclass(frozen=True)
class Engine:
    """One file that a runtime opens, for one target and number of steps.

    `built_with` is empty for a portable file (ONNX, OpenVINO IR); otherwise the builder, `tensorrt-rtx 1.7.1.116`,
    and only that version of the runtime opens the file. `state` is verified if the golden cases passed on the machine
    that added the engine, unverified if it lacked the device.
    """

    target: str
    steps: int
    file: str
    tolerance: Tolerance
    batch: int | None = None  # None: free
    built_with: str = ""
    state: str = "unverified"
    report: Mapping[str, Any] = field(default_factory=dict)  # how it was built; for people


def both_files(name: str) -> tuple[str, str]:
    """`NAME.direction.png` -> itself and `NAME.coherence.png`. Raises BundleError for another name."""
    stem = name.removesuffix(".direction.png")
    if stem == name:
        raise BundleError(f"{name!r}: a fibre field ends in .direction.png; export the bundle again")
    return name, f"{stem}.coherence.png"


@dataclass(frozen=True)
class GoldenCase:
    """Inputs and, per number of steps, the image the fp32 torch reference made of them.

    fibre: what is given of the fibre field, None for nothing; fibre_used: the field that the reference used, None where
    the bundle takes none. Both are the first of a pair of PNG files (`csg_edge.conditions.fibre_files`).
    """

    name: str
    mask: str
    context: str
    seed: int
    expected: Mapping[str, str]
    fibre: str | None = None
    fibre_used: str | None = None

    def files(self) -> list[str]:
        """All files that the case needs."""
        pairs = [name for field in (self.fibre, self.fibre_used) if field is not None for name in both_files(field)]
        return [self.mask, self.context, *self.expected.values(), *pairs]


@dataclass(frozen=True)
class FileEntry:
    """What a file of the bundle must be: SHA-256 in hex and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`. Paths are relative, with forward slashes, and all listed in `files`."""

    format: int
    name: str
    producer: str  # the csg-edge version that wrote it
    image_size: tuple[int, int]  # height, width
    noise_shape: tuple[int, int, int]  # channels, height, width
    labels: tuple[str, ...]
    graphs: tuple[Graph, ...]
    engines: tuple[Engine, ...]  # in order of preference
    golden: tuple[GoldenCase, ...]
    files: Mapping[str, FileEntry]
    export: Mapping[str, Any]  # how the graphs were made; for people
    fibre_shape: tuple[int, int, int] | None = None  # of the fibre field: channels, rows, columns; None: takes none

    @property
    def schema(self) -> LabelSchema:
        return LabelSchema(self.labels)

    @property
    def inputs(self) -> Ports:
        """What every graph and engine takes."""
        image = ("uint8", self.image_size)
        ports: Ports = {"mask": image, "context": image, "noise": ("float32", self.noise_shape)}
        return ports if self.fibre_shape is None else {**ports, "fibre": ("float32", self.fibre_shape)}

    @property
    def outputs(self) -> Ports:
        """What every graph and engine gives."""
        ports: Ports = {"image": ("uint8", self.image_size)}
        return ports if self.fibre_shape is None else {**ports, "fibre_used": ("float32", self.fibre_shape)}

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted({engine.steps for engine in self.engines}))


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and hashes have been checked."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which holds that of every other file."""
        return hashlib.sha256(self.file(MANIFEST_NAME).read_bytes()).hexdigest()


def find_bundle(name: str) -> Path:
    """A path to a bundle folder, or the name of one shipped in the package. Raises BundleError if there is neither."""
    for candidate in (Path(name), MODELS / name):
        if (candidate / MANIFEST_NAME).is_file():
            return candidate
    shipped = ", ".join(sorted(path.parent.name for path in MODELS.glob(f"*/{MANIFEST_NAME}"))) or "none"
    raise BundleError(
        f"{name}: no bundle there (no {MANIFEST_NAME}); give a bundle folder or a shipped name ({shipped})"
    )


def read_bundle(path: Path) -> Bundle:
    """Read and check a bundle: format, keys, paths, sizes and hashes.

    Raises BundleError naming the file and the remedy.
    """
    manifest = read_manifest(path / MANIFEST_NAME)
    _check_own_digest(path)
    for name, entry in manifest.files.items():
        _check_file(path, name, entry)
    return Bundle(path, manifest)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest without looking at the files it lists."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{path}: cannot read ({error.strerror}); give a bundle folder") from None
    except (ValueError, RecursionError):  # brackets without end
        raise BundleError(f"{path}: damaged (not JSON); copy the bundle again") from None
    found = values.get("format") if isinstance(values, dict) else None
    if found not in READS or isinstance(found, bool | float):
        raise BundleError(
            f"{path}: bundle format {found!r}, this csg-edge reads {' and '.join(map(str, READS))}; export it again or "
            "update csg-edge"
        )
    try:
        return _parse(values)
    except CsgEdgeError as error:
        raise BundleError(f"{path}: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path}: a value has the wrong type ({error}); export the bundle again") from None


def check_replaceable(out: Path) -> None:
    """Raise InputError if `out` is something other than a bundle, an empty folder or nothing yet."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file, not a folder; choose another folder")
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST_NAME).is_file():
        raise InputError(f"--out {out}: not empty and not a bundle; choose another folder")


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Hash every other file of the folder into the manifest, and the manifest into `manifest.sha256`.

    Returns the manifest with `files` filled.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    files = {name: _entry(directory / name) for name in names if name not in (MANIFEST_NAME, DIGEST_NAME)}
    manifest = replace(manifest, files=files, format=FORMAT)
    write_json(directory / MANIFEST_NAME, asdict(manifest))
    write_whole(directory / DIGEST_NAME, _digest_line(directory))
    return manifest


def _digest_line(directory: Path) -> str:
    # As `sha256sum` writes it, so that `sha256sum -c manifest.sha256` works too.
    return f"{_entry(directory / MANIFEST_NAME).sha256}  {MANIFEST_NAME}\n"


def _check_own_digest(directory: Path) -> None:
    path = directory / DIGEST_NAME
    if not path.is_file():
        raise BundleError(f"{path}: missing from the bundle; copy the bundle again")
    if path.read_bytes() != _digest_line(directory).encode():
        raise BundleError(f"{directory / MANIFEST_NAME}: does not match {DIGEST_NAME}; damaged, copy the bundle again")


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _check_file(root: Path, name: str, entry: FileEntry) -> None:
    path = root / name
    if not path.is_file():
        raise BundleError(f"{path}: missing from the bundle; copy the bundle again")
    if not path.resolve().is_relative_to(root.resolve()):
        raise BundleError(f"{path}: leads outside the bundle; do not use this bundle")
    try:
        found = _entry(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot read ({error.strerror}); check its permissions") from None
    if found != entry:
        raise BundleError(
            f"{path}: does not match its hash in {MANIFEST_NAME}; the file is damaged, copy the bundle again"
        )


def _parse(values: dict[str, Any]) -> Manifest:
    if values["format"] == 2:
        values = {**values, "fibre_shape": None}
        values["golden"] = [{**item, "fibre": None, "fibre_used": None} for item in values["golden"]]
    engines = tuple(
        _build(Engine, {**item, "tolerance": _build(Tolerance, item["tolerance"], "tolerance")}, "engine")
        for item in values["engines"]
    )
    graphs = tuple(_build(Graph, item, "graph") for item in values["graphs"])
    golden = tuple(_build(GoldenCase, item, "golden case") for item in values["golden"])
    files = {name: _build(FileEntry, item, f"file {name}") for name, item in values["files"].items()}
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or ":" in name:
            raise BundleError(f"file {name!r} leads outside the bundle; do not use this bundle")
    manifest = _build(
        Manifest,
        {
            **values,
            "image_size": _ints(values["image_size"], 2),
            "noise_shape": _ints(values["noise_shape"], 3),
            "fibre_shape": None if values["fibre_shape"] is None else _fibre_shape(values["fibre_shape"]),
            "labels": _labels(values["labels"]),
            "graphs": graphs,
            "engines": engines,
            "golden": golden,
            "files": files,
        },
        "manifest",
    )
    used = [graph.file for graph in graphs] + [engine.file for engine in engines]
    used += [file for case in golden for file in case.files()]
    for name in used:
        if name not in files:
            raise BundleError(f"{name!r} is used but not listed under files; export the bundle again")
    for engine in engines:
        Target.parse(engine.target)
        if engine.state not in STATES:
            raise BundleError(f"engine state {engine.state!r} is none of {', '.join(STATES)}; export the bundle again")
        for case in golden:
            if str(engine.steps) not in case.expected:
                raise BundleError(
                    f"golden case {case.name!r} has no image for steps {engine.steps}; export the bundle again"
                )
    return manifest


def _build(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
    unknown, missing = sorted(set(values) - known), sorted(known - set(values))
    if unknown or missing:
        raise BundleError(
            f"{what}: unknown keys {unknown}, missing keys {missing}; made by another csg-edge, export it again"
        )
    for item in fields(cls):  # type: ignore[arg-type]
        value, scalar = values[item.name], SCALARS.get(str(item.type))
        if scalar and (isinstance(value, bool) or not isinstance(value, scalar)):
            raise TypeError(f"{what}: {item.name} is {value!r}")
    return cls(**values)


def _labels(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"labels is {values!r}")
    return LabelSchema(tuple(values)).names


def _fibre_shape(values: Any) -> tuple[int, ...]:
    shape = _ints(values, 3)
    if shape != FIBRE_SHAPE:
        raise ValueError(f"fibre_shape {shape}; csg-edge knows {FIBRE_SHAPE}")
    return shape


def _ints(values: Any, count: int) -> tuple[int, ...]:
    if len(values) != count or any(type(value) is not int or value < 1 for value in values):
        raise ValueError(f"{values!r} is not {count} positive integers")
    return tuple(values)
