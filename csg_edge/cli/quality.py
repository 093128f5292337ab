"""`csg-edge validate` and `csg-edge fit-evaluators`. Torch is imported when they run, not before."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from csg_edge.cli.options import (
    FOLDER,
    QUALITY_EXTRA,
    SEED,
    bundle_option,
    data_option,
    json_option,
    need,
    print_json,
    seed_option,
)


@click.command()
@bundle_option
@click.option(
    "--target", "targets", multiple=True,
    help="Engine to judge, runtime:device:precision; may be repeated. What `auto` takes if not given.",
)  # fmt: skip
@click.option("--steps", default="1", show_default=True, help="Numbers of steps to judge, separated by commas.")
@click.option(
    "--data", multiple=True, type=FOLDER, help="Labelled set, or a folder of sets, with train and held-out groups."
)
@click.option("--out", type=FOLDER, help="Folder to write: report.html, report.json, the images judged.")
@click.option("--teacher", type=FOLDER, help="Teacher folder, measured side by side; most gates need its figures.")
@click.option("--guidance", default=1.0, show_default=True, help="Guidance of the teacher, as baked into the student.")
@click.option(
    "--reference", type=FOLDER, help="report.json of an earlier run on the same cases, in place of --teacher."
)
@click.option("--images", type=int, default=None, help="Images per engine; 250, or 126 with --gates-only.")
@click.option("--split", default="val", show_default=True, help="Split of the data to judge on; never trained on.")
@click.option("--seed", default=0, type=SEED, show_default=True, help="Chooses cases, seeds and resamplings.")
@click.option("--gates-only", is_flag=True, help="The quick form: fewer images, no C2ST on pixels.")
@click.option("--usefulness", is_flag=True, help="Also train segmenters with and without synthetic images (an hour).")
@click.option("--evaluators", type=FOLDER, default=None, help="Evaluators fitted to your own data.")
@click.option("--turing", type=int, default=None, help="Write a blinded reader study of N images to --out instead.")
@click.option(
    "--register",
    type=FOLDER,
    default=None,
    help="Draw the cases of a study of --turing N images once, into this file; no image is made.",
)
@click.option(
    "--registered",
    type=FOLDER,
    default=None,
    is_flag=False,
    flag_value="shipped",
    help="Write the study of registered cases to --out: of a file, or without one those shipped.",
)
@click.option("--score", type=FOLDER, default=None, help="Score a reader study: its key.json; answers as arguments.")
@json_option
@click.argument("answers", nargs=-1, type=FOLDER)
def validate(
    bundle: str, targets: tuple[str, ...], steps: str, data: tuple[Path, ...], out: Path | None, teacher: Path | None,
    guidance: float, reference: Path | None, images: int | None, split: str, seed: int, gates_only: bool,
    usefulness: bool, evaluators: Path | None, turing: int | None, register: Path | None, registered: Path | None,
    score: Path | None, as_json: bool, answers: tuple[Path, ...],
) -> None:  # fmt: skip
    """Are the images good? Exits with 1 unless every gate passed.

    Judges the images of one engine or several against held-out real images and against the teacher: Dice of the
    masks, KID, spectrum gap, speckle, grey levels, C2ST accuracy, contexts, diversity, memorisation rate. With
    --turing a blinded reader study is written; --score KEY ANSWERS... scores what its readers sent.
    """
    need(*QUALITY_EXTRA, extra="quality")
    if score is not None:
        _score(score, answers, as_json=as_json)
        return
    if answers:
        raise click.UsageError(f"{answers[0]}: unexpected argument; answers belong to --score KEY")
    if register is not None and (turing is None or registered is not None):
        raise click.UsageError("--register: give --turing N with it, the images of the study, and no --registered")
    if not data or (out is None and register is None):
        raise click.UsageError("give --data (a labelled set) and --out (a folder to write)")
    from csg_edge.bundle.manifest import find_bundle, read_manifest
    from csg_edge.quality import validate as validation
    from csg_edge.quality.evaluators import SHIPPED
    from csg_edge.training.reference import TeacherReference

    settings = validation.Settings(
        bundle=bundle, data=data, targets=targets,
        steps=validation.chosen_steps(steps, read_manifest(find_bundle(bundle) / "manifest.json").steps),
        teacher=None if teacher is None else TeacherReference(teacher, guidance), reference=reference,
        images=images if images is not None else validation.GATE_IMAGES if gates_only else validation.FULL_IMAGES,
        split=split, seed=seed, gates_only=gates_only, usefulness=usefulness, evaluators=evaluators or SHIPPED,
    )  # fmt: skip
    if register is not None and turing is not None:
        click.echo(
            f"{turing} cases registered in {register}: sha256 {validation.register_study(settings, turing, register)}"
        )
        return
    assert out is not None
    if turing is not None or registered is not None:
        if registered is None:
            study = validation.write_study(settings, turing or 0, out)
        else:
            from csg_edge.quality.registered import SHIPPED as SHIPPED_STUDY

            file = SHIPPED_STUDY if str(registered) == "shipped" else registered
            study = validation.write_registered(settings, file, out)
        for line in study.notes:
            click.echo(line)
        click.echo(f"study of {study.images} images in {out}: hand out index.html, keep key.json")
        return
    found = validation.validate(settings, out)
    validation.write(found, out)
    if as_json:
        click.echo((out / "report.json").read_text(encoding="utf-8"))
    else:
        from csg_edge.quality.report import summary_lines

        for line in summary_lines(found.record):
            click.echo(line)
        click.echo(f"report in {out / 'report.html'}")
    sys.exit(0 if found.record.passed else 1)


def _score(key: Path, answers: tuple[Path, ...], *, as_json: bool) -> None:
    from csg_edge.quality.turing_score import score_study

    if not answers:
        raise click.UsageError("--score: give the CSV files of the readers as arguments")
    score = score_study(key, answers)
    if as_json:
        print_json(score.to_json())
    else:
        for line in score.lines():
            click.echo(line)


@click.command()
@data_option
@click.option(
    "--out", required=True, type=FOLDER, help="Folder to write the evaluators to; checkpoints go to OUT/runs."
)
@click.option("--segmenter-iterations", default=3000, show_default=True, help="May be raised when resuming.")
@click.option("--encoder-iterations", default=500, show_default=True, help="May be raised when resuming.")
@seed_option
def fit_evaluators(
    data: tuple[Path, ...], out: Path, segmenter_iterations: int, encoder_iterations: int, seed: int
) -> None:
    """Fit the segmenter and the encoder that judge images, on train groups; run again to resume."""
    need(*QUALITY_EXTRA, extra="quality")
    import torch

    from csg_edge.labels import MSK_SCHEMA
    from csg_edge.training.device import choose_precision
    from csg_edge.training.fit_evaluators import FitConfig
    from csg_edge.training.fit_evaluators import fit_evaluators as fit

    config = FitConfig(
        data, segmenter_iterations=segmenter_iterations, encoder_iterations=encoder_iterations, seed=seed,
        precision=choose_precision("auto", torch.device("cpu")),
    )  # fmt: skip
    finished = fit(config, MSK_SCHEMA, runs=out / "runs", out=out)
    click.echo(f"evaluators in {out}" if finished else "stopped early; run the same command to go on")
