"""A benchmark from start to end: which engines, in which order, and one record of everything.

Every visit to an engine is a process of its own, and in each round the engines take turns, so that a slow minute of
the machine hits all of them. The record is rewritten after every task: what is measured stays, whatever happens next.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from csg_edge.benchmarks.environment import Watch, describe_machine, snapshot
from csg_edge.benchmarks.files import FORMAT, LOGS, RECORD, SAMPLES, Record, file_name, write_samples
from csg_edge.benchmarks.loadgen import check_loadgen
from csg_edge.benchmarks.roofline import achieved
from csg_edge.benchmarks.scenarios import Plan
from csg_edge.benchmarks.summary import runtime_milliseconds, stage_times, summarise_scenario
from csg_edge.benchmarks.systems import make_library
from csg_edge.benchmarks.tasks import StoppedError, cold_starts, run_task
from csg_edge.bundle.manifest import MANIFEST_NAME, Bundle, Engine, find_bundle, read_bundle
from csg_edge.errors import InputError
from csg_edge.generation.selection import identity, why_not
from csg_edge.progress import Progress
from csg_edge.storage import write_json

PEAK_SECONDS = {"short": 0.15}  # per shape and number format
PEAK_SECONDS_ELSE = 1.0
PROFILE_LIMIT, PEAK_LIMIT = 600.0, 600.0


@dataclass(frozen=True)
class Settings:
    """What to measure. targets: all engines of the bundle if empty; quality: a validation record to quote."""

    bundle: str
    plan: Plan
    targets: tuple[str, ...] = ()
    steps: tuple[int, ...] = (1,)
    threads: int | None = None
    quality: Path | None = None
    cold: bool = True
    profile: bool = True
    roofline: bool = True


@dataclass(frozen=True)
class Subject:
    """One row: an engine of the bundle, or a stand-in of the self-test. `request` is what its worker needs."""

    label: str
    target: str
    steps: int
    request: Mapping[str, Any]
    engine: Engine | None = None


def measure(settings: Settings, out: Path) -> Record:
    """Measure engines of a bundle and write `out`; the record says by `state` whether it is complete.

    Raises InputError, before anything runs, for a wrong option or a folder that cannot be written;
    RuntimeUnavailableError without LoadGen.
    """
    check_loadgen()
    bundle = read_bundle(find_bundle(settings.bundle))
    engines = choose_engines(bundle, settings.targets, settings.steps)
    quality = read_quality(settings.quality, bundle) if settings.quality else {}
    check_out(out)
    plan = settings.plan
    with tempfile.TemporaryDirectory(prefix="csg-edge-bench-") as folder:
        library = Path(folder) / "library.npz"
        masks, contexts = make_library(plan.library, size=bundle.manifest.image_size[0], seed=plan.seed)
        np.savez(library, masks=masks, contexts=contexts)
        common = {
            "bundle": str(bundle.path.resolve()), "library": str(library), "seed": plan.seed,
            "threads": settings.threads,
        }  # fmt: skip
        subjects = [
            Subject(
                f"{engine.target}, {engine.steps} step{'s' * (engine.steps > 1)}", engine.target, engine.steps,
                {**common, "target": engine.target, "steps": engine.steps}, engine,
            )
            for engine in engines
        ]  # fmt: skip
        record = _new_record(settings, bundle.manifest.name)
        record["bundle_manifest_sha256"] = manifest_hash(bundle)
        session = Session(record, out, plan)
        for subject in subjects:
            row = session.add(subject)
            assert subject.engine is not None
            row |= {
                "file": subject.engine.file,
                "sha256": bundle.manifest.files[subject.engine.file].sha256,
                "identity": identity(bundle, subject.engine),
                "threads_asked": settings.threads,
                "quality": quality.get(subject.label),
            }
            if reason := why_not(subject.engine):
                row["status"], row["reason"] = "not run", reason
        return session.run(settings, subjects, bundle)


def measure_stand_ins(stand_ins: Mapping[str, Mapping[str, Any]], plan: Plan, out: Path) -> Record:
    """The same path for systems of known latency: label -> arguments of `systems.StandIn`."""
    check_loadgen()
    check_out(out)
    settings = Settings("none", plan, cold=False, profile=False, roofline=False)
    session = Session(_new_record(settings, "none (stand-ins)"), out, plan)
    subjects = [
        Subject(label, label, 0, {"stand_in": dict(values), "seed": plan.seed}) for label, values in stand_ins.items()
    ]
    for subject in subjects:
        session.add(subject)
    return session.run(settings, subjects, None)


class Session:
    """A record that grows, and its folder."""

    def __init__(self, record: Record, out: Path, plan: Plan) -> None:
        self.record, self.out, self.plan = record, out, plan
        self.rows: dict[str, Record] = {}
        self.runs: dict[str, list[Record]] = {}  # the workers' results, round by round

    def add(self, subject: Subject) -> Record:
        """A row for a subject, not reached yet."""
        row: Record = {
            "label": subject.label, "target": subject.target, "steps": subject.steps, "status": "not reached",
            "reason": "", "scenarios": {},
        }  # fmt: skip
        self.record["engines"].append(row)
        self.rows[subject.label], self.runs[subject.label] = row, []
        return row

    def run(self, settings: Settings, subjects: Sequence[Subject], bundle: Bundle | None) -> Record:
        """Every task in order; ends early, with what there is, on Ctrl-C."""
        runnable = [subject for subject in subjects if self.rows[subject.label]["status"] != "not run"]
        tasks = self._tasks(settings, runnable)
        progress = Progress("bench", len(tasks), unit="tasks")
        watch = Watch()
        self.record |= {"busy_before": watch.busy, "before": watch.before}
        self.record["warnings"] += (said := watch.warnings)
        try:
            for note, task in tasks:
                task()
                self._conclude(bundle, final=False)
                progress.advance(note=note)
            self.record["state"] = "complete"
        except (StoppedError, KeyboardInterrupt):
            self.record["state"] = "partial"
            self.record["warnings"].append("stopped before the end: what follows is what was measured until then")
        watch.end()
        self.record |= {"after": watch.after, "stolen": watch.stolen}
        self.record["warnings"] += watch.warnings[len(said) :]
        self.record["ended"] = _now()
        self._conclude(bundle, final=True)
        return self.record

    def _tasks(self, settings: Settings, subjects: Sequence[Subject]) -> list[tuple[str, Callable[[], None]]]:
        tasks: list[tuple[str, Callable[[], None]]] = []
        if settings.roofline and subjects:
            tasks.append(("peaks of the machine", lambda: self._peaks(settings)))
        for turn in range(self.plan.rounds):
            # Every other round backwards, so that none is always first.
            for subject in subjects if turn % 2 == 0 else list(reversed(subjects)):
                tasks.append((subject.label, lambda s=subject, t=turn: self._latency(s, t)))  # type: ignore[misc]
        for subject in subjects:
            if settings.profile and self.plan.profiled_images:
                tasks.append((f"profile of {subject.label}", lambda s=subject: self._profile(s)))  # type: ignore[misc]
            if settings.cold and self.plan.cold_starts:
                tasks.append((f"cold starts of {subject.label}", lambda s=subject: self._cold(s)))  # type: ignore[misc]
        return tasks

    def _peaks(self, settings: Settings) -> None:
        seconds = PEAK_SECONDS.get(self.plan.mode, PEAK_SECONDS_ELSE)
        request = {"task": "peaks", "seconds": seconds, "threads": settings.threads}
        result = run_task(request, limit=PEAK_LIMIT)
        self.record["peaks"] = result.get("peaks") or {"failed": result["reason"]}

    def _latency(self, subject: Subject, turn: int) -> None:
        row = self.rows[subject.label]
        if row["status"] == "failed":
            return
        request = {
            **subject.request, "task": "latency", "scenarios": [asdict(item) for item in self.plan.scenarios],
            "warm_up": self.plan.warm_up, "seed": self.plan.seed + turn,
            "logs": str((self.out / LOGS / file_name(subject.label) / f"round-{turn + 1}").resolve()),
        }  # fmt: skip
        limit = 300.0 + 5.0 * sum(item.max_seconds for item in self.plan.scenarios)
        before = snapshot()
        try:
            result = run_task(request, limit=limit)
        except StoppedError as stopped:
            if stopped.result is not None:
                self._take(subject, stopped.result, before)
                row["status"] = "partial"
            raise
        self._take(subject, result, before)

    def _take(self, subject: Subject, result: Record, before: Record) -> None:
        row = self.rows[subject.label]
        row["status"], row["reason"] = result["status"], result["reason"]
        result["before"], result["after"] = before, snapshot()
        self.runs[subject.label].append(result)

    def _profile(self, subject: Subject) -> None:
        row = self.rows[subject.label]
        if row["status"] != "failed":
            request = {**subject.request, "task": "profile", "images": self.plan.profiled_images, "warm_up": 3}
            result = run_task(request, limit=PROFILE_LIMIT)
            row["profile"] = result.get("profile") or {"failed": result["reason"]}

    def _cold(self, subject: Subject) -> None:
        row = self.rows[subject.label]
        if row["status"] != "failed":
            row["cold"] = cold_starts(subject.request, self.plan.cold_starts)

    def _conclude(self, bundle: Bundle | None, *, final: bool) -> None:
        """Bring the rows up to date with the runs, and write everything."""
        for label, runs in self.runs.items():
            row = self.rows[label]
            if not runs:
                continue
            row["rounds"] = len(runs)
            row["scenarios"] = {
                scenario.name: found
                for scenario in self.plan.scenarios
                if (found := summarise_scenario(runs, scenario.name, seed=self.plan.seed)) is not None
            }
            for key in ("effective_precision", "runtime_versions", "memory_mb", "host"):
                row[key] = next((run[key] for run in reversed(runs) if key in run), None)
            row["clocks"] = [{"before": run["before"], "after": run["after"]} for run in runs]
            if final and row["status"] == "ok" and len(runs) < self.plan.rounds:
                row["status"] = "partial"
            row["stages"] = stage_times(row)
            if bundle is not None and "gflops" in self.record.get("peaks", {}):
                row["roofline"] = self._roofline(bundle, row)
            write_samples(self.out / SAMPLES / f"{file_name(label)}.csv", runs)
        write_json(self.out / RECORD, self.record, indent=1)

    def _roofline(self, bundle: Bundle, row: Record) -> Record | None:
        stages, runtime_ms = _work(bundle, row["steps"]), runtime_milliseconds(row)
        if stages is None or runtime_ms is None or row["effective_precision"] is None:
            return None
        if not row["target"].split(":")[1].startswith("CPU"):
            return None  # the peaks are the CPU's
        return achieved(
            stages, milliseconds=runtime_ms, precision=row["effective_precision"], peaks=self.record["peaks"],
            stages_ms=(row.get("profile") or {}).get("stages_ms"),
        )  # fmt: skip


def choose_engines(bundle: Bundle, targets: Sequence[str], steps: Sequence[int]) -> list[Engine]:
    """Those of the bundle with these targets (all if none is named) and steps. Raises InputError for one it lacks."""
    offered = list(dict.fromkeys(engine.target for engine in bundle.manifest.engines))
    for target in targets:
        if target not in offered:
            raise InputError(f"--target {target}: bundle {bundle.manifest.name} has {', '.join(offered)}")
    if unknown := [count for count in steps if count not in bundle.manifest.steps]:
        known = ", ".join(map(str, bundle.manifest.steps))
        raise InputError(f"--steps {unknown[0]}: bundle {bundle.manifest.name} has steps {known}")
    wanted = targets or offered
    return [
        engine for count in steps for engine in bundle.manifest.engines
        if engine.steps == count and engine.target in wanted
    ]  # fmt: skip


def check_out(out: Path) -> None:
    """Raise InputError unless results can be written to the folder and none lie there yet."""
    if (out / RECORD).exists():
        raise InputError(f"--out {out}: holds an earlier benchmark; choose another folder or move it away")
    probe = out / f".probe-{os.getpid()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InputError(f"--out {out}: cannot write ({error.strerror or error}); choose a writable folder") from None


def read_quality(path: Path, bundle: Bundle) -> dict[str, Any]:
    """Engine label -> its figures, from a validation record of this very bundle. Raises InputError for another file."""
    from csg_edge.quality.record import Record as Validation

    record = Validation.read(path)
    if record.environment.get("bundle_manifest_sha256") != manifest_hash(bundle)[:16]:
        return {}
    return {
        subject.name: {
            "images": subject.images,
            "record": path.name,
            "figures": {name: [figure.value, figure.low, figure.high] for name, figure in subject.figures.items()},
            "gates_failed": [g.name for g in record.gates if g.subject == subject.name and g.passed is False],
        }
        for subject in record.subjects
        if subject.kind == "engine"
    }


def manifest_hash(bundle: Bundle) -> str:
    """SHA-256 of the manifest, which holds the hash of every other file."""
    return hashlib.sha256((bundle.path / MANIFEST_NAME).read_bytes()).hexdigest()


def _new_record(settings: Settings, bundle: str) -> Record:
    return {
        "format": FORMAT, "kind": "csg-edge bench", "state": "partial", "bundle": bundle, "began": _now(),
        "plan": settings.plan.to_json(), "threads_asked": settings.threads, "machine": describe_machine(),
        "warnings": [], "engines": [],
    }  # fmt: skip


def _work(bundle: Bundle, steps: int) -> dict[str, dict[str, Any]] | None:
    """Per stage of the graph: parameters, MACs, activations; None without onnx."""
    if find_spec("onnx") is None:
        return None
    from csg_edge.export.inspect import stages_of
    from csg_edge.export.weights import read_graph

    for graph in bundle.manifest.graphs:
        if graph.batch == 1 and graph.steps == steps:
            return stages_of(read_graph(bundle.file(graph.file), weights=False))
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
