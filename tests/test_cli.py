"""The command line: what it writes and prints; how it refuses: one line on stderr, exit code 2, nothing left."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
from dicom_files import write_dicom
from numpy.typing import NDArray

import csg_edge
from csg_edge.bundle.manifest import MANIFEST_NAME, read_manifest, write_manifest
from csg_edge.cli.main import main
from csg_edge.conditions.arrays import resize_mask
from csg_edge.conditions.files import read_context, read_mask, write_png
from csg_edge.errors import EngineError, InputError
from csg_edge.generation.generator import Generator
from csg_edge.generation.jobs import plan
from csg_edge.labels import MSK_SCHEMA


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; stdout and stderr are those of the file descriptors, so C libraries count too."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main.main([str(argument) for argument in arguments], prog_name="csg-edge")
        assert isinstance(stop.value.code, int)
        return Result(stop.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def phantoms(tmp_path: Path, phantom_set: Path) -> Path:
    """Masks and contexts of two phantoms, enough to generate from."""
    folder = tmp_path / "in"
    for kind in ("masks", "contexts"):
        (folder / kind).mkdir(parents=True)
        for name in ("000000.png", "000001.png"):
            (folder / kind / name).write_bytes((phantom_set / kind / name).read_bytes())
    return folder


@pytest.fixture
def small_bundle(bundle_copy: Path) -> Path:
    """The shipped bundle with one engine and one golden case: verified in a second."""
    manifest = read_manifest(bundle_copy / MANIFEST_NAME)
    engines = tuple(e for e in manifest.engines if e.target == "onnxruntime:CPU:fp32" and e.steps == 1)
    write_manifest(bundle_copy, replace(manifest, engines=engines, golden=manifest.golden[:1]))
    return bundle_copy


def generate(masks: Path, contexts: Path, out: Path, *options: object) -> list[object]:
    """Arguments of `generate` on the engine that opens fastest; later options win."""
    engine = ["--runtime", "onnxruntime", "--precision", "fp32"]
    return ["generate", "--mask", masks, "--context", contexts, "--out", out, *engine, *options]


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones too, with the bytes of the files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


class TestGenerate:
    def test_files_and_record(self, run: Run, phantoms: Path, tmp_path: Path) -> None:
        out = tmp_path / "new" / "out"
        result = run(*generate(phantoms / "masks", phantoms / "contexts", out, "--seed", 5, "--json"))
        assert result.code == 0
        assert set(contents(out)) == {
            "000000.png", "000001.png", "masks", "masks/000000.png", "masks/000001.png", "generated.json"
        }  # fmt: skip
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        record = json.loads(result.out)  # one JSON object and nothing else
        written = json.loads((out / "generated.json").read_text())
        assert len(written.pop("job")) == 64
        assert record == {**written, "out": str(out), "ms_per_image": record["ms_per_image"], "kept": 0, "notes": []}
        assert (record["target"], record["effective_precision"]) == ("onnxruntime:CPU:fp32", "fp32")
        assert (record["bundle"], record["steps"], record["out"]) == ("msk-256", 1, str(out))
        assert 0 < record["ms_per_image"]["median"] <= record["ms_per_image"]["max"]
        asked = ("name", "mask", "context", "seed")
        assert [{key: image[key] for key in asked} for image in record["images"]] == [
            {
                "name": name,
                "mask": str(phantoms / "masks" / f"{name}.png"),
                "context": str(phantoms / "contexts" / f"{name}.png"),
                "seed": seed,
            }
            for name, seed in (("000000", 5), ("000001", 6))
        ]

    def test_an_image_and_its_labels_follow_from_the_record(self, run: Run, phantoms: Path, tmp_path: Path) -> None:
        masks = phantoms / "small"
        masks.mkdir()
        mask = resize_mask(read_mask(phantoms / "masks" / "000000.png", MSK_SCHEMA), 100, 120)
        write_png(masks / "a.png", mask)
        out = tmp_path / "out"
        assert run(*generate(masks, phantoms / "contexts" / "000001.png", out, "--seed", 9)).code == 0
        (job,) = json.loads((out / "generated.json").read_text())["images"]
        with csg_edge.load(runtime="onnxruntime", precision="fp32") as generator:
            image = generator.generate_one(
                read_mask(Path(job["mask"]), MSK_SCHEMA), read_context(Path(job["context"])), job["seed"]
            )
        np.testing.assert_array_equal(read_context(out / "a.png"), image)
        labels = read_mask(out / "masks" / "a.png", MSK_SCHEMA)
        np.testing.assert_array_equal(labels, resize_mask(mask, *image.shape))  # at the size of the image

    def test_seed_decides_the_bytes(self, run: Run, phantoms: Path, tmp_path: Path) -> None:
        images = {}
        for name, seed in (("first", 1), ("again", 1), ("other", 3)):
            arguments = generate(phantoms / "masks", phantoms / "contexts", tmp_path / name, "--seed", seed)
            assert run(*arguments).code == 0
            images[name] = [path.read_bytes() for path in sorted((tmp_path / name).glob("*.png"))]
        assert images["first"] == images["again"]
        assert len({*images["first"], *images["other"]}) == 4

    def test_count_names_and_contact_sheet(self, run: Run, phantoms: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "notes.txt").write_text("keep")  # an output folder may hold other things
        mask, context = phantoms / "masks" / "000001.png", phantoms / "contexts"
        result = run(*generate(mask, context, out, "--count", 3, "--sheet"))
        assert result.code == 0
        names = [f"000001_{index:03d}.png" for index in range(3)]
        assert sorted(path.name for path in out.iterdir()) == [
            *names, "contact_sheet.png", "generated.json", "masks", "notes.txt"
        ]  # fmt: skip
        assert sorted(path.name for path in (out / "masks").iterdir()) == names
        assert len({(out / name).read_bytes() for name in names}) == 3
        assert f"3 images in {out}, contact sheet {out / 'contact_sheet.png'}" in result.out
        assert "onnxruntime:CPU:fp32 (computing in fp32), 1 step: median" in result.out


class TestPlan:
    def test_equal_names_pair(self, phantom_set: Path) -> None:
        jobs = plan(phantom_set / "masks", phantom_set / "contexts", count=2, seed=7)
        assert [job.name for job in jobs[:3]] == ["000000_000", "000000_001", "000001_000"]
        assert all(job.context.name == job.mask.name for job in jobs)
        assert [job.seed for job in jobs] == list(range(7, 7 + 24))

    def test_other_names_are_drawn_by_the_seed(self, phantom_set: Path, tmp_path: Path) -> None:
        for index in range(5):
            write_png(tmp_path / f"look_{index}.png", np.zeros((8, 8), np.uint8))

        def drawn(seed: int) -> list[Path]:
            return [job.context for job in plan(phantom_set / "masks", tmp_path, count=4, seed=seed)]

        assert drawn(1) == drawn(1) != drawn(2)
        assert set(drawn(1)) == set(tmp_path.iterdir())  # 48 draws from 5 leave none out

    def test_one_context_serves_every_mask(self, phantom_set: Path) -> None:
        context = phantom_set / "contexts" / "000003.png"
        assert {job.context for job in plan(phantom_set / "masks", context, count=1, seed=0)} == {context}

    def test_two_masks_of_one_name(self, tmp_path: Path, phantom_set: Path) -> None:
        for name in ("a.png", "a.tif"):
            (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match="two masks share a name but for the suffix; rename one"):
            plan(tmp_path, phantom_set / "contexts", count=1, seed=0)


def write(path: Path, image: NDArray[np.uint8 | np.uint16]) -> Path:
    write_png(path, image)  # type: ignore[arg-type]
    return path


def truncated(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def empty_folder(path: Path) -> Path:
    path.mkdir()
    return path


def file_in_the_way(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    return path


BAD_INPUTS: dict[str, tuple[Callable[[Path], list[object]], str, str]] = {
    # What is wrong: options that replace good ones, given the folder of inputs; what stderr names; the remedy.
    "missing mask": (lambda f: ["--mask", f / "gone.png"], "gone.png", "check the path"),
    "missing context": (lambda f: ["--context", f / "gone.png"], "gone.png", "check the path"),
    "colour mask": (
        lambda f: ["--mask", write(f / "colour.png", np.eye(3, dtype=np.uint8)[None])],
        "colour.png", "save class indices as 8-bit single-channel PNG",
    ),
    "16-bit mask": (
        lambda f: ["--mask", write(f / "deep.png", np.full((8, 8), 256, np.uint16))],
        "deep.png", "save class indices as 8-bit single-channel PNG",
    ),
    "unknown class": (
        lambda f: ["--mask", write(f / "class.png", np.full((8, 8), 10, np.uint8))],
        "class.png: class index 10", "map your classes to these indices",
    ),
    "empty folder": (lambda f: ["--mask", empty_folder(f / "none")], "none", "put .png"),
    "truncated mask": (lambda f: ["--mask", truncated(f / "masks/000001.png")], "000001.png", "copy or export"),
    "truncated mask among good ones": (
        lambda f: ["--mask", truncated(f / "masks/000001.png").parent], "000001.png", "copy or export"
    ),
    "truncated context": (
        lambda f: ["--context", truncated(f / "contexts/000001.png")], "000001.png", "copy or export"
    ),
    "text for a context": (
        lambda f: ["--context", file_in_the_way(f / "text.png")], "text.png", "export it again as PNG or TIFF"
    ),
    "missing bundle": (lambda f: ["--bundle", f / "nowhere"], "nowhere", "give a bundle folder or a shipped name"),
    "unknown runtime": (lambda f: ["--runtime", "tflite"], "runtime 'tflite'", "choose auto, openvino, onnxruntime"),
    "unknown device": (lambda f: ["--device", "MARS"], "MARS", "it has openvino:CPU"),
    "unknown precision": (lambda f: ["--precision", "fp8"], "precision 'fp8'", "choose auto, fp32"),
    "steps not offered": (lambda f: ["--steps", 3], "steps 3", "has steps 1, 2, 4"),
    "count of nothing": (lambda f: ["--count", 0], "--count 0", "give at least 1"),
    "negative seed": (lambda f: ["--seed", -1], "--seed -1", "give an integer from 0"),
    "seed too large": (lambda f: ["--seed", 2**64], f"--seed {2**64}", "give an integer from 0"),
    "seed no number": (lambda f: ["--seed", "x"], "--seed", "not a valid integer"),
    "unknown option": (lambda f: ["--colour"], "--colour", "No such option"),
    "image to be replaced": (
        lambda f: ["--out", file_in_the_way(f / "out/000001.png").parent], "000001.png", "choose another folder"
    ),
    "record to be replaced": (
        lambda f: ["--out", file_in_the_way(f / "out/generated.json").parent], "generated.json", "choose another"
    ),
    "image named as the sheet": (
        lambda f: ["--mask", (f / "masks/000001.png").rename(f / "masks/contact_sheet.png")],
        "masks/contact_sheet.png", "rename this file",
    ),
    "output is a file": (lambda f: ["--out", file_in_the_way(f / "taken")], "taken", "give a folder"),
    "output below a file": (lambda f: ["--out", file_in_the_way(f / "taken") / "out"], "taken/out", "choose another"),
}  # fmt: skip


def assert_refused(result: Result, named: str, remedy: str) -> None:
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("csg-edge: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert named in result.err
    assert remedy in result.err


@pytest.mark.parametrize(("options", "named", "remedy"), BAD_INPUTS.values(), ids=list(BAD_INPUTS))
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Run, phantoms: Path, tmp_path: Path, options: Callable[[Path], list[object]], named: str, remedy: str
) -> None:
    bad = options(phantoms)
    before = contents(tmp_path)
    good = generate(phantoms / "masks", phantoms / "contexts", tmp_path / "result", "--json")
    assert_refused(run(*good, *bad), named, remedy)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["masks", "contexts"])
def test_bad_input_is_found_before_the_first_image(
    run: Run, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    truncated(phantoms / kind / "000001.png")
    monkeypatch.setattr(Generator, "generate_one", lambda *_: pytest.fail("an image was made"))
    result = run(*generate(phantoms / "masks", phantoms / "contexts", tmp_path / "result"))
    assert_refused(result, f"{kind}/000001.png", "copy or export")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (EngineError("openvino: inference failed (out of memory)"), 2, "csg-edge: openvino: inference failed"),
        (OSError(28, "No space left on device"), 2, "No space left on device); free disk space"),
        (KeyboardInterrupt(), 130, "csg-edge: stopped"),
    ],
    ids=["engine", "full disk", "Ctrl-C"],
)
def test_trouble_half_way_leaves_whole_images_and_the_next_run_goes_on(
    run: Run,
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def ends_after_one(stream: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def patched(*given: object) -> Iterator[Any]:
            yield next(stream(*given))
            raise error

        return patched

    whole = tmp_path / "whole"
    assert run(*generate(phantoms / "masks", phantoms / "contexts", whole, "--sheet")).code == 0
    arguments = generate(phantoms / "masks", phantoms / "contexts", tmp_path / "result", "--sheet")
    with monkeypatch.context() as patch:
        for name in ("stream", "stream_with_fibres"):
            patch.setattr(Generator, name, ends_after_one(getattr(Generator, name)))
        result = run(*arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.strip().count("\n") == 0  # click begins a new line after the terminal's ^C
    assert line in result.err
    left = contents(tmp_path / "result")
    assert set(left) == {"000000.png", "masks", "masks/000000.png", "generated.jsonl"}

    other = run(*arguments, "--seed", 4)
    assert other.code == 2 and "an unfinished job with other arguments" in other.err
    again = run(*arguments)
    assert again.code == 0 and "2 images in" in again.out and "1 of them made before" in again.out
    assert contents(tmp_path / "result") == contents(whole)
    finished = run(*arguments)
    assert finished.code == 0 and "2 of them made before" in finished.out
    other = run(*arguments, "--seed", 4)
    assert other.code == 2 and "generated.json of another job" in other.err
    assert contents(tmp_path / "result") == contents(whole)


def test_a_torn_record_and_left_overs_of_a_killed_run_do_no_harm(run: Run, phantoms: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*generate(phantoms / "masks", phantoms / "contexts", whole)).code == 0
    record = json.loads((whole / "generated.json").read_text())
    digest, first = record["job"], record["images"][0]
    done = json.dumps({key: value for key, value in first.items() if key not in ("mask", "context", "seed")})
    (out / "masks").mkdir(parents=True)
    for name in ("000000.png", "masks/000000.png", "masks/000001.png"):
        (out / name).write_bytes((whole / name).read_bytes())
    (out / ".000001.png.partial-1-aa").write_bytes(b"half")
    (out / "masks" / ".000001.png.partial-1-aa").write_bytes(b"half")
    (out / "generated.jsonl").write_text(f'{{"job": "{digest}"}}\n{done}\n{{"name": "00')
    result = run(*generate(phantoms / "masks", phantoms / "contexts", out))
    assert result.code == 0 and "1 of them made before" in result.out
    assert contents(out) == contents(whole)


def test_text_burned_into_a_context_is_said(run: Run, phantoms: Path, tmp_path: Path) -> None:
    grey = read_context(phantoms / "contexts" / "000000.png")
    for name, says in (("a", "YES"), ("b", "NO")):
        write_dicom(phantoms / f"{name}.dcm", grey, BurnedInAnnotation=says)
        result = run(*generate(phantoms / "masks", phantoms / f"{name}.dcm", tmp_path / name))
        assert result.code == 0
        assert ("a.dcm: says that text is burned into its pixels" in result.err) == (says == "YES")


@pytest.mark.parametrize("closed", ["0<&- >&- 2>&-", ">&-", "2>&-"])
def test_closed_streams_do_not_stop_the_work(phantoms: Path, tmp_path: Path, closed: str) -> None:
    """As services and job schedulers start programs."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    for folder, streams in ((whole, ""), (out, closed)):
        arguments = map(str, generate(phantoms / "masks", phantoms / "contexts", folder))
        command = shlex.join([sys.executable, "-m", "csg_edge", *arguments])
        assert subprocess.run(f"{command} {streams}", shell=True, check=False).returncode == 0
    assert contents(out) == contents(whole)


