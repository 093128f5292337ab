"""A labelled set in, a bigger one out: what is written, what is kept apart, and what survives a kill."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

import csg_edge
from csg_edge.augment.checks import Verdict
from csg_edge.augment.make import PREFIX, Maker, Unit, changed
from csg_edge.augment.plan import Look, Plan
from csg_edge.augment.sources import Sources
from csg_edge.conditions.fibres import field_of_mask, parse_wishes
from csg_edge.conditions.files import read_context, read_mask, write_png
from csg_edge.datasets.labelled_set import open_set
from csg_edge.datasets.layouts import FolderSet
from csg_edge.datasets.phantom import make_phantom
from csg_edge.generation.generator import Generator
from csg_edge.labels import MSK_SCHEMA
from tests.command import Done, run

QUICK = ("--no-checks", "--size", "model")


@pytest.fixture(scope="module")
def generator() -> Generator:
    with csg_edge.load("msk-256", streams="auto") as opened:
        yield opened


def files(folder: Path) -> dict[str, str]:
    """Every file of a folder by its hash."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "provenance.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tripled(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tripled") / "out"
    done = run("augment", phantom_set, "--out", out, "--multiply", 3, "--seed", 4)
    assert done.returncode == 0, done.stderr
    return out


class TestFolder:
    def test_is_a_set_that_training_reads(self, phantom_set: Path, tripled: Path) -> None:
        before, after = open_set(phantom_set), open_set(tripled)
        assert isinstance(before, FolderSet)
        assert isinstance(after, FolderSet)
        assert after.classes == before.classes
        record = json.loads((tripled / "augmented.json").read_text())
        train = [item for item in before.examples if item.split == "train"]
        made = [item for item in after.examples if item.name.startswith(PREFIX)]
        assert len(made) == record["made"] == 2 * len(train) - len(record["left_out"])
        assert len(made) >= len(train)
        groups = {item.name: item.group for item in before.examples}
        assert {item.split for item in made} == {"train"}
        assert {item.group for item in made} <= {item.group for item in train}
        for position, item in enumerate(after.examples):
            image, mask = after.read(position)
            assert image.shape == mask.shape == (256, 256)
            if not item.name.startswith(PREFIX):
                real, real_mask = before.read([other.name for other in before.examples].index(item.name))
                assert item.group == groups[item.name]
                np.testing.assert_array_equal(image, real)
                np.testing.assert_array_equal(mask, real_mask)

    def test_is_told_in_record_and_provenance(self, tripled: Path) -> None:
        record, rows = json.loads((tripled / "augmented.json").read_text()), lines(tripled)
        assert len(rows) == record["made"]
        assert set(record["limits"]) == {"dice", "nearest", "copy", "segmenter_sha256"}
        for row in rows:
            assert 0.0 < row["nearest"] <= 1.0  # type: ignore[operator]
            for name, dice in row["dice"].items():  # type: ignore[attr-defined]
                assert dice >= record["limits"]["dice"][name]
        assert record["tried"]
        assert all(0.0 <= rate <= 1.0 for rate in record["rejection_rates"].values())
        # Nothing that was in the set's names is in what is said of an image.
        names = {row["name"] for row in csv.DictReader((tripled / "manifest.csv").open())}
        text = (tripled / "provenance.jsonl").read_text()
        assert not any(f'"{name}"' in text for name in names if not name.startswith(PREFIX))

    def test_has_metadata_that_croissant_reads(self, tripled: Path) -> None:
        croissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
        found = croissant.Dataset(jsonld=tripled / "croissant.json")
        rows = list(found.records("table"))
        names = {row["name"] for row in csv.DictReader((tripled / "manifest.csv").open())}
        assert {row["table/name"].decode() for row in rows} == names
        assert "not for diagnosis" in found.metadata.description

    def test_again_does_nothing_and_another_job_is_refused(self, phantom_set: Path, tripled: Path) -> None:
        before = files(tripled)
        again = run("augment", phantom_set, "--out", tripled, "--multiply", 3, "--seed", 4, "--json")
        assert json.loads(again.stdout)["made_now"] == 0
        other = run("augment", phantom_set, "--out", tripled, "--multiply", 3, "--seed", 5)
        assert other.returncode == 2
        assert "of another job is there" in other.stderr
        assert files(tripled) == before

    def test_any_image_can_be_made_again(self, phantom_set: Path, tripled: Path) -> None:
        name = str(lines(tripled)[3]["id"])
        kept = read_context(tripled / "images" / f"{name}.png"), (tripled / "masks" / f"{name}.png").read_bytes()
        assert "the same bytes" in run("augment", phantom_set, "--out", tripled, "--remake", name).stdout
        (tripled / "images" / f"{name}.png").unlink()
        done = run("augment", phantom_set, "--out", tripled, "--remake", name)
        assert done.returncode == 0, done.stderr
        assert "are written" in done.stdout
        np.testing.assert_array_equal(read_context(tripled / "images" / f"{name}.png"), kept[0])
        assert (tripled / "masks" / f"{name}.png").read_bytes() == kept[1]
        for asked, said in (("nobody", "--remake nobody: not in"), (name, "no mask of SHA-256")):
            source = phantom_set if asked == "nobody" else altered(phantom_set, tripled.parent / "altered")
            wrong = run("augment", source, "--out", tripled, "--remake", asked)
            assert wrong.returncode == 2
            assert said in wrong.stderr


def altered(source: Path, folder: Path) -> Path:
    """The set with every mask turned round."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    for path in (folder / "masks").iterdir():
        write_png(path, np.ascontiguousarray(read_mask(path, MSK_SCHEMA)[:, ::-1]))
    return folder


def test_without_real_images_no_name_and_no_group_passes(phantom_set: Path, tmp_path: Path) -> None:
    source = tmp_path / "Meyer study"
    shutil.copytree(phantom_set, source)
    rows = list(csv.DictReader((source / "manifest.csv").open()))
    with (source / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "group": f"Meyer-{row['group']}"} for row in rows)
    out = tmp_path / "out"
    assert run("augment", source, "--out", out, "--multiply", 2, "--only-synthetic", *QUICK).returncode == 0
    found = list(csv.DictReader((out / "manifest.csv").open()))
    assert all(row["name"].startswith(PREFIX) and row["group"].startswith("group_") for row in found)
    assert not [path for path in out.rglob("*") if path.is_file() and b"Meyer" in path.read_bytes()]


def test_no_torch_without_checks(phantom_set: Path, tmp_path: Path) -> None:
    arguments = ["augment", str(phantom_set), "--out", str(tmp_path / "out"), "--multiply", "1.2", *QUICK]
    code = f"import sys; from csg_edge.cli.main import main; sys.argv[1:] = {arguments!r}\ntry: main()\n"
    code += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "images").iterdir())) > 12


def test_a_dry_run_writes_nothing(phantom_set: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('multiply = 4\n[balance]\nmuscle = 0.5\n[[finding]]\nvary = "insert:nerve?"\nshare = 0.5\n')
    out = tmp_path / "out"
    seen = json.loads(run("augment", phantom_set, "--out", out, "--plan", plan, "--dry-run", "--json").stdout)
    assert seen["images"] == 3 * seen["masks"]
    assert abs(seen["classes"]["muscle"]["after_share"] - 0.5) < 0.05
    assert not out.exists()
    told = run("augment", phantom_set, "--out", out, "--plan", plan, "--dry-run").stdout
    assert "images to make" in told
    assert "muscle" in told


@pytest.fixture(scope="module")
def sources(phantom_set: Path) -> Sources:
    found = Sources(phantom_set, MSK_SCHEMA, (256, 256))
    found.look_for_text()
    return found


class TestMaking:
    """Images of one mask do not depend on which others are made beside them."""

    def test_alone_or_together(self, sources: Sources, generator: Generator) -> None:
        maker = Maker(Plan(seed=3), sources, generator, None)
        units = [Unit(position, 2, 2 * place) for place, position in enumerate(sources.positions[:4])]
        together = maker.make(units)
        alone = [outcome for unit in reversed(units) for outcome in maker.make([unit])]
        for one, other in zip(together, reversed(alone), strict=True):
            assert [made.facts for made in one.made] == [made.facts for made in other.made]
            for made, again in zip(one.made, other.made, strict=True):
                assert made.image.tobytes() == again.image.tobytes()
                assert made.mask.tobytes() == again.mask.tobytes()

    def test_alone_or_together_where_checks_refuse(self, sources: Sources, generator: Generator) -> None:
        """What is drawn again comes after the other images of its mask, whatever is made beside them."""

        class Fussy:
            def look(self, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> int:
                return int(image.sum())

            def judge(
                self, image: NDArray[np.uint8], seen: int, position: int, others: Sequence[NDArray[np.uint8]]
            ) -> Verdict:
                return Verdict({}, 1.0, ("copy",) if (seen + len(others)) % 3 == 0 else ())

        maker = Maker(Plan(seed=5, attempts=3), sources, generator, Fussy())  # type: ignore[arg-type]
        units = [Unit(position, 5, 5 * place) for place, position in enumerate(sources.positions[:5])]
        together = {outcome.unit: outcome for outcome in maker.make(units)}
        assert set(together) == set(units)
        for unit in units:
            (alone,) = maker.make([unit])
            assert alone.tried == together[unit].tried
            assert alone.faults == together[unit].faults
            assert alone.left_out == together[unit].left_out
            assert [made.facts for made in alone.made] == [made.facts for made in together[unit].made]
        assert any(made.facts["attempt"] for outcome in together.values() for made in outcome.made)

    def test_image_is_what_generate_makes(self, phantom_set: Path, generator: Generator) -> None:
        sources = Sources(phantom_set, MSK_SCHEMA, (256, 256), own=True)
        direction = "muscle=12deg?" if generator.bundle.manifest.fibre_shape else None
        maker = Maker(Plan(seed=3, vary=None, select="own", direction=direction), sources, generator, None)
        for position in sources.positions[:3]:
            (outcome,) = maker.make([Unit(position, 1, 0)])
            (made,) = outcome.made
            look = changed(sources.read(position)[0], Look(**made.facts["look"]))
            mask, seed = sources.mask(position), made.facts["noise_seed"]
            wishes = parse_wishes(direction, MSK_SCHEMA) if direction else None
            field = None if wishes is None else field_of_mask(mask, MSK_SCHEMA, wishes, seed=seed)
            np.testing.assert_array_equal(made.image, generator.generate_one(mask, look, seed, field=field))

    def test_contexts_are_of_training_groups(self, sources: Sources) -> None:
        for position in sources.positions:
            allowed = sources.allowed(position)
            assert position not in {context.position for context in allowed}
            assert {sources.set.examples[context.position or 0].split for context in allowed} == {"train"}


def test_a_look_changes_what_it_names() -> None:
    context = make_phantom(3)[0]
    assert changed(context, Look()) is context
    bright = changed(context, Look(gain=1.3))
    assert 1.1 < bright.mean() / context.mean() < 1.35
    seen = context > 20
    deep = changed(context, Look(tgc=0.5)).astype(float) / np.maximum(context, 1)
    assert deep[200:][seen[200:]].mean() > 1.1 > 0.9 > deep[:60][seen[:60]].mean()
    # Larger speckle: less power in the finest band.
    fine = [
        np.abs(np.diff(image.astype(float), axis=1)).mean() for image in (context, changed(context, Look(speckle=1.3)))
    ]
    assert fine[1] < 0.95 * fine[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--multiply", "1"), "multiply 1: give a number above 1"),
        (("--multiply", "2", "--plan", "missing.toml"), "missing.toml: cannot read"),
        (("--multiply", "2", "--segmenter", "nowhere"), "no evaluators there"),
    ],
)
def test_wrong_use_is_one_line(phantom_set: Path, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done: Done = run("augment", phantom_set, "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("csg-edge: ")
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_output_that_is_something_else_is_left_alone(phantom_set: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for out, said in (
        (tmp_path / "mine", "not empty"),
        (phantom_set / "in", "inside the set"),
        (phantom_set, "inside"),
    ):
        done = run("augment", phantom_set, "--out", out, "--multiply", 2, *QUICK)
        assert done.returncode == 2
        assert said in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    twice = run("augment", phantom_set, "--out", tmp_path / "one", "--multiply", 1.2, *QUICK)
    assert twice.returncode == 0
    done = run("augment", tmp_path / "one", "--out", tmp_path / "two", "--multiply", 2, *QUICK)
    assert done.returncode == 2
    assert "named as made images are" in done.stderr


def test_contexts_with_text_are_not_used(phantom_set: Path, tmp_path: Path) -> None:
    source = tmp_path / "set"
    shutil.copytree(phantom_set, source)
    for name in ("000000", "000001"):
        image = read_context(source / "images" / f"{name}.png")
        image = np.vstack([np.zeros((24, 256), np.uint8), image[24:]])
        cv2.putText(image, "DOE JANE 1961", (10, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 220, 1, cv2.LINE_AA)
        write_png(source / "images" / f"{name}.png", image)
    found = Sources(source, MSK_SCHEMA, (256, 256))
    found.look_for_text()
    assert found.refused == {"000000": "text", "000001": "text"}
    assert not {0, 1} & {context.position for position in found.positions for context in found.allowed(position)}
    cropped = Sources(source, MSK_SCHEMA, (256, 256), text="crop")
    cropped.look_for_text()
    assert not cropped.refused
    (context,) = [item for item in cropped.allowed(5) if item.position == 0]
    assert cropped.context(context)[:8].mean() > 3.0


class Killed:
    """A run of `csg-edge augment` in a process of its own, which can be killed."""

    def __init__(self, source: Path, out: Path, *options: str) -> None:
        code = "from csg_edge.cli.main import main; main()"
        arguments = ["augment", str(source), "--out", str(out), "--multiply", "40", *QUICK]
        self.command = [sys.executable, "-c", code, *arguments, *options]

    def until(self, reached: Callable[[], bool], *, later: float = 0.0) -> bool:
        """Kill it so many seconds after something has been reached; whether it had ended well before."""
        process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not reached():
            time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(later) == 0
        process.kill()
        process.wait()
        return False


def whole_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.png") if not path.name.startswith(".")]


@pytest.mark.slow
def test_killed_at_twenty_moments(phantom_set: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole" / "out", tmp_path / "killed" / "out"  # the data card says the folder's name
    assert Killed(phantom_set, whole).until(lambda: True, later=600)
    # Twice before anything is there; then when the folder holds more than at the last kill, by a file or by many. What
    # has been reached counts, not the time it took: so it is the same on a slow machine.
    moments, kills, seen = random.Random(0), 0, {0}
    for kill in range(20):
        wanted = max(seen) + moments.choice((1, 1, 7, 30)) if kill >= 2 else 0
        later = moments.uniform(0.0, 0.02) if kill >= 2 else moments.uniform(0.0, 1.0)
        if Killed(phantom_set, killed).until(lambda least=wanted: len(whole_files(killed)) >= least, later=later):
            break
        kills += 1
        seen.add(len(whole_files(killed)))
        assert all(read_context(path) is not None for path in whole_files(killed))  # no half file
    assert Killed(phantom_set, killed).until(lambda: True, later=600)
    print(f"{kills} kills, with {sorted(seen)} files there")
    assert kills >= 5
    assert len(seen) >= 3
    assert files(killed) == files(whole)
    names = Counter(row["id"] for row in lines(killed))
    assert set(names.values()) == {1}
