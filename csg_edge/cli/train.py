"""The commands that train: `train`, `train-autoencoder`, `distill`, `tune-int8`. Torch is imported inside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from csg_edge.cli.options import (
    FOLDER,
    QUALITY_EXTRA,
    SEED,
    data_option,
    need,
    need_training,
    out_option,
    seed_option,
)

if TYPE_CHECKING:
    import torch

    from csg_edge.training.loop import LoopConfig

NETWORKS = ("full", "nano")  # as csg_edge.training.student has them; it needs torch, and --help should not

precision_option = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Precision of training.",
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to train."
)

minutes_option = click.option(
    "--minutes",
    type=click.FloatRange(min=0.0, min_open=True),
    default=None,
    help="Train so long in place of --iterations, interruptions left out; the learning rate follows the clock.",
)
compile_option = click.option(
    "--compile/--no-compile",
    "compiled",
    default=False,
    show_default=True,
    help="Compile the network, which takes minutes to begin: measure whether it helps (docs/training.md). Needs a C++ "
    "compiler.",
)


def weight_option(name: str, text: str) -> Callable[[Any], Any]:
    """The weight of a term of a loss, 0 if not given."""
    return click.option(name, type=click.FloatRange(min=0.0), default=0.0, show_default=True, help=text)


def training_loop(device: str, precision: str, **given: Any) -> tuple[torch.device, LoopConfig]:
    """Options of a command -> the device to train on and the settings of its loop; `given` as LoopConfig has them."""
    from csg_edge.training.device import choose_device, choose_precision
    from csg_edge.training.loop import LoopConfig

    where = choose_device(device)
    return where, LoopConfig(**given, precision=choose_precision(precision, where))


@click.command()
@click.option(
    "--config",
    type=FOLDER,
    default=None,
    help="TOML file that describes the run (docs/training.md); options win over it.",
)
@click.option("--data", multiple=True, type=FOLDER, help="Labelled set, or a folder of sets; may be repeated.")
@out_option
@click.option(
    "--schema",
    type=click.Choice(["msk", "own"]),
    default=None,
    help="Classes of the masks: our musculoskeletal ones, or those of the sets.  [default: msk, or that of --init]",
)
@click.option(
    "--autoencoder",
    type=FOLDER,
    default=None,
    help="Folder of a learned autoencoder (`train-autoencoder`).  [default: a block DCT, or that of --init]",
)
@click.option("--init", type=FOLDER, default=None, help="Teacher folder to start from, to fine-tune or extend it.")
@click.option("--share", "shares", multiple=True, help="SET=NUMBER: how often a set is drawn, 1 if not given.")
@click.option("--image-size", type=int, default=None, help="Side of the images, a multiple of 32.  [default: 256]")
@click.option("--dropout", type=float, default=None, help="Share of masks and of contexts dropped.  [default: 0.1]")
@click.option(
    "--fibres/--no-fibres",
    default=None,
    help="Whether the direction of fibres is a condition.  [default: yes, or as --init has it]",
)
@click.option(
    "--prior-iterations",
    type=int,
    default=None,
    help="Of the fibre prior, trained after the teacher; 0 keeps that of --init.  [default: 6000]",
)
@click.option("--iterations", type=int, default=None, help="May be raised when resuming.  [default: 3000]")
@minutes_option
@click.option("--batch", type=int, default=None, help="Images per iteration.  [default: 16]")
@click.option("--learning-rate", type=float, default=None, help="Step size of the optimiser.  [default: 0.0004]")
@compile_option
@click.option("--sheet-every", type=int, default=None, help="Iterations between sample sheets.  [default: 500]")
@click.option("--seed", type=SEED, default=None, help="The same seed gives the same run.  [default: 0]")
@device_option
@precision_option
def train(
    config: Path | None, out: Path, shares: tuple[str, ...], device: str, precision: str, compiled: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Train a teacher; run the same command again to resume. Writes OUT/teacher.

    OUT also holds losses.csv, TensorBoard's files and, now and then, a sheet of samples.
    """
    need_training()
    from csg_edge.training.config import parse_shares, read_run
    from csg_edge.training.device import check_compiler, choose_device, choose_precision
    from csg_edge.training.teacher import train as train_teacher

    where = choose_device(device)
    if compiled:
        check_compiler(where)
    # The file may name a precision; the option wins over it, and the hardware decides where neither does.
    chosen = None if precision == "auto" else precision
    run = read_run(
        config,
        {**given, "shares": parse_shares(shares), "precision": chosen},
        precision=choose_precision("auto", where),
    )
    finished = train_teacher(run.teacher, run.loop, out=out, device=where, compiled=compiled)
    click.echo(f"teacher in {out / 'teacher'}" + ("" if finished else "; stopped early, run the same command to go on"))


