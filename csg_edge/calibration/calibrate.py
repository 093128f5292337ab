"""One calibration from end to end: samples, ranking, precision search, gates, and what earned it into the bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from csg_edge.bundle.manifest import Bundle, Engine, Target, check_replaceable
from csg_edge.calibration import report as reporting
from csg_edge.calibration.artefacts import Workshop, check_quantisers, family_of, fp32_graph, install
from csg_edge.calibration.compare import Tried, compare_recipes, write_tried
from csg_edge.calibration.layers import layers_of
from csg_edge.calibration.outcome import Agreement, Outcome, Row, Settings
from csg_edge.calibration.quality import Judge, Quality, Seen
from csg_edge.calibration.samples import draw_samples, read_list, read_samples, write_list
from csg_edge.calibration.search import Attempt, baselines, kept_images, search
from csg_edge.calibration.sensitivity import Sensitivity, rank_layers, worth_it
from csg_edge.datasets.labelled_set import Image
from csg_edge.errors import InputError
from csg_edge.export.build import check_builder, growing
from csg_edge.export.inspect import files_of
from csg_edge.export.targets import EXACT, check_target
from csg_edge.generation.generator import Generator, open_engine
from csg_edge.machine import processor_name
from csg_edge.progress import Progress
from csg_edge.runtimes.ort import OnnxRuntime

RANKED = 6  # samples that layers are ranked on: the order settles long before the ranges do


def parse_targets(texts: Sequence[str]) -> tuple[Target, ...]:
    """Raises InputError for a target that is not offered or not int8."""
    targets = tuple(check_target(text) for text in dict.fromkeys(texts))
    for target in targets:
        if target.precision != "int8":
            raise InputError(f"--target {target}: calibration is for int8; `csg-edge build` makes the others")
    return targets


def calibrate(bundle: Bundle, settings: Settings, *, out: Path) -> Outcome:
    """Calibrate, search, judge, and write the bundle with the engines that passed to `out`; the report in any case.

    What was measured and made is kept in `settings.report`, so that a calibration that was stopped goes on. If no
    engine passed, no bundle is written.

    Raises InputError for data, samples or options that cannot be used, BundleError for a bundle without fp32 graph,
    RuntimeUnavailableError for a quantiser or builder that is not installed, EngineError for a graph that one refuses.
    """
    check_replaceable(out)
    shop = _prepare(bundle, settings)
    for target in settings.targets:
        for steps in settings.steps:
            if shop.here(target) and not baselines(bundle, target, steps):
                raise InputError(
                    f"--target {target}: the bundle has no engine of {steps} steps in 16 or 32 bits for "
                    f"{target.runtime}:{target.device} to be faster than; add one with `csg-edge build`"
                )
    judge = Judge.prepare(settings.data, bundle.manifest, images=settings.images, seed=settings.seed)
    shop.folder.mkdir(parents=True, exist_ok=True)
    write_list(settings.report / "samples.csv", shop.samples.samples)
    outcome = Outcome(shop.samples.samples, shop.samples.fingerprint)
    for steps in settings.steps:
        _calibrate_steps(shop, settings, judge, steps, outcome)
    reporting.write(outcome, settings, bundle)
    if accepted := [attempt for attempt in outcome.chosen if attempt.passed]:
        with growing(bundle, out) as work:
            for attempt in accepted:
                install(work, attempt.artefact, Target.parse(attempt.target), _provenance(attempt, outcome, settings))
            for name in ("samples.csv", *(f"sensitivity-steps-{steps}.csv" for steps in settings.steps)):
                target_path = work.path / "calibration" / name
                target_path.parent.mkdir(exist_ok=True)
                target_path.write_bytes((settings.report / name).read_bytes())
    return outcome


def compare(bundle: Bundle, settings: Settings) -> list[Tried]:
    """Try every recipe and write `recipes.csv`; no bundle is changed. Raises as `calibrate` does."""
    shop = _prepare(bundle, settings)
    found = compare_recipes(bundle, shop.samples, settings.targets, settings.steps, shop.folder)
    write_tried(settings.report / "recipes.csv", found)
    return found


def _prepare(bundle: Bundle, settings: Settings) -> Workshop:
    """Everything that can be refused before anything is measured."""
    check_quantisers({family_of(target) for target in settings.targets})
    for target in settings.targets:
        check_builder(target)
    manifest = bundle.manifest
    if unknown := sorted(set(settings.steps) - set(manifest.steps)):
        raise InputError(f"--steps {unknown[0]}: the bundle has {', '.join(map(str, manifest.steps))}")
    samples = (
        read_list(settings.list, count=settings.samples)
        if settings.list
        else draw_samples((*settings.data, *settings.extra), count=settings.samples, seed=settings.seed)
    )
    for steps in settings.steps:
        for batch in (1, None):
            fp32_graph(bundle, steps, batch)
    calibration = read_samples((*settings.data, *settings.extra), samples, manifest)
    return Workshop(bundle, calibration, settings.recipe, settings.report / "work")


def _calibrate_steps(shop: Workshop, settings: Settings, judge: Judge, steps: int, outcome: Outcome) -> None:
    ranking = _rank(shop, steps)
    outcome.rankings[steps] = ranking
    student = judge.look(_student_images(shop, judge, steps))
    figures = judge.measure(student)
    measured: dict[str, Row] = {}
    made: dict[str, Image] = {}
    for target in settings.targets:
        found = None
        for attempt in search(shop, judge, target, ranking, student, figures, steps):
            outcome.attempts.append(attempt)
            found = attempt if found is None or attempt.passed else found
        assert found is not None
        outcome.chosen.append(found)
        made[found.target] = found.images
        if shop.here(target):
            for row in _baseline_rows(shop, judge, target, found, student, figures, steps):
                measured.setdefault(row.target, row)
        verdict = "passed" if found.passed else "failed: " + ", ".join(g.name for g in found.gates if not g.passed)
        measured[found.target] = Row(found.target, steps, found.artefact.size, found.timing, found.quality, verdict)
    outcome.rows += measured.values()
    for first, second in combinations(made, 2):
        outcome.agreements.append(
            Agreement(
                steps, first, second, root_mean_square(made[first], made[second]),
                *(root_mean_square(made[name], student.samples.images) for name in (first, second)),
            )
        )  # fmt: skip


def root_mean_square(images: Image, others: Image) -> float:
    """Of the differences of two stacks of images, in grey levels."""
    return float(np.sqrt(np.mean(np.square(images.astype(np.float32) - others.astype(np.float32)))))


def _rank(shop: Workshop, steps: int) -> tuple[Sensitivity, ...]:
    model = shop.model(steps, 1)
    layers = layers_of(model)
    feeds = [shop.samples.feeds(index) for index in range(min(RANKED, len(shop.samples)))]
    progress = Progress(f"ranking, steps {steps}", len(worth_it(layers)), unit="layers")
    kept_at = shop.folder / f"ranking-steps-{steps}-{shop.key(steps, ranked=len(feeds))}.jsonl"
    return rank_layers(model, layers, shop.ranges(steps), feeds, kept_at=kept_at, note=progress.advance)


def _student_images(shop: Workshop, judge: Judge, steps: int) -> Image:
    """The fp32 student's images, by ONNX Runtime from the bundle's own graph."""
    graph = shop.graph(steps, None)
    engine = Engine("onnxruntime:CPU:fp32", steps, graph.file, EXACT)
    runtime = OnnxRuntime.open(shop.bundle.file(graph.file), device="CPU", precision="fp32")
    with Generator(shop.bundle, engine, runtime) as generator:
        name = f"images-fp32-steps-{steps}-{shop.key(steps)}-{judge.fingerprint}.npy"
        return kept_images(shop.folder / name, judge, generator, f"fp32 student, steps {steps}")


def _baseline_rows(
    shop: Workshop, judge: Judge, target: Target, attempt: Attempt, student: Seen, figures: Quality, steps: int
) -> Iterator[Row]:
    for engine in baselines(shop.bundle, target, steps):
        with open_engine(shop.bundle, engine) as generator:
            name = f"images-{engine.target.replace(':', '-')}-steps-{steps}-{shop.key(steps)}-{judge.fingerprint}.npy"
            images = kept_images(shop.folder / name, judge, generator, f"{engine.target}, steps {steps}")
        size = sum(shop.bundle.manifest.files[name].size for name in files_of(shop.bundle, engine))
        quality = judge.measure(judge.look(images), student)
        yield Row(engine.target, steps, size, attempt.timings.get(engine.target), quality, "")


def _provenance(attempt: Attempt, outcome: Outcome, settings: Settings) -> dict[str, object]:
    """What the manifest says of an int8 engine, for people; `speed_up` is there only where it was timed."""
    quality = attempt.quality
    found: dict[str, object] = {
        "samples": len(outcome.samples), "samples_sha256": outcome.fingerprint, "recipe": settings.recipe.name,
        "made_with": attempt.artefact.made_with, "in_16_or_32_bit": list(attempt.kept),
        "psnr_to_fp32": quality.psnr, "kid": quality.kid.value, "dice": quality.dice,
        "spectrum_gap": quality.spectrum_gap, "golden_psnr": attempt.golden.to_json()["psnr"],
    }  # fmt: skip
    if attempt.speed_up is not None:
        found |= {"speed_up": round(attempt.speed_up, 3), "over": attempt.best, "on": processor_name()}
    return found
