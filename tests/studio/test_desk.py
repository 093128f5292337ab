"""The studio without the web: scenes, images, files dropped, results and the commands that make them again."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from command import run
from studios import colour_png

from csg_edge.conditions.files import read_context, write_png
from csg_edge.datasets.phantom import make_phantom
from csg_edge.errors import InputError
from csg_edge.studio.desk import LARGEST_UPLOAD, NOTICE, Desk, Wish, zipped


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    desk = Desk("msk-256", results=tmp_path_factory.mktemp("results") / "out")
    yield desk
    desk.close()


@pytest.fixture(scope="module")
def fibred(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """With a tiny random student whose graph takes a fibre field."""
    from tiny_model import TINY, tiny_model

    from csg_edge.export.assemble import export_bundle

    config = replace(TINY, fibres=True, norm="affine", attention=False)
    images = np.stack([make_phantom(seed, size=64).image for seed in range(3)])
    out = tmp_path_factory.mktemp("fibred") / "bundle"
    export_bundle(tiny_model("student", config, deviation=0.2, images=images).eval(), out, steps=(1,), name="fibred")
    desk = Desk(str(out))
    yield desk
    desk.close()


@pytest.fixture
def wish(desk: Desk) -> Wish:
    mask, context = desk.scene("phantom-1")
    return Wish(mask, context, seed=11, engine="openvino:CPU:bf16")


def unpacked(desk: Desk, wish: Wish, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(zipped(desk.packed(wish)))) as archive:
        archive.extractall(folder)
    return folder


class TestAbout:
    def test_it_can_be_sent(self, desk: Desk) -> None:
        about = json.loads(json.dumps(desk.about()))
        assert [item["name"] for item in about["classes"]] == list(desk.schema.names)
        assert about["scenes"] == list(desk.golden)
        assert about["fibre"] == (desk.bundle.manifest.fibre_shape is not None) and about["results"]
        assert {item["target"]: item["why_not"] for item in about["engines"]}["openvino:CPU:bf16"] == ""

    def test_scenes(self, desk: Desk) -> None:
        for name in (*desk.golden, "phantom-0"):
            mask, context = desk.scene(name)
            assert mask.shape == context.shape == desk.size
        for name in ("nothing", "phantom--1", "phantom-9999999999", "../manifest.json"):
            with pytest.raises(InputError, match="there is none of that name"):
                desk.scene(name)

    def test_the_gallery(self, tmp_path: Path, desk: Desk) -> None:
        grey = np.tile(np.arange(200, dtype=np.uint8), (100, 1))
        write_png(tmp_path / "a.png", grey)
        gallery = Desk("msk-256", tmp_path)
        assert gallery.about()["contexts"] == ["a"]
        assert gallery.context(0).shape == desk.size
        with pytest.raises(InputError, match="the gallery has 1"):
            gallery.context(1)


class TestSameBytes:
    @pytest.mark.parametrize("vary", ["", "tilt:+6deg", "deform:+0.5,shift:x=-10%"])
    @pytest.mark.parametrize("steps", [1, 2])
    def test_as_the_command_that_is_copied(self, desk: Desk, wish: Wish, tmp_path: Path, vary: str, steps: int) -> None:
        wish = Wish(wish.mask, wish.context, wish.seed, steps, wish.engine, vary)
        folder = unpacked(desk, wish, tmp_path)
        words = shlex.split((folder / "command.txt").read_text())
        at = {word: str(folder / word) for word in ("painted.png", "context.png", "out")}
        done = run(*[at.get(word, word) for word in words[1:]])
        assert done.returncode == 0, done.stderr
        image = read_context(folder / "image.png")
        assert np.array_equal(read_context(folder / "out" / "painted.png"), image)
        assert np.array_equal(desk.make(wish).image, image)
        if vary:
            assert not np.array_equal(cv2.imread(str(folder / "mask.png"), 0), wish.mask)

    def test_with_fibres_and_a_tear(self, fibred: Desk, tmp_path: Path) -> None:
        from csg_edge.conditions.fibre_files import read_field

        schema = fibred.schema
        mask = np.full(fibred.size, schema.index("muscle"), np.uint8)
        mask[20:44] = schema.index("tendon")
        context = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
        wish = Wish(mask, context, 5, 1, "onnxruntime:CPU:fp32", "insert:ditf=+40%", "muscle=18deg,tendon=-5deg")
        folder = unpacked(fibred, wish, tmp_path)
        words = shlex.split((folder / "command.txt").read_text())[1:]
        at = {word: str(folder / word) for word in ("painted.png", "context.png", "out")}
        done = run(*[at.get(word, word) for word in words])
        assert done.returncode == 0, done.stderr
        by_python = subprocess.run([sys.executable, "make.py"], cwd=folder, capture_output=True, text=True, check=False)
        assert by_python.returncode == 0, by_python.stderr
        for made in (folder / "out" / "painted.png", folder / "image.png"):
            assert np.array_equal(read_context(made), fibred.make(wish).image), made
        assert np.array_equal(read_field(folder / "fibre_used.npz"), fibred.make(wish).used)

    def test_as_the_python_that_is_copied(self, desk: Desk, wish: Wish, tmp_path: Path) -> None:
        wish = Wish(wish.mask, wish.context, 2**63, 1, wish.engine, "tilt:+4deg")
        folder = unpacked(desk, wish, tmp_path)
        wanted = (folder / "image.png").read_bytes()
        (folder / "image.png").unlink()
        done = subprocess.run([sys.executable, "make.py"], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert np.array_equal(read_context(folder / "image.png"), desk.make(wish).image)
        assert wanted != (folder / "image.png").read_bytes()  # without the notice in its metadata

    def test_every_image_says_what_it_is(self, desk: Desk, wish: Wish) -> None:
        from PIL import Image

        files = desk.packed(wish)
        for name in ("image.png", "mask.png"):
            assert NOTICE in Image.open(io.BytesIO(files[name])).text["Description"]  # type: ignore[attr-defined]
        assert json.loads(files["provenance.json"])["notice"] == NOTICE
        assert zipped(files) == zipped(desk.packed(wish))


class TestResults:
    def test_each_has_a_folder(self, desk: Desk, wish: Wish) -> None:
        assert [desk.save(wish), desk.save(wish)] == ["studio_000001", "studio_000002"]
        assert desk.results is not None
        found = {path.name for path in (desk.results / "studio_000002").iterdir()}
        assert found == set(desk.packed(wish))

    def test_no_folder_and_one_that_cannot_be_written(self, wish: Wish, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="start csg-edge studio with --out"):
            Desk("msk-256").save(wish)
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match="cannot write"):
            Desk("msk-256", results=tmp_path / "file").save(wish)


class TestFiles:
    def test_what_is_read_is_what_was_sent(self, desk: Desk) -> None:
        mask, context = desk.scene("phantom-1")
        files = [cv2.imencode(".png", array)[1].tobytes() for array in (mask, context)]
        assert np.array_equal(desk.read("mask", "a mask.png", files[0]), mask)
        assert np.array_equal(desk.read("context", "C:\\scans\\b.PNG", files[1]), context)

    @pytest.mark.parametrize(
        ("kind", "name", "data", "said"),
        [
            ("mask", "c.png", colour_png(),
             "c.png: a colour mask"),
            ("context", "notes.txt", b"not an image at all", "notes.txt"),
            ("mask", "notes.png", b"not an image at all", "notes.png"),
            ("mask", "../../etc/x.jpg", b"\xff\xd8\xff", "x.jpg: masks need a lossless format"),
            ("context", "big.png", bytes(LARGEST_UPLOAD + 1), "give at most 20 MB"),
            ("context", "", b"", "file"),
        ],
    )  # fmt: skip
    def test_what_is_wrong_is_named_as_the_user_knows_it(
        self, desk: Desk, kind: str, name: str, data: bytes, said: str
    ) -> None:
        with pytest.raises(InputError) as raised:
            desk.read(kind, name, data)
        assert said in str(raised.value)
        assert "/tmp" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "openvino:CPU"}, "write runtime:device:precision"),
        ({"engine": "openvino:CPU:fp16"}, "has no engine for"),
        ({"steps": 3}, "steps 3"),
        ({"seed": -1}, "seed"),
        ({"vary": "bend"}, "no variation 'bend'"),
        ({"fibre": "bend=9deg"}, "takes no fibre field|no class 'bend'|bend"),
    ],
)
def test_wrong_wishes(desk: Desk, wish: Wish, changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        desk.make(Wish(wish.mask, wish.context, **{"engine": wish.engine, **changes}))  # type: ignore[arg-type]