@click.command("train-autoencoder")
@data_option
@out_option
@click.option("--channels", default=4, show_default=True, help="Latent channels.")
@click.option(
    "--downsample", default=8, show_default=True, help="Image pixels per latent pixel, each way: 2, 4, 8, 16."
)
@click.option(
    "--width",
    default=16,
    show_default=True,
    help="Feature channels at full size; decoding at 256 x 256 costs 4 GMAC with 16, 15 with 32.",
)
@click.option("--size", default=256, show_default=True, help="Side of the images.")
@click.option("--iterations", default=10_000, show_default=True, help="May be raised when resuming.")
@click.option("--batch", default=8, show_default=True, help="Images per iteration.")
@click.option("--learning-rate", default=2e-4, show_default=True, help="Step size of the optimiser.")
@seed_option
@device_option
@precision_option
def train_autoencoder(
    data: tuple[Path, ...], out: Path, channels: int, downsample: int, width: int, size: int, iterations: int,
    batch: int, learning_rate: float, seed: int, device: str, precision: str,
) -> None:  # fmt: skip
    """Train a KL autoencoder for latent diffusion; run the same command again to resume. Writes OUT/autoencoder."""
    need_training()
    from csg_edge.training import fit_autoencoder

    where, loop = training_loop(
        device, precision, iterations=iterations, batch=batch, learning_rate=learning_rate, seed=seed
    )
    config = fit_autoencoder.AutoencoderConfig(
        data, image_size=size, channels=channels, downsample=downsample, width=width
    )
    finished = fit_autoencoder.train_autoencoder(config, loop, out=out, device=where)
    click.echo(
        f"autoencoder in {out / 'autoencoder'}" + ("" if finished else "; stopped early, run the same command to go on")
    )


