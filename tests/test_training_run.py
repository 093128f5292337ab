"""`csg-edge train` as a user meets it: the file of a run, options, fine-tuning, what it leaves behind, bad input."""

from __future__ import annotations

import csv
import json
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from csg_edge.cli.main import main
from csg_edge.datasets.batches import BatchSource, look_alikes, read_training_sets
from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.errors import TrainingError
from csg_edge.labels import MSK_SCHEMA
from csg_edge.training.config import parse_shares, read_run
from csg_edge.training.model import CsgModel
from csg_edge.training.networks import NetworkConfig

RUN = """
data = ["{data}"]
image_size = 64
sheet_every = 2
prior_iterations = 2
[network]
widths = [32, 32]
blocks = [1, 1]
embedding = 32
heads = 2
{network}
[optimisation]
iterations = 4
batch = 2
warmup = 2
precision = "fp32"
"""


@pytest.fixture
def run_file(phantom_set: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(RUN.format(data=phantom_set, network=""))
    return path


def train(*options: object) -> str:
    """Run the command; its error line, or nothing."""
    result = CliRunner().invoke(main, ["train", *map(str, options)])
    if result.exit_code:
        assert result.exit_code == 2, result.output
        lines = result.stderr.strip().splitlines()
        assert lines[-1].startswith("csg-edge: ")
        return lines[-1]
    return ""


class TestRunFile:
    def test_file_and_options_become_one_run(self, run_file: Path, phantom_set: Path) -> None:
        run = read_run(run_file, {"batch": 3, "seed": None, "shares": (("a", 0.5),)}, precision="bf16")
        assert run.teacher.data == (phantom_set,)
        shape = NetworkConfig(classes=10, widths=(32, 32), blocks=(1, 1), embedding=32, heads=2, fibres=True)
        assert run.teacher.network == shape
        assert (run.loop.iterations, run.loop.batch, run.loop.precision) == (4, 3, "fp32")
        assert run.teacher.shares == (("a", 0.5),)

    def test_options_are_enough(self) -> None:
        run = read_run(None, {"data": (Path("sets"),)}, precision="bf16")
        assert (run.loop.iterations, run.loop.precision, run.teacher.network) == (3000, "bf16", None)

    def test_folders_are_relative_to_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text('data = ["sets"]\ninit = "earlier"\n')
        run = read_run(tmp_path / "run.toml", {}, precision="fp32")
        assert (run.teacher.data, run.teacher.init) == ((tmp_path / "sets",), tmp_path / "earlier")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("data = [", "not TOML"),
            ("", "no data"),
            ('data = ["a"]\nrate = 1', "unknown key rate"),
            ('data = ["a"]\n[optimiser]\nbatch = 1', r"unknown section \[optimiser\]"),
            ('data = ["a"]\n[network]\nclasses = 3', r"\[network\] unknown key classes"),
            ('data = ["a"]\n[optimisation]\nbatch = "many"', "batch: 'many' is not of type int"),
            ('data = ["a"]\n[optimisation]\nlearning_rate = 0', "out of range"),
            ('data = ["a"]\n[optimisation]\nseed = -1', "seed = -1"),
            ('data = ["a"]\n[network]\nwidths = [30]\nblocks = [1]', "multiples of 32"),
            ('data = ["a"]\nimage_size = 100', "multiple of 32"),
            ('data = ["a"]\nshares = { a = -1 }', "shares.a"),
            ("data = 3", "not a folder"),
        ],
    )
    def test_mistakes_are_named(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text(text)
        with pytest.raises(TrainingError, match=message):
            read_run(tmp_path / "run.toml", {}, precision="fp32")

    @pytest.mark.parametrize("text", ["phantom", "=1", "phantom=", "phantom=-1", "phantom=nan"])
    def test_shares_need_a_name_and_a_number(self, text: str) -> None:
        with pytest.raises(TrainingError, match="SET=NUMBER"):
            parse_shares([text])


class TestCommand:
    def test_it_leaves_a_teacher_losses_and_sheets(self, run_file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert not train("--config", run_file, "--out", out, "--iterations", 20)
        assert CsgModel.load(out / "teacher").role == "teacher"
        (card,) = json.loads((out / "teacher" / "data_card.json").read_text())["sets"]
        assert card["splits"]["train"]["images"] > 0 and "val" not in card["splits"]
        assert (out / "teacher" / "data_card.md").read_text().startswith("# Data card")
        with (out / "losses.csv").open() as file:
            assert [row["iteration"] for row in csv.DictReader(file)] == ["20"]
        assert list((out / "tensorboard").iterdir())
        sheets = sorted(path.name for path in (out / "sheets").iterdir())
        assert len(sheets) == 10 and sheets[0] == "000002.jpg"
        assert cv2.imread(str(out / "sheets" / "000002.jpg")).std() > 1

    def test_a_set_with_classes_of_its_own(self, tmp_path: Path) -> None:
        """A plain folder of a lung set, TIFF: its classes become the teacher's, and it goes on from there."""
        random = np.random.default_rng(0)
        for index in range(6):
            for folder, image in (
                ("images", random.integers(0, 255, (64, 64))), ("masks", random.integers(0, 3, (64, 64)))
            ):  # fmt: skip
                (tmp_path / "lung" / folder).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(tmp_path / "lung" / folder / f"{index}.tif"), image.astype(np.uint8))
        (tmp_path / "lung" / "labels.json").write_text('{"names": ["background", "pleura", "b_line"]}')
        run = tmp_path / "lung.toml"
        run.write_text(RUN.format(data=tmp_path / "lung", network=""))
        assert "--schema own" in train("--config", run, "--out", tmp_path / "msk")
        assert not train("--config", run, "--out", tmp_path / "own", "--schema", "own")
        first = CsgModel.load(tmp_path / "own" / "teacher")
        assert first.schema.names == ("background", "pleura", "b_line")
        assert not train("--config", run, "--out", tmp_path / "more", "--init", tmp_path / "own" / "teacher")
        assert CsgModel.load(tmp_path / "more" / "teacher").schema == first.schema

    def test_sheets_change_nothing_in_the_run(self, run_file: Path, tmp_path: Path) -> None:
        for name, every in (("with", 2), ("without", 0)):
            assert not train("--config", run_file, "--out", tmp_path / name, "--sheet-every", every)
        first, second = (tmp_path / name / "checkpoint.safetensors" for name in ("with", "without"))
        assert first.read_bytes() == second.read_bytes()

    def test_fine_tuning_starts_from_the_earlier_teacher_and_may_extend_it(
        self, phantom_set: Path, run_file: Path, tmp_path: Path
    ) -> None:
        assert not train("--config", run_file, "--out", tmp_path / "first")
        more = tmp_path / "more.toml"
        more.write_text(RUN.format(data=phantom_set, network="deeper = 1\ncontext_tokens = true"))
        init = tmp_path / "first" / "teacher"
        # At this learning rate nothing moves further than the rounding of fp16.
        still = ("--learning-rate", 1e-12, "--iterations", 1)
        assert not train("--config", more, "--out", tmp_path / "second", "--init", init, *still)
        earlier, extended = CsgModel.load(init), CsgModel.load(tmp_path / "second" / "teacher")
        noise, image = torch.randn(earlier.latent_shape(1)), torch.full((1, 64, 64), 90, dtype=torch.uint8)
        with torch.no_grad():
            one, other = (
                model.velocity(model.conditions(torch.ones_like(image), image))(noise, 0.5)
                for model in (earlier, extended)
            )
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)
        assert extended.network.config == replace(earlier.network.config, deeper=1, context_tokens=True)

        narrower = tmp_path / "narrower.toml"
        narrower.write_text(more.read_text().replace("embedding = 32", "embedding = 64"))
        line = train("--config", narrower, "--out", tmp_path / "third", "--init", init)
        assert "do not fit this network" in line and not (tmp_path / "third" / "teacher").exists()

    def test_bad_input_is_one_line(self, run_file: Path, phantom_set: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        file = ("--config", run_file, "--out", out)
        assert "no data to train on" in train("--out", out)
        assert "no such set" in train(*file, "--share", "nowhere=2")
        assert "above" in train(*file, "--share", f"{phantom_set.name}=0")
        assert "missing" in train(*file, "--init", tmp_path / "nowhere")
        assert "cannot read" in train("--config", tmp_path / "nowhere.toml", "--out", out)
        assert not (out / "teacher").exists()

    def test_a_full_disk_is_one_line_and_no_half_file(self, run_file: Path, tmp_path: Path) -> None:
        """Files of more than 100 kB cannot be written: a checkpoint of this network is larger."""
        out = tmp_path / "out"
        done = subprocess.run(
            [sys.executable, "-m", "csg_edge", "train", "--config", run_file, "--out", out],
            capture_output=True, text=True, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        )  # fmt: skip
        assert done.returncode == 2
        assert "free disk space" in done.stderr.splitlines()[-1]
        assert not list(out.rglob("*partial*")) and not (out / "teacher").exists()

    @pytest.mark.slow
    def test_killed_at_any_moment_it_goes_on(self, run_file: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        command = [
            sys.executable,
            "-m",
            "csg_edge",
            "train",
            "--config",
            run_file,
            "--out",
            out,
            "--iterations",
            "4000",
        ]
        for seconds in (6.0, 7.5, 9.0):
            running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            time.sleep(seconds)
            running.send_signal(signal.SIGKILL)
            running.wait()
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        time.sleep(12.0)
        running.terminate()
        assert running.wait(60) == 0, running.stderr
        assert CsgModel.load(out / "teacher")
        assert json.loads((out / "teacher" / "model_index.json").read_text())["role"] == "teacher"


class TestContexts:
    def test_look_alikes_are_of_other_groups_and_look_alike(self) -> None:
        """Three looks (dark, bright, blurred), eight groups: a context is of another group and the same look."""
        random = np.random.default_rng(0)
        speckle = random.rayleigh(40.0, (24, 64, 64)).clip(0, 255)
        looks = np.arange(24) % 3
        for index, look in enumerate(looks):
            grain = cv2.GaussianBlur(speckle[index], (0, 0), 2.0) if look == 2 else speckle[index]
            speckle[index] = grain * (0.4 if look == 0 else 1.0)
        images = speckle.astype(np.uint8)
        names = tuple(f"{index}" for index in range(24))
        data = LabelledSet(images, np.zeros_like(images), names, groups=tuple(f"{i // 3}" for i in range(24)))
        found = look_alikes(data, 5)
        assert found.shape == (24, 5)
        assert (looks[found] == looks[:, None]).all()
        assert all(data.groups[other] != data.groups[index] for index, row in enumerate(found) for other in row)

    def test_a_set_of_two_groups_is_enough(self, phantom_set: Path) -> None:
        (data,) = read_training_sets([phantom_set], MSK_SCHEMA, split="train", size=64)
        two = replace(data, groups=tuple("a" if index else "b" for index in range(len(data))))
        batch = BatchSource([two], [1.0], batch=8, dropout=0.0, seed=0).draw(0)
        assert batch.context.shape == batch.image.shape
