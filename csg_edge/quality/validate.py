"""One validation from end to end: cases, images, figures, gates, report."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from csg_edge import __version__
from csg_edge.bundle.manifest import Bundle, Target, find_bundle, read_bundle
from csg_edge.datasets.labelled_set import LabelledSet, find_sets, read_set
from csg_edge.errors import InputError
from csg_edge.generation.doctor import processor_name
from csg_edge.generation.generator import Generator
from csg_edge.generation.loading import load
from csg_edge.labels import NO_MASK
from csg_edge.noise import check_seed
from csg_edge.progress import Progress
from csg_edge.quality.cases import Cases, RealData, Reference, fingerprint, make_with_engine, plan_cases, read_real
from csg_edge.quality.comparison import FULL_GROUPS
from csg_edge.quality.evaluators import LIMITS, SHIPPED, load_evaluators
from csg_edge.quality.gates import judge
from csg_edge.quality.measure import STAGES, Measured, Yardstick, measure_control, measure_generated
from csg_edge.quality.record import FORMAT, Gate, Record, Subject
from csg_edge.storage import written_whole

if TYPE_CHECKING:
    from csg_edge.quality.turing import Study

FULL_IMAGES = 250
GATE_IMAGES = 126


@dataclass(frozen=True)
class Settings:
    """What to validate, on what."""

    bundle: str
    data: tuple[Path, ...]
    targets: tuple[str, ...] = ()  # empty: the engine `auto` takes
    steps: tuple[int, ...] = (1,)
    teacher: Reference | None = None
    reference: Path | None = None  # an earlier report.json on the same cases, for the teacher's figures
    images: int = FULL_IMAGES
    split: str = "val"
    seed: int = 0
    gates_only: bool = False
    usefulness: bool = False
    evaluators: Path = SHIPPED

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass
class Clock:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 1)


@dataclass(frozen=True)
class Validation:
    """The record and what its pictures are drawn from."""

    record: Record
    measured: tuple[Measured, ...]
    cases: Cases
    real: RealData
    labels: tuple[str, ...]


def validate(settings: Settings, out: Path) -> Validation:
    """Measure every engine, the teacher and the control, and judge the engines.

    Generated images are kept in `out/images`, so that a run that was stopped goes on. Raises InputError for data,
    options or a reference that do not fit together, before anything is generated.
    """
    clock = Clock()
    bundle = read_bundle(find_bundle(settings.bundle))
    height, width = bundle.manifest.image_size
    if height != width:
        raise InputError(
            f"bundle {bundle.manifest.name} makes {height} x {width} images; evaluators judge squares only"
        )
    if settings.images < 2:
        raise InputError(f"--images {settings.images}: give at least 2; figures settle at some hundred")
    engines = [(target, steps) for target in settings.targets or ("auto",) for steps in settings.steps]
    with clock.stage("reading"):
        evaluators = load_evaluators(settings.evaluators, schema=bundle.manifest.schema)
        real = read_real(settings.data, bundle.manifest.schema, size=height, split=settings.split)
        cases = plan_cases(real.held_out, count=settings.images, seed=settings.seed, spare=real.train)
        borrowed = _borrow(settings.reference, cases) if settings.reference else None
        # What cannot be read or run is refused before the minutes that follow.
        key = settings.teacher.key if settings.teacher else ""
        for target, steps in engines:
            _open(settings.bundle, target, steps).close()
    with clock.stage("describing real images"):
        yardstick = Yardstick.prepare(real, evaluators, seed=settings.seed)
    pixels = not settings.gates_only
    with clock.stage("control"):
        control = measure_control(yardstick, pixels=pixels, note=_note("control", 1))
    measured = [control]
    if settings.teacher:
        measured.append(_measure_teacher(settings, settings.teacher, key, cases, yardstick, clock=clock, out=out))
    teacher = measured[-1].subject if settings.teacher else borrowed
    gates: list[Gate] = []
    for target, steps in engines:
        found = _measure_engine(settings, target, steps, cases, yardstick, clock=clock, out=out)
        measured.append(found)
        gates += judge(found.subject, teacher, control.subject)
    subjects = [item.subject for item in measured]
    if borrowed and not settings.teacher:
        subjects.insert(1, borrowed)
    if settings.usefulness:
        with clock.stage("usefulness"):
            subjects += _usefulness(settings, engines[0], real, out / "usefulness.csv")
    record = Record(
        format=FORMAT,
        bundle=bundle.manifest.name,
        settings=_settings(settings, real, cases),
        environment=_environment(bundle, evaluators.sha256),
        subjects=tuple(subjects),
        gates=tuple(gates),
        limits=(*LIMITS, *_limits(real, bundle)),
        seconds=clock.seconds,
    )
    return Validation(record, tuple(measured), cases, real, bundle.manifest.labels)


def write(found: Validation, out: Path) -> None:
    """Write report.html and report.json. Raises InputError where they cannot be written."""
    from csg_edge.quality.pictures import choose_pictures
    from csg_edge.quality.report import write_report

    pictures = choose_pictures(found.measured, found.cases, found.real, found.labels)
    write_report(found.record, pictures, out)


def write_study(settings: Settings, count: int, out: Path) -> Study:
    """Write a blinded reader study: `count` images, half of them held-out real ones, half made by the first engine."""
    from csg_edge.quality.turing import make_study

    bundle = read_bundle(find_bundle(settings.bundle))
    real = read_real(settings.data, bundle.manifest.schema, size=bundle.manifest.image_size[0], split=settings.split)
    # More than are shown, so that pairs can be matched.
    cases = plan_cases(real.held_out, count=max(2 * count, len(real.held_out)), seed=settings.seed, spare=real.train)
    with _open(settings.bundle, settings.targets[0] if settings.targets else "auto", settings.steps[0]) as generator:
        made = make_with_engine(generator, cases, label="study")
    return make_study(real.held_out, made.take(range(cases.single)), out, count=count, seed=settings.seed)


def register_study(settings: Settings, count: int, path: Path) -> str:
    """Draw the cases of a reader study once and write them to `path`; returns their hash."""
    from csg_edge.quality.registered import register, write_registration

    manifest = read_bundle(find_bundle(settings.bundle)).manifest
    real = read_real(settings.data, manifest.schema, size=manifest.image_size[0], split=settings.split)
    cases = plan_cases(
        real.held_out, count=max(2 * count, len(real.held_out)), seed=settings.seed, spare=real.train
    )  # fmt: skip
    found = register(
        real.held_out, cases, count=count, classes=manifest.labels, split=settings.split, seed=settings.seed
    )
    write_registration(found, path)
    return found.sha256


def write_registered(settings: Settings, registration: Path, out: Path) -> Study:
    """Write the reader study of registered cases, its synthetic images made by the first engine."""
    from csg_edge.quality.registered import make_registered, read_registration

    registered = read_registration(registration)
    with _open(settings.bundle, settings.targets[0] if settings.targets else "auto", settings.steps[0]) as generator:
        manifest = generator.bundle.manifest
        real = read_real(settings.data, manifest.schema, size=registered.image_size, split=registered.split)
        about = {
            "bundle": manifest.name, "bundle_manifest_sha256": _digest(generator.bundle.path / "manifest.json"),
            "engine": generator.engine.target, "steps": str(settings.steps[0]),
        }  # fmt: skip
        return make_registered(registered, LabelledSet.join([real.held_out, real.train]), generator, out, bundle=about)


def _measure_teacher(
    settings: Settings, teacher: Reference, key: str, cases: Cases, yardstick: Yardstick, *, clock: Clock, out: Path
) -> Measured:
    with clock.stage("teacher images"):
        made = _kept(
            out / "images" / f"teacher-{key}-{fingerprint(cases)}.npy",
            cases,
            lambda: teacher.make(cases),
        )
    with clock.stage("teacher figures"):
        pixels = not settings.gates_only
        return measure_generated(
            "teacher", "teacher", made, cases, yardstick, pixels=pixels, note=_note("teacher", STAGES)
        )


def _measure_engine(
    settings: Settings, target: str, steps: int, cases: Cases, yardstick: Yardstick, *, clock: Clock, out: Path
) -> Measured:
    with _open(settings.bundle, target, steps) as generator:
        engine = generator.engine
        label = f"{engine.target}, {steps} step{'s' * (steps > 1)}"
        entry = generator.bundle.manifest.files[engine.file]
        key = f"{engine.target.replace(':', '-')}-{steps}-{entry.sha256[:16]}-{fingerprint(cases)}"
        with clock.stage(f"images of {label}"):
            made = _kept(out / "images" / f"{key}.npy", cases, lambda: make_with_engine(generator, cases, label=label))
    with clock.stage(f"figures of {label}"):
        return measure_generated(
            label, "engine", made, cases, yardstick, pixels=not settings.gates_only, note=_note(label, STAGES)
        )


def _open(bundle: str, target: str, steps: int) -> Generator:
    if target == "auto":
        return load(bundle, steps=steps)
    wanted = Target.parse(target)
    return load(bundle, runtime=wanted.runtime, device=wanted.device, precision=wanted.precision, steps=steps)


def _kept(path: Path, cases: Cases, make: Callable[[], LabelledSet]) -> LabelledSet:
    """The images in `path` if an earlier run left them there, else new ones, which are left there."""
    wanted = (len(cases), *cases.wanted.images.shape[1:])
    if path.is_file():
        images = np.load(path, allow_pickle=False)
        if images.shape == wanted and images.dtype == np.uint8:
            return cases.made(images)
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside, aside.open("wb") as file:
        np.save(file, made.images)
    return made


def _borrow(path: Path, cases: Cases) -> Subject:
    record = Record.read(path)
    teachers = [subject for subject in record.subjects if subject.kind == "teacher"]
    if not teachers:
        raise InputError(f"--reference {path}: no teacher in that report; give one made with --teacher")
    if record.settings.get("cases") != fingerprint(cases):
        raise InputError(
            f"--reference {path}: it judged other cases; give the same --data, --split, --images, --seed, or --teacher"
        )
    return teachers[0]


def _usefulness(settings: Settings, engine: tuple[str, int], real: RealData, table: Path) -> list[Subject]:
    from csg_edge.quality.usefulness import UsefulnessConfig, measure_usefulness, usefulness_subjects

    config = UsefulnessConfig()
    with _open(settings.bundle, *engine) as generator:
        schema, size = generator.bundle.manifest.schema, generator.bundle.manifest.image_size[0]
        train = [
            read_set(directory, schema, split="train", size=size)
            for root in settings.data for directory in find_sets(root)
        ]  # fmt: skip
        scores = measure_usefulness(generator, train, real.held_out, config, table=table)
    return usefulness_subjects(scores, seed=settings.seed)


def _note(label: str, stages: int) -> Callable[[str], None]:
    progress = Progress(label, stages, unit="stages")
    return lambda stage: progress.advance(note=stage)


def _settings(settings: Settings, real: RealData, cases: Cases) -> dict[str, object]:
    return {
        "cases": fingerprint(cases), "images": cases.single, "repeated_under_another_seed": cases.pairs,
        "seed": settings.seed, "split": settings.split, "mode": "gates only" if settings.gates_only else "full",
        "guidance_of_teacher": settings.teacher.guidance if settings.teacher else 1.0, "sets": real.sets,
    }  # fmt: skip


def _environment(bundle: Bundle, evaluators: dict[str, str]) -> dict[str, object]:
    return {
        "csg_edge": __version__, "processor": processor_name(), "cores": os.cpu_count(), "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "torch", "torchmetrics", "monai", "scikit-learn", "scipy")},
        "bundle_manifest_sha256": _digest(bundle.path / "manifest.json"),
        **{f"{name}_sha256": digest for name, digest in evaluators.items()},
    }  # fmt: skip


def _limits(real: RealData, bundle: Bundle) -> list[str]:
    seen = set(np.unique(real.held_out.masks).tolist()) - {NO_MASK}
    absent = [name for index, name in enumerate(bundle.manifest.labels) if index not in seen]
    lines = [f"{len(real.held_out)} held-out real images of {real.groups} groups: intervals are over groups."]
    few = [
        f"{name} ({counts['held_out_groups']})"
        for name, counts in real.sets.items()
        if counts["held_out_groups"] < FULL_GROUPS
    ]
    if few:
        lines.append(
            f"Sets with fewer than {FULL_GROUPS} held-out groups have no gate of their own, no C2ST and no KID: "
            f"{', '.join(few)}. Where only one group is held out, contexts come from train groups."
        )
    if absent:
        lines.append(f"No held-out image shows {', '.join(absent)}: nothing here was measured about them.")
    return lines


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def chosen_steps(text: str, available: Sequence[int]) -> tuple[int, ...]:
    """`1,4` -> (1, 4). Raises InputError for numbers that the bundle does not have."""
    try:
        steps = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        steps = ()
    if not steps or not set(steps) <= set(available):
        raise InputError(f"--steps {text}: give numbers among {', '.join(map(str, available))}, separated by commas")
    return steps