@click.command()
@click.argument("teacher", type=FOLDER)
@data_option
@out_option
@click.option(
    "--trajectories", default=2048, show_default=True, help="Teacher trajectories to regress on; they stay on disk."
)
@click.option(
    "--trajectories-in",
    type=FOLDER,
    default=None,
    help="Folder to keep trajectories in, to make several students of them.  [default: OUT/trajectories]",
)
@click.option("--guidance", default=1.0, show_default=True, help="Classifier-free guidance baked into the student.")
@click.option(
    "--teacher-steps",
    type=int,
    default=None,
    help="Sampling steps of a teacher in diffusers layout; as its csg.json says if not given.",
)
@click.option(
    "--steps", default="1,2,4", show_default=True, help="Numbers of denoiser evaluations to learn, by one student."
)
@click.option(
    "--network",
    type=click.Choice(NETWORKS),
    default=NETWORKS[0],
    show_default=True,
    help="Size of the student: full, or nano, a quarter of the work.",
)
@weight_option(
    "--texture",
    "Weight of the difference in local power of the bands and at seams; 0.1 or 0.2 where images come out soft.",
)
@weight_option("--seams", "Weight of the error at the borders of the block DCT's blocks; 8 where a grid shows.")
@weight_option(
    "--relative", "Weight of the error relative to the local power of each band; 0.5 where shadows come out grainy."
)
@weight_option(
    "--orientation", "Weight of the difference in local orientation; 0.5 where fibres come out with too little order."
)
@weight_option(
    "--segmentation",
    "Weight of segmentation consistency: as much of each class as in real images; 1 where Dice has fallen. Needs the "
    "quality extra, whose segmenter is fitted first, beside the trajectories.",
)
@weight_option(
    "--feature-matching",
    "Weight of feature matching, which brings back what all images miss alike; 10 for the last few hundred iterations. "
    "Needs the quality extra, whose encoder is fitted first, beside the trajectories.",
)
@compile_option
@click.option(
    "--init", type=FOLDER, default=None, help="Student of this teacher to train on.  [default: the teacher's weights]"
)
@click.option("--share", "shares", multiple=True, help="SET=NUMBER: how often a set is drawn, 1 if not given.")
@click.option("--iterations", default=1500, show_default=True, help="May be raised when resuming.")
@minutes_option
@click.option("--batch", default=16, show_default=True, help="Images per iteration.")
@click.option("--learning-rate", default=2e-4, show_default=True, help="Step size of the optimiser.")
@seed_option
@device_option
@precision_option
def distill(
    teacher: Path, data: tuple[Path, ...], out: Path, trajectories: int, trajectories_in: Path | None, guidance: float,
    teacher_steps: int | None, steps: str, network: str, texture: float, seams: float, relative: float,
    orientation: float, segmentation: float, feature_matching: float, compiled: bool, init: Path | None,
    shares: tuple[str, ...], iterations: int, minutes: float | None, batch: int, learning_rate: float, seed: int,
    device: str, precision: str,
) -> None:  # fmt: skip
    """Distil a teacher into a few-step student; run the same command again to resume. Writes OUT/student.

    The student is a network made for kernels: dense convolutions, no attention, constants in place of norms
    (docs/student.md). Of a teacher of `csg-edge train` it starts with the weights.

    TEACHER is a folder of `csg-edge train`, or your own model in diffusers layout (docs/teacher-format.md).
    """
    need_training()
    from csg_edge.training.config import parse_shares
    from csg_edge.training.device import check_compiler
    from csg_edge.training.distil import LossTerms, check_terms, distil
    from csg_edge.training.process import parse_steps
    from csg_edge.training.student import continue_student, start_student
    from csg_edge.training.teachers import load_teacher
    from csg_edge.training.trajectories import Trajectories, TrajectoryConfig, make_trajectories

    where, loop = training_loop(
        device, precision, iterations=iterations, minutes=minutes or 0.0, batch=batch, learning_rate=learning_rate,
        seed=seed, warmup=200 if init is None else 50,  # an optimiser without memory, but weights that know the way
    )  # fmt: skip
    wanted = parse_steps(steps)
    if compiled:
        check_compiler(where)
    model = load_teacher(teacher, steps=teacher_steps)
    # Refused before hours of trajectories, not after.
    terms = LossTerms(texture, seams, relative, orientation, segmentation, feature_matching)
    check_terms(terms, model.autoencoder, batch=batch)
    if segmentation or feature_matching:
        need(*QUALITY_EXTRA, extra="quality")
    going_on = None if init is None else continue_student(init, model, steps=wanted)
    folder = trajectories_in or out / "trajectories"
    config = TrajectoryConfig(data, trajectories, guidance, seed, parse_shares(shares))
    finished = make_trajectories(model, config, folder, device=where, precision=loop.precision)
    if finished:
        stored = Trajectories(folder, trajectories)
        features = consistency = None
        if segmentation:
            from csg_edge.training.segmentation_consistency import fit_segmentation_consistency

            consistency = fit_segmentation_consistency(model, list(data), folder / "segmentation", batch=batch)
            finished = consistency is not None
        if finished and feature_matching:
            from csg_edge.training.feature_matching import fit_matched_features

            features = fit_matched_features(
                model, stored, list(data), folder / "feature-matching", precision=loop.precision
            )
            finished = features is not None
    if finished:
        student, deviation = going_on or start_student(model, stored, network=network, steps=wanted, seed=seed)
        finished = distil(
            student,
            stored,
            loop,
            terms=terms,
            features=features,
            consistency=consistency,
            deviation=deviation,
            compiled=compiled,
            out=out,
            device=where,
        )
    click.echo(
        f"student in {out / 'student'}" if finished else f"stopped early; run the same command to go on in {out}"
    )


@click.command("tune-int8")
@click.argument("student", type=FOLDER)
@data_option
@out_option
@click.option("--iterations", default=300, show_default=True, help="May be raised when resuming.")
@click.option("--batch", default=16, show_default=True, help="Images per iteration.")
@click.option("--learning-rate", default=2e-5, show_default=True, help="Step size of the optimiser.")
@seed_option
@device_option
@precision_option
def tune_int8(
    student: Path, data: tuple[Path, ...], out: Path, iterations: int, batch: int, learning_rate: float, seed: int,
    device: str, precision: str,
) -> None:  # fmt: skip
    """Fine-tune a student to bear int8; run the same command again to resume. Writes OUT/student.

    What it learns is to make its own images of before, with rounded weights and activations. For where `csg-edge
    calibrate` says that int8 misses its quality by calibration alone; export and calibrate the student it writes.
    """
    need_training()
    from csg_edge.training import int8_tuning
    from csg_edge.training.model import CsgModel

    where, loop = training_loop(
        device, precision, iterations=iterations, batch=batch, learning_rate=learning_rate, warmup=20, ema=0.99,
        seed=seed,
    )  # fmt: skip
    finished = int8_tuning.tune_int8(CsgModel.load(student), list(data), loop, out=out, device=where)
    click.echo(
        f"student in {out / 'student'}" if finished else f"stopped early; run the same command to go on in {out}"
    )
