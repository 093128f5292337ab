"""What is not in the plan: layout, sizes, checks, who does the work; and what is opened for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from csg_edge.augment.dicom_files import DicomWriter
from csg_edge.augment.plan import Plan
from csg_edge.augment.sources import TEXT_CHOICES, Sources
from csg_edge.augment.writers import SIZES, FolderWriter, NnunetWriter, Writer, check_names
from csg_edge.conditions import dicom
from csg_edge.errors import InputError
from csg_edge.generation.generator import Generator

FORMATS = ("same", "folder", "nnunet", "dicom")
ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Options:
    """What is not in the plan. size: `source` or `model`; text: `skip` or `crop`; real: whether real images go along;
    checked: whether images are checked; segmenter: a folder of evaluators, None for the shipped ones."""

    format: str = "same"
    size: str = "source"
    text: str = "skip"
    real: bool = True
    checked: bool = True
    segmenter: Path | None = None

    def __post_init__(self) -> None:
        for option, value, choices in (
            ("--format", self.format, FORMATS), ("--size", self.size, SIZES), ("--burned-in", self.text, TEXT_CHOICES)
        ):  # fmt: skip
            if value not in choices:
                raise InputError(f"{option} {value}: choose {', '.join(choices)}")


@dataclass(frozen=True)
class Scale:
    """Who does the work: this process, or Ray with so many workers, here or at an address."""

    engine: str = "local"
    workers: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise InputError(f"--engine {self.engine}: choose {', '.join(ENGINES)}")
        if self.workers < 1:
            raise InputError(f"--workers {self.workers}: give at least 1")
        if self.engine == "local" and self.address is not None:
            raise InputError("--ray-address: it goes with --engine ray")


HERE = Scale()


def open_sources(directory: Path, plan: Plan, generator: Generator, options: Options) -> Sources:
    """The set as the plan and the bundle see it, contexts looked at. Raises InputError for what cannot be used."""
    manifest = generator.bundle.manifest
    plan.check(manifest.schema)
    sources = Sources(
        directory, manifest.schema, manifest.image_size, contexts=plan.contexts, text=options.text,
        own=plan.select == "own", folds=_format(directory, options) == "nnunet",
    )  # fmt: skip
    check_names(sources)
    sources.look_for_text()
    return sources


def open_writer(sources: Sources, out: Path, options: Options, *, job: str, began: str) -> Writer:
    """What writes the kind of set that was asked for. job, began: as `dicom_files.DicomWriter` has them."""
    kind, anonymous = _format(sources.set.path, options), not options.real
    if kind == "dicom" or (options.format == "same" and dicom.is_dicom(sources.set.images[0].path)):
        return DicomWriter(sources, out, anonymous=anonymous, job=job, began=began)
    return (NnunetWriter if kind == "nnunet" else FolderWriter)(sources, out, anonymous=anonymous)


def _format(directory: Path, options: Options) -> str:
    if options.format != "same":
        return options.format
    return (
        "nnunet" if (directory / "dataset.json").is_file() and not (directory / "manifest.csv").is_file() else "folder"
    )
