"""Teacher, prior, trajectories and student in the minutes that a GPU is lent, and what came of it in small files.

    csg-edge pack --data SETS --split train --out gpu-job/sets.safetensors --limit-mb 35
    cp -r export/msk-256.teacher gpu-job/teacher                # to start from; the student starts from its weights
    python export/gpu/run.py gpu-job --out OUT --minutes 11     # on the machine with the GPU
    python export/gpu/join.py OUT --to runs/gpu                 # anywhere: teacher and student as folders again

A run that was cut off goes on when the same command is run again: every stage is resumed, and the budget counts what
the stages took. OUT holds at most 8 files of at most 16 MiB: weights in fp16 and in parts, the log, loss curves and one
contact sheet. `--device cpu --minutes 1 --tiny` tries the whole path on any machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PART = 15 << 20  # bytes of a part of the weights
# Shares of the minutes that are left when a stage begins; what a stage leaves over goes to the next.
SHARES = {"teacher": 0.62, "trajectories": 0.35}  # the student takes the rest
GUIDANCE = 1.5
SHARD = 32  # trajectories in a file, as csg_edge.training.trajectories has it
RESERVE = 40.0  # seconds for the sheet and for writing
SETS = ("dltrack_aponeurosis=1", "usgra_nerve_vessel=1.2", "timtrack_muscle=0.5", "ultrabones_lower_leg=0.25",
        "ccaus_carotid=0.15", "phantom=0.4")  # fmt: skip
DRAWN = ("dltrack_aponeurosis=3", "usgra_nerve_vessel=4")


@dataclass(frozen=True)
class Sizes:
    """How much is done at once, for a GPU or, tiny, for a trial."""

    batch: int = 256
    student_batch: int = 128
    phantoms: int = 1000
    prior_iterations: int = 3000
    trajectories: int = 40_000  # at most; the clock ends it
    learning_rate: float = 4e-4
    image_size: int = 256


TINY = Sizes(batch=2, student_batch=2, phantoms=24, prior_iterations=2, trajectories=32, image_size=256)


class Clock:
    """Seconds left of the budget, over all runs of the same work folder."""

    def __init__(self, minutes: float, path: Path) -> None:
        self._path, self._begun = path, time.monotonic()
        self._earlier = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
        self._budget = 60.0 * minutes

    @property
    def left(self) -> float:
        taken = self._earlier + time.monotonic() - self._begun
        self._path.write_text(json.dumps({"seconds": taken}))
        return self._budget - RESERVE - taken


class Run:
    """Stages as commands of csg-edge, each with what it says in the log."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.job, self.out, self.work = arguments.job, arguments.out, arguments.work
        self.sizes = TINY if arguments.tiny else Sizes()
        self.device, self.compile = arguments.device, not arguments.tiny
        for folder in (self.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.clock = Clock(arguments.minutes, self.work / "clock.json")
        self.onnxruntime = self.work / "onnxruntime-gpu"  # a build with CUDA's provider, if one was brought along
        self.log = self.out / "log.txt"

    def do(self, *command: object) -> int:
        """Run `csg-edge COMMAND`; what it says goes to the log."""
        return self.python("-m", "csg_edge", *command)

    def python(self, *command: object) -> int:
        """Run `python COMMAND`; what it says goes to the log."""
        text = [str(part) for part in command]
        self.say(f"== {' '.join(text)}")
        path = os.pathsep.join([str(self.onnxruntime), *sys.path[1:]] if self.onnxruntime.exists() else sys.path[1:])
        with self.log.open("a") as log:
            code = subprocess.run(
                [sys.executable, *text], stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path}, check=False
            ).returncode
        self.say(f"== exit {code}, {self.clock.left:.0f} s left")
        return code

    def say(self, text: str) -> None:
        print(text, flush=True)
        with self.log.open("a") as log:
            log.write(text + "\n")

    def options(self) -> list[object]:
        return ["--device", self.device, *(["--compile"] if self.compile else [])]

    def data(self) -> list[object]:
        return ["--data", self.job / "sets.safetensors", "--data", self.work / "phantom"]

    def phantom(self) -> None:
        if not (self.work / "phantom/manifest.csv").exists():
            self.do("phantom", "--out", self.work / "phantom", "--count", self.sizes.phantoms, "--seed", 0,
                    "--size", self.sizes.image_size)  # fmt: skip

    def teacher(self) -> None:
        done = self.work / "teacher/done"
        if done.exists():
            return
        minutes = self.lasting("teacher", self.clock.left * SHARES["teacher"])
        sizes = self.sizes
        code = self.do(
            "train", *self.data(), *(part for share in SETS if self._has(share) for part in ("--share", share)),
            "--init", self.job / "teacher", "--fibres", "--out", self.work / "teacher", "--minutes", minutes,
            "--batch", sizes.batch, "--learning-rate", sizes.learning_rate,
            "--prior-iterations", sizes.prior_iterations, "--sheet-every", 0, *self.options(),
        )  # fmt: skip
        if code:
            raise SystemExit(f"the teacher failed; see {self.log}")
        done.touch()

    def lasting(self, stage: str, seconds: float) -> float:
        """Minutes of a stage. A run that goes on keeps the end that it began with."""
        kept = self.work / stage / "minutes.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            kept.write_text(json.dumps(max(seconds, 1.0) / 60))
        return float(json.loads(kept.read_text()))

    def _has(self, share: str) -> bool:
        """Whether the set of a share is there."""
        from csg_edge.datasets.packed import packed_names

        return share.split("=")[0] in {"phantom", *packed_names(self.job / "sets.safetensors")}

    def trajectories(self) -> None:
        """As many as the minutes allow, in this process."""
        import torch

        from csg_edge.training.config import parse_shares
        from csg_edge.training.device import choose_precision
        from csg_edge.training.model import CsgModel
        from csg_edge.training.trajectories import TrajectoryConfig, make_trajectories

        kept = self.work / "student/count.json"
        if kept.exists():
            return
        folder = self.work / "student/trajectories"
        data = tuple(Path(str(part)) for part in self.data()[1::2])
        config = TrajectoryConfig(data, self.sizes.trajectories, GUIDANCE, 0, parse_shares(self._drawn()))
        device = torch.device(self.device)
        make_trajectories(
            CsgModel.load(self.work / "teacher/teacher"), config, folder, device=device,
            precision=choose_precision("auto", device), seconds=self.clock.left * SHARES["trajectories"],
        )  # fmt: skip
        shards = len(list(folder.glob("shard-*.safetensors")))
        kept.write_text(json.dumps(SHARD * shards))
        self.say(f"== {SHARD * shards} trajectories, {self.clock.left:.0f} s left")

    def _drawn(self) -> list[str]:
        return [share for share in DRAWN if self._has(share)]

    def student(self) -> None:
        minutes = self.lasting("student", self.clock.left)
        shares = [part for share in self._drawn() for part in ("--share", share)]
        code = self.do(
            "distill", self.work / "teacher/teacher", *self.data(), *shares, "--out", self.work / "student",
            "--trajectories", json.loads((self.work / "student/count.json").read_text()), "--guidance", GUIDANCE,
            "--texture", 0.2, "--seams", 8, "--batch", self.sizes.student_batch, "--minutes", minutes, *self.options(),
        )  # fmt: skip
        if code:
            raise SystemExit(f"the student failed; see {self.log}")

    def sheet(self) -> None:
        """Held-in masks and contexts as teacher and student see them: mask, context, image, a row for each model."""
        import cv2
        import numpy as np
        import torch

        from csg_edge.datasets.batches import read_training_sets
        from csg_edge.generation.sheets import contact_sheet
        from csg_edge.noise import noise_for
        from csg_edge.training.model import CsgModel

        device = torch.device(self.device)
        teacher, student = (CsgModel.load(self.work / name / name).eval().to(device) for name in ("teacher", "student"))
        rows = []
        for data in read_training_sets([Path(str(part)) for part in self.data()[1::2]], teacher.schema, split="train",
                                       size=teacher.image_size):  # fmt: skip
            for number in (0, len(data) // 2):
                mask, context = data.masks[number], data.images[(number + len(data) // 3) % len(data)]
                tensors = [torch.from_numpy(item)[None].to(device) for item in (mask, context)]
                noise = torch.from_numpy(noise_for(number, teacher.latent_shape(1)[1:]))[None].to(device)
                with torch.inference_mode():
                    field = teacher.used_field(*tensors, noise)
                    ends = [
                        teacher.integrate(*tensors, noise, guidance=GUIDANCE, field=field),
                        noise - student.velocity(student.conditions(*tensors, field))(noise, 1.0),
                    ]
                for model, end in zip((teacher, student), ends, strict=True):
                    rows.append((mask, context, np.asarray(model.autoencoder.decode(end)[0].cpu())))
        cv2.imwrite(str(self.out / "sheet.jpg"), contact_sheet(rows, teacher.schema))

    def checks(self) -> None:
        """What only a GPU can say of the student, as a model and as a bundle; on a CPU the bundle alone."""
        student, bundle = self.work / "student/student", self.work / "bundle"
        if self.device == "cuda":
            self.say(json.dumps(measure_cuda(student), indent=1))
        unpack_wheel(self.job, self.onnxruntime)
        targets = ["CUDA:fp32", "CUDA:fp16"] if self.device == "cuda" else ["CPU:fp32"]
        if not bundle.exists():
            self.do("export", student, "--out", bundle, "--steps", 1)
            wanted = [part for target in targets for part in ("--target", f"onnxruntime:{target}")]
            self.do("build", bundle, *wanted, "--steps", 1)
        self.do("verify", bundle)
        for target in targets:
            self.python(Path(__file__).with_name("latency.py"), bundle, f"onnxruntime:{target}")

    def write(self) -> None:
        """Weights in fp16 and in parts, and loss curves."""
        archive = self.work / "weights.tar"
        with tarfile.open(archive, "w") as tar:
            for name in ("teacher", "student"):
                folder = self.work / name / name
                half_precision(folder, self.work / f"{name}-fp16")
                tar.add(self.work / f"{name}-fp16", name)
        with archive.open("rb") as file:
            number = 0
            while part := file.read(PART):
                (self.out / f"weights.{number:02d}").write_bytes(part)
                number += 1
        with (self.out / "losses.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            for name in ("teacher", "student"):
                with (self.work / name / "losses.csv").open(newline="") as rows:
                    writer.writerows([name, *row] for row in csv.reader(rows))


def measure_cuda(folder: Path) -> dict[str, object]:
    """The student on the GPU against the CPU, and its latency at batch 1, 8, 64: eager, compiled, as a CUDA graph."""
    import torch

    from csg_edge.training.model import CsgModel

    found: dict[str, object] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    student = CsgModel.load(folder).eval()
    random = torch.Generator().manual_seed(0)

    def inputs(batch: int, device: str) -> tuple[torch.Tensor, ...]:
        random.manual_seed(0)
        side = student.image_size
        mask = torch.randint(0, 5, (batch, side, side), generator=random, dtype=torch.uint8)
        context = torch.randint(0, 256, (batch, side, side), generator=random, dtype=torch.uint8)
        noise = torch.randn(student.latent_shape(batch), generator=random)
        return tuple(item.to(device) for item in (mask, context, noise))

    def image(mask: torch.Tensor, context: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        field = student.used_field(mask, context, noise)
        end = noise - student.velocity(student.conditions(mask, context, field))(noise, 1.0)
        return student.autoencoder.decode(end)

    with torch.inference_mode():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        expected = image(*inputs(2, "cpu"))
        student.to("cuda")
        levels = (image(*inputs(2, "cuda")).cpu().int() - expected.int()).abs()
        found["fp32 against the CPU"] = {"max_levels": int(levels.max()), "mean_levels": float(levels.float().mean())}
        for batch in (1, 8, 64):
            given = inputs(batch, "cuda")
            with torch.autocast("cuda", torch.bfloat16):
                forms = {
                    "eager": image,
                    "compiled": torch.compile(image),
                    "CUDA graph": torch.compile(image, mode="reduce-overhead"),
                }
                for name, form in forms.items():
                    try:
                        found[f"bf16, batch {batch}, {name}, ms"] = latency(form, given)
                    except Exception as error:  # one form that fails must not cost what was trained
                        found[f"bf16, batch {batch}, {name}, ms"] = f"failed: {str(error).splitlines()[0][:200]}"
    return found


def latency(form: Callable[..., object], given: tuple[object, ...], rounds: int = 30) -> float:
    """Median milliseconds of a call, the device waited for."""
    import torch

    taken = []
    for _ in range(rounds + 5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        form(*given)
        torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken[5:])


def unpack_wheel(job: Path, folder: Path) -> None:
    """Put together a wheel of onnxruntime-gpu that was brought along in parts, JOB/onnxruntime-gpu.00 and on."""
    parts = sorted(job.glob("onnxruntime-gpu.[0-9][0-9]"))
    if not parts or folder.exists():
        return
    with tempfile.TemporaryFile() as whole:
        for part in parts:
            whole.write(part.read_bytes())
        with zipfile.ZipFile(whole) as wheel:
            wheel.extractall(folder)


def half_precision(folder: Path, out: Path) -> None:
    """A copy of a model folder with its weights in fp16."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out)
    for path in out.rglob("*.safetensors"):
        tensors = load_file(path)
        save_file(
            {name: value.half() if value.dtype == torch.float32 else value for name, value in tensors.items()}, path
        )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path, help="folder with sets.safetensors and teacher/")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("gpu-work"), help="where checkpoints and trajectories lie")
    parser.add_argument("--minutes", type=float, required=True, help="of everything, this machine's start excluded")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="batches of two, to try the path")
    arguments = parser.parse_args()
    for name in ("sets.safetensors", "teacher"):
        if not (arguments.job / name).exists():
            parser.error(f"{arguments.job / name}: not there; see --help for how the job folder is made")
    run = Run(arguments)
    for stage in (run.phantom, run.teacher, run.trajectories, run.student, run.sheet, run.write, run.checks):
        stage()
    for path in sorted(run.out.iterdir()):
        print(f"{path.stat().st_size / 2**20:7.2f} MiB  {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