def test_an_image_that_was_taken_away_is_made_again(run: Run, phantoms: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(*generate(phantoms / "masks", phantoms / "contexts", whole)).code == 0
    digest = json.loads((whole / "generated.json").read_text())["job"]
    (out / "masks").mkdir(parents=True)
    (out / "generated.jsonl").write_text(f'{{"job": "{digest}"}}\n{{"name": "000000"}}\n')
    assert run(*generate(phantoms / "masks", phantoms / "contexts", out)).code == 0
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_killed_at_any_moment_the_next_run_completes_with_the_same_bytes(phantoms: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)

    def command(out: Path) -> list[str]:
        options = ["--runtime", "openvino", "--precision", "int8", "--count", "150"]
        found = generate(phantoms / "masks", phantoms / "contexts", out, *options)
        return [sys.executable, "-m", "csg_edge", *map(str, found)]

    start = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    took = time.monotonic() - start
    expected = contents(tmp_path / "whole")
    assert len(expected) == 300 * 2 + 2
    for kill in range(5):
        out = tmp_path / f"killed{kill}"
        process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(took * random.uniform(0.2, 1.0))
        process.kill()
        process.wait()
        subprocess.run(command(out), check=True, capture_output=True)
        assert contents(out) == expected


@pytest.mark.parametrize("command", ["generate", "info", "verify"])
def test_a_damaged_bundle_is_refused_by_every_command(
    run: Run, phantoms: Path, bundle_copy: Path, tmp_path: Path, command: str
) -> None:
    path = bundle_copy / "graphs" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    before = contents(tmp_path)
    good = generate(phantoms / "masks", phantoms / "contexts", tmp_path / "result", "--bundle", bundle_copy)
    arguments = good if command == "generate" else [command, bundle_copy]
    assert_refused(run(*arguments), str(path), "copy the bundle again")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("arguments", [["generate"], ["imagine"], ["info", "nowhere"], ["phantom", "--count", "2"]])
def test_wrong_use_is_one_line(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


def seeded_commands() -> list[str]:
    return sorted(
        name for name, command in main.commands.items() if any(option.name == "seed" for option in command.params)
    )


def test_these_commands_take_a_seed() -> None:
    assert set(seeded_commands()) >= {
        "distill", "fit-evaluators", "generate", "phantom", "train", "train-autoencoder", "validate"
    }  # fmt: skip


@pytest.mark.parametrize("command", seeded_commands())
@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_generator_takes_is_one_line(run: Run, phantoms: Path, command: str, seed: int) -> None:
    """Whatever else is given: a seed is looked at first."""
    assert_refused(run(command, "--seed", seed), f"--seed {seed}", "give an integer from 0")


class TestPhantom:
    def test_a_folder_ready_for_generate(self, run: Run, tmp_path: Path) -> None:
        result = run("phantom", "--out", tmp_path / "p", "--count", 3, "--seed", 4, "--size", 64, "--json")
        assert result.code == 0
        assert json.loads(result.out) == {"out": str(tmp_path / "p"), "count": 3, "seed": 4, "size": 64}
        assert len(plan(tmp_path / "p" / "masks", tmp_path / "p" / "contexts", count=1, seed=0)) == 3
        assert run("phantom", "--out", tmp_path / "q", "--count", 3, "--seed", 4, "--size", 64).code == 0
        assert contents(tmp_path / "p") == contents(tmp_path / "q")

    @pytest.mark.parametrize(
        ("options", "named"),
        [(["--count", 0], "count is 0"), (["--size", 100], "size is 100")],
        ids=["count", "size"],
    )
    def test_bad_options(self, run: Run, tmp_path: Path, options: list[object], named: str) -> None:
        assert_refused(run("phantom", "--out", tmp_path / "p", *options), named, "give")
        assert contents(tmp_path) == {}

    def test_a_full_folder_is_left_alone(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("keep")
        assert_refused(run("phantom", "--out", tmp_path), str(tmp_path), "name a new folder")
        assert contents(tmp_path) == {"mine.txt": b"keep"}


class TestInfo:
    def test_json_is_the_manifest(self, run: Run, shipped: Path) -> None:
        result = run("info", "--json")
        assert (result.code, result.err) == (0, "")
        values = json.loads(result.out)
        assert values.pop("path") == str(shipped)
        assert values == json.loads(json.dumps(asdict(read_manifest(shipped / MANIFEST_NAME))))
        stored = json.loads((shipped / MANIFEST_NAME).read_text())
        assert all(values[name] == stored[name] for name in stored.keys() - {"golden"})

    def test_people_see_classes_engines_and_size(self, run: Run) -> None:
        out = run("info").out
        assert "256 x 256" in out
        assert "9 ditf" in out
        assert "openvino:CPU:fp32, 2 steps: graphs/steps-2.onnx" in out
        assert "all hashes match" in out


class TestAnEngineThatMakesAWrongImage:
    """Its file is whole and in the manifest, so only its golden image gives it away."""

    @pytest.fixture
    def planted(self, small_bundle: Path) -> Path:
        manifest = read_manifest(small_bundle / MANIFEST_NAME)
        weights = small_bundle / "graphs" / "weights.safetensors"
        data = bytearray(weights.read_bytes())
        half = len(data) // 2
        data[half:] = bytes(len(data) - half)
        weights.write_bytes(data)
        write_manifest(small_bundle, manifest)
        return small_bundle

    def test_asked_for_by_name_it_is_refused(self, run: Run, phantoms: Path, planted: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = run(*generate(phantoms / "masks", phantoms / "contexts", out, "--bundle", planted))
        assert result.code == 2
        (line,) = result.err.splitlines()
        assert "onnxruntime:CPU:fp32: fails golden case" in line and "csg-edge verify" in line and "--unproven" in line
        assert not out.exists()

    def test_with_unproven_there_is_a_warning(self, run: Run, phantoms: Path, planted: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        result = run(*generate(phantoms / "masks", phantoms / "contexts", out, "--bundle", planted, "--unproven"))
        assert result.code == 0
        assert "this engine was not proven; csg-edge verify" in result.err
        assert (out / "000000.png").is_file()


class TestDoctor:
    def test_json_says_what_runs_here(self, run: Run) -> None:
        result = run("doctor", "--json")
        assert (result.code, result.err) == (0, "")
        report = json.loads(result.out)
        assert report["csg_edge"] == csg_edge.__version__
        assert report["runtimes"].keys() == {"openvino", "onnxruntime", "tensorrt-rtx", "tensorrt", "torch"}
        assert report["extras"]["openvino"] == report["extras"]["onnxruntime"] == "runs here"
        assert "pip install 'csg-edge[onnxruntime-openvino]'" in report["extras"]["onnxruntime-openvino"]
        assert "pip install 'csg-edge[tensorrt]'" in report["extras"]["tensorrt"]
        assert report["conflicts"] == []
        assert report["bundle"]["auto"].keys() == {"1", "2", "4"}
        assert report["cache"]["folder"]
        assert report["bundle"]["engines"]["onnxruntime:CPU:fp32 steps 1"] == "runs here"

    def test_a_missing_runtime_and_a_missing_bundle_are_told_with_their_remedies(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        result = run("doctor", "--bundle", "nowhere")
        assert result.code == 0
        assert "pip install 'csg-edge[onnxruntime]'" in result.out
        assert "nowhere: no bundle there" in result.out

    def test_two_builds_of_onnx_runtime_in_one_environment_are_told(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both = {"onnxruntime": ["onnxruntime-gpu", "onnxruntime"]}
        monkeypatch.setattr("csg_edge.generation.doctor.packages_distributions", lambda: both)
        (line,) = [line for line in run("doctor").out.splitlines() if line.startswith("conflict")]
        assert "pip uninstall onnxruntime onnxruntime-gpu" in line


class TestVerify:
    def test_a_good_bundle_passes(self, run: Run, small_bundle: Path) -> None:
        result = run("verify", small_bundle, "--json")
        assert (result.code, result.err) == (0, "")
        report = json.loads(result.out)
        assert report["passed"] is True
        (engine,) = report["engines"]
        assert (engine["target"], engine["status"]) == ("onnxruntime:CPU:fp32", "passed")
        assert engine["worst"]["share_within_1"] >= 0.999

    def test_another_image_than_promised_fails(self, run: Run, small_bundle: Path) -> None:
        manifest = read_manifest(small_bundle / MANIFEST_NAME)
        (case,) = manifest.golden
        write_manifest(small_bundle, replace(manifest, golden=(replace(case, seed=case.seed + 1),)))
        result = run("verify", small_bundle)
        assert result.code == 1
        assert result.out.startswith("failed   onnxruntime:CPU:fp32, 1 step ")
        assert result.out.endswith(f"beyond tolerance: {case.name}\n")

    def test_an_engine_that_cannot_run_is_no_pass(self, run: Run, small_bundle: Path) -> None:
        manifest = read_manifest(small_bundle / MANIFEST_NAME)
        (engine,) = manifest.engines
        write_manifest(small_bundle, replace(manifest, engines=(replace(engine, target="onnxruntime:NPU:fp32"),)))
        result = run("verify", small_bundle)
        assert result.code == 1
        assert result.out.startswith("not run  onnxruntime:NPU:fp32")
        assert "use CPU" in result.out


COMMANDS = {"csg-edge": main, **main.commands}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.opts[0] for option in options if not option.help] == []


def test_help_and_no_arguments_are_no_error(run: Run) -> None:
    plain = run()
    assert plain == run("--help")
    assert (plain.code, plain.err) == (0, "")
    assert plain.out.startswith("Usage: csg-edge")
    assert run("--version").out.strip().endswith(csg_edge.__version__)


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "csg_edge", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_exit_codes_reach_the_shell(tmp_path: Path) -> None:
    good = run_module("phantom", "--out", str(tmp_path / "p"), "--count", "1", "--size", "64", "--json")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["count"] == 1
    bad = run_module("info", str(tmp_path / "nowhere"))
    assert_refused(Result(bad.returncode, bad.stdout, bad.stderr), "nowhere", "give a bundle folder")
