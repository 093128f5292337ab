"""The C library: the same engines, verdicts, noise and bytes as Python's, and a sentence for whatever is wrong."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from library import BUILD, ROOT, Info, Job, NativeError, NativeGenerator, Options, Status, open_library

import csg_edge
from csg_edge.bundle.manifest import MANIFEST_NAME, Engine, Tolerance, read_manifest, write_manifest
from csg_edge.conditions.fibres import Wish, field_of_mask
from csg_edge.conditions.files import read_context, read_mask, write_png
from csg_edge.datasets.phantom import make_phantom
from csg_edge.errors import CsgEdgeError
from csg_edge.export.assemble import export_bundle
from csg_edge.labels import MSK_SCHEMA
from csg_edge.noise import noise_for

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "fuzz")]
from mutate import mutate  # noqa: E402
from tiny_bundle import tiny_bundle  # noqa: E402
from tiny_model import TINY, tiny_model  # noqa: E402

# Runs a program and prints its resident memory at its highest, KiB.
PEAK = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)
SCENES = [make_phantom(seed, size=256) for seed in range(4)]


@pytest.fixture(scope="module")
def library() -> Any:
    return open_library()


@pytest.fixture(scope="module")
def native(shipped: Path, cache_folder: Path) -> Iterator[NativeGenerator]:
    with NativeGenerator(shipped, runtime="openvino", precision="fp32", threads=1) as opened:
        yield opened


@pytest.fixture
def damaged(tmp_path: Path, shipped: Path) -> Path:
    """A copy of the shipped bundle's golden cases and portable graphs, for damaging: quick to hash."""
    return Path(shutil.copytree(shipped, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def fibred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny student that takes fibre fields."""
    images = np.stack([make_phantom(seed, size=64).image for seed in range(4)])
    student = tiny_model("student", replace(TINY, fibres=True), deviation=0.2, images=images).eval()
    out = tmp_path_factory.mktemp("fibred") / "bundle"
    export_bundle(student, out, steps=(1,), name="fibred")
    return out


class TestNoise:
    @pytest.mark.parametrize("seed", [0, 1, 7, 2**32, 2**64 - 1])
    @pytest.mark.parametrize("count", [1, 2, 5, 6, 4097, 65536])
    def test_it_is_python_s_bit_for_bit(self, library: Any, seed: int, count: int) -> None:
        values = np.empty(count, np.float32)
        library.csg_edge_noise(ctypes.c_uint64(seed), values.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(count))
        assert values.tobytes() == noise_for(seed, (count,)).tobytes()

    @pytest.mark.slow
    def test_four_million_values(self, library: Any) -> None:
        for seed in range(64):
            self.test_it_is_python_s_bit_for_bit(library, seed, 65536)


class TestSameBytes:
    def images(self, shipped: Path, precision: str, count: int, steps: int = 1) -> None:
        wanted = {"runtime": "openvino", "precision": precision, "steps": steps, "threads": 2}
        with csg_edge.load(shipped, **wanted) as python, NativeGenerator(shipped, **wanted) as native:  # type: ignore[arg-type]
            assert native.engine == python.engine.target
            for seed in range(count):
                mask, context = SCENES[seed % len(SCENES)].mask, SCENES[(seed + 1) % len(SCENES)].image
                made = native.generate(mask, context, seed)
                assert np.array_equal(made, python.generate_one(mask, context, seed)), seed

    @pytest.mark.parametrize("precision", ["int8", "fp32"])
    def test_a_few(self, shipped: Path, precision: str) -> None:
        self.images(shipped, precision, 3)

    def test_two_steps(self, shipped: Path) -> None:
        self.images(shipped, "fp32", 2, steps=2)

    @pytest.mark.slow
    @pytest.mark.parametrize("precision", ["int8", "bf16", "fp32"])
    def test_a_hundred(self, shipped: Path, precision: str) -> None:
        self.images(shipped, precision, 100)

    def test_no_mask_and_no_context(self, native: NativeGenerator, shipped: Path) -> None:
        nothing = np.full((256, 256), 255, np.uint8), np.zeros((256, 256), np.uint8)
        with csg_edge.load(shipped, runtime="openvino", precision="fp32", threads=1) as python:
            assert np.array_equal(native.generate(None, None, 3), python.generate_one(*nothing, 3))

    def test_given_noise_is_used(self, native: NativeGenerator) -> None:
        scene, noise = SCENES[0], noise_for(11, (16, 64, 64))
        from_noise = native.generate(scene.mask, scene.image, 999, noise=noise.ctypes.data)
        assert np.array_equal(from_noise, native.generate(scene.mask, scene.image, 11))

    def test_noise_is_kept_for_its_seed_alone(self, native: NativeGenerator) -> None:
        scene, noise = SCENES[0], noise_for(12, (16, 64, 64))
        first = native.generate(scene.mask, scene.image, 11)
        assert np.array_equal(first, native.generate(scene.mask, scene.image, 11))
        other = native.generate(scene.mask, scene.image, 999, noise=noise.ctypes.data)
        assert not np.array_equal(first, other)
        assert np.array_equal(first, native.generate(scene.mask, scene.image, 11))
        assert np.array_equal(other, native.generate(scene.mask, scene.image, 12))

    def test_rows_may_be_apart_and_upside_down(self, native: NativeGenerator) -> None:
        scene = SCENES[1]
        plain = native.generate(scene.mask, scene.image, 2)
        wide = np.zeros((256, 300), np.uint8)
        wide[:, :256] = scene.mask
        flipped = np.ascontiguousarray(scene.image[::-1])[::-1]
        assert flipped.strides[0] < 0
        assert np.array_equal(native.generate(wide[:, :256], flipped, 2), plain)
        canvas = np.full((256, 400), 77, np.uint8)
        native.run(Job(mask=scene.mask.ctypes.data, context=scene.image.ctypes.data, seed=2, image=canvas.ctypes.data,
                       image_stride=400))  # fmt: skip
        assert np.array_equal(canvas[:, :256], plain)
        assert (canvas[:, 256:] == 77).all()

    def test_many_threads_on_one_handle(self, native: NativeGenerator) -> None:
        scene = SCENES[2]
        expected = [native.generate(scene.mask, scene.image, seed) for seed in range(4)]
        wrong: list[int] = []

        def work(seed: int) -> None:
            for _ in range(3):
                if not np.array_equal(native.generate(scene.mask, scene.image, seed), expected[seed]):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


@pytest.mark.skipif(
    not (BUILD / "libcsg_edge_onnxruntime.so").is_file(), reason="built without the headers of ONNX Runtime"
)
class TestOnnxRuntime:
    @pytest.mark.parametrize("precision", ["int8", "fp32"])
    def test_the_same_bytes(self, shipped: Path, precision: str) -> None:
        wanted = {"runtime": "onnxruntime", "precision": precision, "threads": 1}
        scene = SCENES[0]
        with csg_edge.load(shipped, **wanted) as python, NativeGenerator(shipped, **wanted) as native:  # type: ignore[arg-type]
            expected = python.generate_one(scene.mask, scene.image, 6)
            assert np.array_equal(native.generate(scene.mask, scene.image, 6), expected)
            assert np.array_equal(native.generate(scene.mask, scene.image, 6, timeout_ms=60_000), expected)
            with pytest.raises(NativeError, match="no image after 1 ms"):
                native.generate(scene.mask, scene.image, 6, timeout_ms=1)
            assert np.array_equal(native.generate(scene.mask, scene.image, 6), expected)
            assert native.verify().passed == 5

    def test_fibres(self, fibred: Path) -> None:
        scene, used = make_phantom(1, size=64), np.zeros((3, 16, 16), np.float32)
        wanted = {"runtime": "onnxruntime", "precision": "fp32", "threads": 1}
        with csg_edge.load(fibred, **wanted) as python, NativeGenerator(fibred, **wanted) as native:  # type: ignore[arg-type]
            image = native.generate(scene.mask, scene.image, 5, used=used)
            (expected,), (field,) = python.generate([scene.mask], [scene.image], [5], return_fibres=True)
            assert np.array_equal(image, expected)
            assert np.array_equal(used, field)

    def test_a_file_that_is_no_graph(self, damaged: Path) -> None:
        manifest = read_manifest(damaged / MANIFEST_NAME)
        wrong = Engine("onnxruntime:CPU:fp32", 1, "LICENSE", Tolerance(1, 0.9, 40.0))
        write_manifest(damaged, replace(manifest, engines=(wrong,)))
        with pytest.raises(NativeError, match="ONNX Runtime cannot open it"):
            NativeGenerator(damaged, runtime="onnxruntime")


class TestFibres:
    def test_given_and_used(self, fibred: Path) -> None:
        scene = make_phantom(1, size=64)
        target = MSK_SCHEMA.names[int(np.bincount(scene.mask.ravel()).argmax())]
        given = field_of_mask(scene.mask, MSK_SCHEMA, [Wish(target, 20, 20)], seed=0)
        wanted = {"runtime": "openvino", "precision": "fp32", "threads": 1}
        with csg_edge.load(fibred, **wanted) as python, NativeGenerator(fibred, **wanted) as native:  # type: ignore[arg-type]
            assert (native.info().format, native.info().fibre_rows) == (3, 16)
            for field in (None, given):
                used = np.zeros((3, 16, 16), np.float32)
                image = native.generate(scene.mask, scene.image, 5, fibre=field, used=used)
                (expected,), (field_used,) = python.generate(
                    [scene.mask], [scene.image], [5], fibres=[field], return_fibres=True
                )
                assert np.array_equal(image, expected)
                assert np.array_equal(used, field_used)
            verified = native.verify()
            assert verified.cases == verified.passed > 0

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ((0, np.nan), "NaN"), ((1, np.inf), "NaN or infinity"), ((0, 1.2), "coherence above 1"),
            ((2, 1.5), "third channel"), ((2, -0.1), "third channel"),
        ],
    )  # fmt: skip
    def test_a_bad_field(self, fibred: Path, change: tuple[int, float], says: str) -> None:
        field = np.zeros((3, 16, 16), np.float32)
        field[change[0], 3, 4] = change[1]
        scene = make_phantom(1, size=64)
        with NativeGenerator(fibred, runtime="openvino", precision="fp32") as native:
            with pytest.raises(NativeError, match=says) as caught:
                native.generate(scene.mask, scene.image, fibre=field)
            assert caught.value.status == Status.INVALID_ARGUMENT

    def test_a_field_where_none_is_taken(self, tmp_path: Path) -> None:
        tiny_bundle(tmp_path)
        scene = SCENES[0]
        with NativeGenerator(tmp_path, runtime="openvino", precision="fp32") as native:
            assert native.info().fibre_rows == 0
            for name in ("fibre", "used"):
                with pytest.raises(NativeError, match="tiny: this bundle takes no fibre field") as caught:
                    native.generate(scene.mask, scene.image, **{name: np.zeros((3, 16, 16), np.float32)})  # type: ignore[arg-type]
                assert caught.value.status == Status.INVALID_ARGUMENT


class TestChoice:
    """The same order, proof and verdicts as Python."""

    def test_python_s_verdict_and_compiled_engine_are_used(self, shipped: Path, tmp_path: Path) -> None:
        with csg_edge.load(shipped, cache=tmp_path) as python:
            target = python.engine.target
        kept = sorted(path.name for path in tmp_path.iterdir())
        with NativeGenerator(shipped, cache=tmp_path) as native:
            assert native.engine == target
            assert "golden case passed before" in native.choice
        assert sorted(path.name for path in tmp_path.iterdir()) == kept

    def test_python_uses_ours(self, shipped: Path, tmp_path: Path) -> None:
        with NativeGenerator(shipped, cache=tmp_path) as native:
            target = native.engine
            assert "golden case passed just now" in native.choice
        kept = sorted(path.name for path in tmp_path.iterdir())
        with csg_edge.load(shipped, cache=tmp_path) as python:
            assert python.engine.target == target
            assert python.choice.proven == "before"
        assert sorted(path.name for path in tmp_path.iterdir()) == kept

    def test_no_cache_is_written_where_none_is_wanted(self, shipped: Path, cache_folder: Path) -> None:
        before = sorted(cache_folder.iterdir())
        with NativeGenerator(shipped, cache="", runtime="openvino", precision="fp32") as native:
            assert "just now" in native.choice
        assert sorted(cache_folder.iterdir()) == before

    def test_a_damaged_entry_is_made_anew(self, shipped: Path, tmp_path: Path) -> None:
        wanted = {"cache": tmp_path, "runtime": "openvino", "precision": "fp32"}
        NativeGenerator(shipped, **wanted).close()
        for entry in tmp_path.iterdir():
            data = bytearray(entry.read_bytes())
            data[len(data) // 2] ^= 1
            entry.write_bytes(data)
        with NativeGenerator(shipped, **wanted) as native:
            assert "just now" in native.choice

    def test_an_engine_that_makes_a_wrong_image(self, plain_copy: Path) -> None:
        """Half of the weights are zero, and the hashes are right again."""
        manifest = read_manifest(plain_copy / MANIFEST_NAME)
        weights = plain_copy / "graphs/weights.safetensors"
        data = bytearray(weights.read_bytes())
        half = len(data) // 2
        data[half:] = bytes(len(data) - half)
        weights.write_bytes(data)
        write_manifest(plain_copy, manifest)
        by_name = {"runtime": "openvino", "precision": "fp32"}
        with pytest.raises(NativeError, match=r"fails golden case .* use it as it is with `unproven`") as caught:
            NativeGenerator(plain_copy, **by_name)
        assert caught.value.status == Status.ENGINE_FAILED
        with NativeGenerator(plain_copy, unproven=1, **by_name) as native:
            assert "not proven" in native.choice
            with pytest.raises(NativeError, match="beyond tolerance"):
                native.verify()
        with pytest.raises(NativeError, match=r"no engine can run here\. openvino:CPU:.*fails golden case") as caught:
            NativeGenerator(plain_copy)
        assert caught.value.status == Status.UNAVAILABLE

    def test_the_next_engine_is_taken_where_the_first_is_wrong(self, damaged: Path) -> None:
        manifest = read_manifest(damaged / MANIFEST_NAME)
        first, *others = manifest.engines
        strict = replace(first, tolerance=Tolerance(0, 1.0, 90.0))
        write_manifest(damaged, replace(manifest, engines=(strict, *others)))
        with NativeGenerator(damaged) as native:
            assert native.engine != first.target
            assert f"not {first.target}: fails golden case" in native.choice

    def test_every_golden_case(self, shipped: Path) -> None:
        with NativeGenerator(shipped) as native:
            found = native.verify()
        assert found.cases == found.passed == len(read_manifest(shipped / MANIFEST_NAME).golden)
        assert found.worst_psnr > 30

    def test_what_the_log_says(self, shipped: Path) -> None:
        lines: list[tuple[int, str]] = []
        wanted = {"runtime": "openvino", "precision": "fp32"}
        NativeGenerator(shipped, log=lambda level, text: lines.append((level, text)), **wanted).close()
        assert any("opening openvino:CPU:fp32" in text for _, text in lines)
        assert lines[-1][0] == 1

    @pytest.mark.parametrize(
        ("options", "status", "says"),
        [
            ({"precision": "fp8"}, Status.INVALID_ARGUMENT, "precision 'fp8' is unknown; choose auto, fp32"),
            ({"steps": 3}, Status.INVALID_ARGUMENT, "has steps 1, 2, 4"),
            ({"steps": -1}, Status.INVALID_ARGUMENT, "give 0 or more"),
            ({"precision": "fp16"}, Status.INVALID_ARGUMENT, "has no engine for auto:auto:fp16; it has"),
            ({"runtime": "../evil"}, Status.INVALID_ARGUMENT, "no engine for"),
            ({"runtime": "tensorrt"}, Status.INVALID_ARGUMENT, "no libcsg_edge_tensorrt.so"),
            ({"device": "GPU"}, Status.INVALID_ARGUMENT, "no engine for auto:GPU:auto"),
            ({"memory_limit": 20 << 20}, Status.TOO_LITTLE_MEMORY, "memory_limit is 20 MB; raise it"),
            (
                {"runtime": "openvino", "precision": "fp32", "memory_limit": 1 << 20},
                Status.TOO_LITTLE_MEMORY,
                "raise it",
            ),
        ],
    )
    def test_options_that_do_not_fit(self, shipped: Path, options: dict[str, Any], status: Status, says: str) -> None:
        with pytest.raises(NativeError) as caught:
            NativeGenerator(shipped, **options)
        assert caught.value.status == status
        assert says in str(caught.value)

    def test_a_memory_limit_that_is_enough(self, shipped: Path) -> None:
        with NativeGenerator(shipped) as native:
            need = native.info().memory_estimate
        with NativeGenerator(shipped, memory_limit=need) as native:
            assert native.engine

    @pytest.mark.parametrize("precision", ["int8", "fp32"])
    def test_the_memory_estimate_is_not_exceeded(self, shipped: Path, tmp_path: Path, precision: str) -> None:
        """By a program that opens the engine without a cache and makes every golden image."""
        program = [sys.executable, "-c", PEAK, BUILD / "examples/verify", shipped, precision]
        environment = {**os.environ, "CSG_EDGE_CACHE": str(tmp_path)}
        done = subprocess.run(program, check=True, capture_output=True, text=True, env=environment)
        with NativeGenerator(shipped, runtime="openvino", precision=precision) as native:
            estimate = native.info().memory_estimate
        assert estimate / 2 < 1024 * int(done.stdout) < estimate + (16 << 20)  # that of a program that does nothing


class TestStopping:
    def test_too_little_time(self, native: NativeGenerator) -> None:
        scene = SCENES[0]
        expected = native.generate(scene.mask, scene.image, 4)
        for _ in range(3):
            with pytest.raises(NativeError, match="no image after 1 ms; give more time") as caught:
                native.generate(scene.mask, scene.image, 4, timeout_ms=1)
            assert caught.value.status == Status.TIMED_OUT
        assert np.array_equal(native.generate(scene.mask, scene.image, 4, timeout_ms=60_000), expected)

    def test_cancelled_from_another_thread(self, native: NativeGenerator, library: Any) -> None:
        scene = SCENES[0]
        expected = native.generate(scene.mask, scene.image, 4)
        cancellation = ctypes.c_void_p(library.csg_edge_cancellation_create())
        statuses: list[int] = []

        def work() -> None:
            try:
                while True:
                    native.generate(scene.mask, scene.image, 4, cancellation=cancellation)
            except NativeError as failed:
                statuses.append(failed.status)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        library.csg_edge_cancellation_trigger(cancellation)
        for thread in threads:
            thread.join(30)
        assert statuses == [Status.CANCELLED] * 3
        with pytest.raises(NativeError, match="cancelled before it began"):
            native.generate(scene.mask, scene.image, 4, cancellation=cancellation)
        library.csg_edge_cancellation_reset(cancellation)
        assert np.array_equal(native.generate(scene.mask, scene.image, 4, cancellation=cancellation), expected)
        library.csg_edge_cancellation_destroy(cancellation)


class TestWrongCalls:
    def test_a_class_that_the_bundle_lacks(self, native: NativeGenerator) -> None:
        mask = SCENES[0].mask.copy()
        mask[7, 9] = len(native.classes)
        with pytest.raises(NativeError, match="class 10 is outside the bundle's 0 to 9; map your classes") as caught:
            native.generate(mask, SCENES[0].image)
        assert caught.value.status == Status.INVALID_ARGUMENT
        mask[7, 9] = 255
        native.generate(mask, SCENES[0].image)

    def test_noise_that_is_not_finite(self, native: NativeGenerator) -> None:
        for bad in (np.nan, np.inf, -np.inf):
            noise = noise_for(1, (16, 64, 64)).copy()
            noise[15, 63, 63] = bad
            with pytest.raises(NativeError, match="noise: holds NaN or infinity"):
                native.generate(SCENES[0].mask, SCENES[0].image, noise=noise.ctypes.data)

    def test_strides_that_are_too_small(self, native: NativeGenerator) -> None:
        image = np.zeros((256, 256), np.uint8)
        for stride in (1, 255, -255):
            with pytest.raises(NativeError, match=f"image_stride {stride}: give at least 256 bytes, or 0"):
                native.run(Job(image=image.ctypes.data, image_stride=stride))

    def test_nothing_where_something_is_needed(self, native: NativeGenerator, library: Any) -> None:
        with pytest.raises(NativeError, match="image: NULL"):
            native.run(Job())
        assert library.csg_edge_generate(None, None) == Status.INVALID_ARGUMENT
        assert library.csg_edge_generate(native._handle, None) == Status.INVALID_ARGUMENT
        assert library.csg_edge_get_info(native._handle, None) == Status.INVALID_ARGUMENT
        assert library.csg_edge_open(b"x", None, None) == Status.INVALID_ARGUMENT
        library.csg_edge_close(None)
        library.csg_edge_cancellation_destroy(None)
        library.csg_edge_noise(ctypes.c_uint64(1), None, ctypes.c_size_t(9))
        assert library.csg_edge_last_error(None, None, ctypes.c_size_t(0)) == 0
        with pytest.raises(NativeError, match="bundle: NULL"):
            handle = ctypes.c_void_p()
            status = library.csg_edge_open(None, None, ctypes.byref(handle))
            text = ctypes.create_string_buffer(200)
            library.csg_edge_last_error(handle, text, ctypes.c_size_t(200))
            assert library.csg_edge_generate(handle, ctypes.byref(Job())) == Status.INVALID_ARGUMENT
            library.csg_edge_close(handle)
            raise NativeError(status, text.value.decode())

    def test_structures_of_other_versions(self, native: NativeGenerator, library: Any, shipped: Path) -> None:
        older = Info()
        older.size, older.classes = 12, -5  # knows the height alone
        assert library.csg_edge_get_info(native._handle, ctypes.byref(older)) == Status.OK
        assert (older.height, older.width, older.classes) == (256, 0, -5)
        unset = Info()
        unset.size = 0
        assert library.csg_edge_get_info(native._handle, ctypes.byref(unset)) == Status.INVALID_ARGUMENT
        newer = (ctypes.c_ubyte * 400)()
        ctypes.memmove(newer, ctypes.byref(Options(runtime=b"openvino", precision=b"fp32")), ctypes.sizeof(Options))
        newer[0:8] = (400).to_bytes(8, "little")
        handle = ctypes.c_void_p()
        assert library.csg_edge_open(os.fsencode(shipped), ctypes.byref(newer), ctypes.byref(handle)) == Status.OK
        library.csg_edge_close(handle)

    def test_an_error_that_is_longer_than_its_buffer(self, native: NativeGenerator, library: Any) -> None:
        with pytest.raises(NativeError):
            native.run(Job())
        text = ctypes.create_string_buffer(b"zzzzzzzz", 8)
        size = library.csg_edge_last_error(native._handle, text, ctypes.c_size_t(6))
        assert size == len("image: NULL; give memory for the image")
        assert text.raw == b"image\0zz"

    def test_words_for_every_status(self, library: Any) -> None:
        words = {library.csg_edge_status_text(ctypes.c_int32(status)) for status in range(-1, 10)}
        assert len(words) == 10
        assert library.csg_edge_version() == b"1.0.0"


class TestBundles:
    def refused(self, bundle: Path, says: str) -> None:
        """Both refuse it, and ours says so."""
        with pytest.raises(CsgEdgeError):
            csg_edge.load(bundle)
        with pytest.raises(NativeError) as caught:
            NativeGenerator(bundle)
        assert caught.value.status == Status.BAD_BUNDLE
        assert says in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_spaces_and_other_alphabets(self, shipped: Path, tmp_path: Path) -> None:
        other = shutil.copytree(shipped, tmp_path / "Bündel für Йод 超声")
        wanted = {"runtime": "openvino", "precision": "int8", "cache": tmp_path / "ca che é"}
        scene = SCENES[0]
        with NativeGenerator(other, **wanted) as native, NativeGenerator(shipped, **wanted) as plain:
            assert np.array_equal(
                native.generate(scene.mask, scene.image, 1), plain.generate(scene.mask, scene.image, 1)
            )

    def test_a_folder_that_cannot_be_written(self, damaged: Path) -> None:
        for path in (damaged, *damaged.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            before = {path: path.stat().st_mtime_ns for path in damaged.rglob("*")}
            NativeGenerator(damaged).close()
            assert {path: path.stat().st_mtime_ns for path in damaged.rglob("*")} == before
        finally:
            for path in (damaged, *damaged.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)

    def test_no_bundle(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "no bundle there (no manifest.json); give a bundle folder")
        self.refused(tmp_path / "missing", "no bundle there")

    @pytest.mark.parametrize("name", ["graphs/weights.safetensors", "golden/bone.mask.png", "LICENSE"])
    def test_a_flipped_bit(self, damaged: Path, name: str) -> None:
        data = bytearray((damaged / name).read_bytes())
        data[len(data) // 2] ^= 4
        (damaged / name).write_bytes(data)
        self.refused(damaged, f"{name}: does not match its hash in manifest.json")

    def test_a_flipped_bit_in_the_manifest(self, damaged: Path) -> None:
        text = (damaged / MANIFEST_NAME).read_text()
        (damaged / MANIFEST_NAME).write_text(text.replace("msk-256", "msk-257"))
        self.refused(damaged, "does not match manifest.sha256")

    def test_a_missing_file(self, damaged: Path) -> None:
        (damaged / "graphs/steps-4.onnx").unlink()
        self.refused(damaged, "steps-4.onnx: missing from the bundle; copy the bundle again")

    def test_a_link_that_leads_outside(self, damaged: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        (damaged / "LICENSE").rename(outside)
        (damaged / "LICENSE").symlink_to(outside)
        self.refused(damaged, "leads outside the bundle; do not use this bundle")

    def test_a_pipe_that_nobody_writes_to(self, damaged: Path) -> None:
        (damaged / "LICENSE").unlink()
        os.mkfifo(damaged / "LICENSE")
        self.refused(damaged, "missing from the bundle")

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("[" * 100_000, "deeper or longer"),
            ("{" + '"a":[1],' * 60_000 + '"b":1}', "deeper or longer"),
            ("", "not JSON"),
            ("\xff", "not JSON"),
            ("[]", "bundle format unknown"),
            ('{"format": 4}', "bundle format 4, this library reads 2 and 3"),
            ('{"format": 3.0}', "bundle format unknown"),
            ('{"format": 3}', "no key 'engines'; made by another csg-edge"),
            (" " * (5 << 20), "more than a bundle needs"),
        ],
    )
    def test_manifests_that_are_none(self, tmp_path: Path, text: str, says: str) -> None:
        (tmp_path / MANIFEST_NAME).write_bytes(text.encode("latin-1"))
        self.refused(tmp_path, says)

    @pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "c:\\x", "", "."])
    def test_paths_that_lead_outside(self, damaged: Path, name: str) -> None:
        values = json.loads((damaged / MANIFEST_NAME).read_text())
        values["files"][name] = {"sha256": "0" * 64, "size": 1}
        (damaged / MANIFEST_NAME).write_text(json.dumps(values))
        self.refused(damaged, "leads outside the bundle; do not use this bundle")

    def test_golden_images_of_another_size(self, damaged: Path) -> None:
        write_png(damaged / "golden/bone.mask.png", np.zeros((64, 64), np.uint8))
        manifest = read_manifest(damaged / MANIFEST_NAME)
        write_manifest(damaged, manifest)
        with pytest.raises(NativeError, match="not an 8-bit grey PNG image of 256 x 256"):
            NativeGenerator(damaged, runtime="openvino", precision="fp32", cache="").verify()

    def test_an_engine_that_is_not_what_the_manifest_promises(self, damaged: Path) -> None:
        manifest = read_manifest(damaged / MANIFEST_NAME)
        wrong = Engine("openvino:CPU:fp32", 1, "LICENSE", Tolerance(1, 0.9, 40.0))
        write_manifest(damaged, replace(manifest, engines=(wrong,)))
        with pytest.raises(NativeError, match="OpenVINO cannot open it") as caught:
            NativeGenerator(damaged, runtime="openvino")
        assert caught.value.status == Status.ENGINE_FAILED
        assert "\n" not in str(caught.value)

    def test_mutated_manifests_are_read_where_python_reads_them(self, shipped: Path, tmp_path: Path) -> None:
        """Python takes integers of any size, NaN and numbers where it never looks; so only one way is required."""
        random = np.random.default_rng(5)
        seeds = [(shipped / MANIFEST_NAME).read_bytes()]
        paths = []
        for index in range(1500):
            paths.append(tmp_path / f"{index}.json")
            paths[-1].write_bytes(mutate(seeds, random))
        done = subprocess.run([BUILD / "tests/read_manifests", *paths], capture_output=True, check=True)
        native = [line.startswith(b"read") for line in done.stdout.splitlines()]
        assert len(native) == len(paths)
        read = 0
        for path, taken in zip(paths, native, strict=True):
            try:
                read_manifest(path)
            except CsgEdgeError:
                assert not taken, path
            else:
                read += 1
                assert taken or b"NaN" in path.read_bytes() or b"Infinity" in path.read_bytes(), path
        assert read > 50


class TestWithoutARuntime:
    def test_a_library_without_its_module(self, shipped: Path, tmp_path: Path) -> None:
        alone = open_library(Path(shutil.copy(BUILD / "libcsg_edge.so", tmp_path)))
        with pytest.raises(NativeError) as caught:
            NativeGenerator(shipped, library=alone)
        assert caught.value.status == Status.UNAVAILABLE
        assert "this build has no libcsg_edge_openvino.so beside its library" in str(caught.value)

    def test_a_module_that_is_none(self, shipped: Path, tmp_path: Path) -> None:
        alone = open_library(Path(shutil.copy(BUILD / "libcsg_edge.so", tmp_path)))
        (tmp_path / "libcsg_edge_openvino.so").write_bytes(b"nothing")
        with pytest.raises(
            NativeError, match=r"libcsg_edge_openvino\.so does not load .*; install the runtime it needs"
        ):
            NativeGenerator(shipped, library=alone)

    def test_a_module_without_its_runtime(self, shipped: Path, tmp_path: Path) -> None:
        """As installed, the module finds OpenVINO beside itself or in the system's folders; here is none."""
        subprocess.run(["cmake", "--install", BUILD, "--prefix", tmp_path], check=True, capture_output=True)
        command = [str(tmp_path / "bin/verify"), str(shipped), "fp32"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "libcsg_edge_openvino.so does not load (libopenvino.so" in done.stderr
        assert "install the runtime it needs" in done.stderr
        assert done.stderr.count("\n") == 1


class TestExamples:
    def generate(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in (BUILD / "examples/generate", *arguments)],
            capture_output=True,
            text=True,
            check=False,
        )

    def test_generate(self, shipped: Path, tmp_path: Path) -> None:
        mask, context, out = (
            shipped / "golden/bone.mask.png",
            shipped / "golden/bone.context.png",
            tmp_path / "image.png",
        )
        done = self.generate(mask, context, out, "--bundle", shipped, "--seed", 9, "--precision", "fp32")
        assert done.returncode == 0, done.stderr
        with csg_edge.load(shipped, precision="fp32") as python:
            expected = python.generate_one(read_mask(mask, MSK_SCHEMA), read_context(context), 9)
        assert np.array_equal(read_context(out), expected)

    def test_wrong_use(self, shipped: Path, tmp_path: Path) -> None:
        mask, context, out = (
            shipped / "golden/bone.mask.png",
            shipped / "golden/bone.context.png",
            tmp_path / "image.png",
        )
        for arguments, says in (
            ((), "usage:"),
            ((mask, context, out, "--bundle", tmp_path), "no bundle there"),
            ((mask, shipped / "LICENSE", out, "--bundle", shipped), "give an 8-bit grey PNG image of 256 x 256"),
            ((mask, tmp_path / "none.png", out, "--bundle", shipped), "cannot read; check the path"),
            ((mask, context, tmp_path / "no/image.png", "--bundle", shipped), "cannot write; choose another folder"),
            ((mask, context, out, "--size", "3"), "--size is unknown"),
        ):
            done = self.generate(*arguments)
            assert (done.returncode, says in done.stderr) == (2, True), done.stderr
        assert not out.exists()

    def test_camera_loop(self, shipped: Path) -> None:
        done = subprocess.run(
            [BUILD / "examples/camera_loop", shipped, "25"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "the last of frame 25" in done.stdout

    @pytest.mark.skipif(shutil.which("mono") is None, reason="no Mono here")
    def test_c_sharp(self, shipped: Path, tmp_path: Path) -> None:
        scene = SCENES[3]
        scene.mask.tofile(tmp_path / "mask.raw")
        scene.image.tofile(tmp_path / "context.raw")
        program = ["mono", BUILD / "examples/Generate.exe"]
        files = [tmp_path / "mask.raw", tmp_path / "context.raw", "12", tmp_path / "image.raw"]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(BUILD)}
        done = subprocess.run([*program, shipped, *files], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        with csg_edge.load(shipped) as python:
            expected = python.generate_one(scene.mask, scene.image, 12)
        assert (tmp_path / "image.raw").read_bytes() == expected.tobytes()
        done = subprocess.run(
            [*program, tmp_path, *files], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 2
        assert "no bundle there (no manifest.json); give a bundle folder" in done.stderr

    @pytest.mark.parametrize("how", ["cmake", "pkg-config"])
    def test_a_project_that_uses_it(self, tmp_path: Path, how: str) -> None:
        """As installed: in C11 and in C++17, with every warning an error."""
        prefix = tmp_path / "installed here"
        subprocess.run(["cmake", "--install", BUILD, "--prefix", prefix], check=True, capture_output=True)
        main = "#include <csg_edge.h>\n#include <stdio.h>\nint main(void) { puts(csg_edge_version()); return 0; }\n"
        (tmp_path / "main.c").write_text(main)
        (tmp_path / "main.cpp").write_text(
            '#include <csg_edge.hpp>\n#include <cstdio>\nint main() { try { csg_edge::Generator("/none"); } '
            "catch (const csg_edge::Error& error) { std::puts(error.what()); } csg_edge_job job = CSG_EDGE_JOB_INIT; "
            "return job.size == sizeof job ? 0 : 1; }\n"
        )
        if how == "cmake":
            (tmp_path / "CMakeLists.txt").write_text(
                "cmake_minimum_required(VERSION 3.25)\nproject(user C CXX)\nset(CMAKE_CXX_STANDARD 17)\n"
                "find_package(csg_edge 1.0 REQUIRED)\nadd_compile_options(-Wall -Wextra -Werror -pedantic)\n"
                "add_executable(c main.c)\ntarget_link_libraries(c csg_edge::csg_edge)\n"
                "add_executable(cpp main.cpp)\ntarget_link_libraries(cpp csg_edge::csg_edge)\n"
            )
            for command in (["cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}"],
                            ["cmake", "--build", tmp_path / "b"]):  # fmt: skip
                subprocess.run(command, check=True, capture_output=True)
            programs = [tmp_path / "b/c", tmp_path / "b/cpp"]
        else:
            environment = {**os.environ, "PKG_CONFIG_PATH": str(prefix / "lib/pkgconfig")}
            flags = subprocess.run(["pkg-config", "--cflags", "--libs", "csg_edge"], check=True, capture_output=True,
                                   text=True, env=environment).stdout  # fmt: skip
            programs = [tmp_path / "c", tmp_path / "cpp"]
            for compiler, source, program in (("cc", "main.c", "c"), ("c++", "main.cpp", "cpp")):
                command = f"{compiler} -Wall -Wextra -Werror -pedantic -o {program} {source} {flags}"
                subprocess.run(command, shell=True, check=True, capture_output=True, cwd=tmp_path)
        environment = {**os.environ, "LD_LIBRARY_PATH": str(prefix / "lib")}
        said = [
            subprocess.run([program], check=True, capture_output=True, text=True, env=environment).stdout
            for program in programs
        ]
        assert said[0] == "1.0.0\n"
        assert "no bundle there" in said[1]

    def test_the_header_has_at_most_250_lines(self) -> None:
        assert len((ROOT / "runtimes/native/include/csg_edge.h").read_text().splitlines()) <= 250

    def test_nothing_else_is_exported(self) -> None:
        listed = subprocess.run(["nm", "-D", "--defined-only", "--format=posix", BUILD / "libcsg_edge.so"], check=True,
                                capture_output=True, text=True).stdout  # fmt: skip
        names = {line.split()[0].split("@")[0] for line in listed.splitlines()} - {"CSG_EDGE_1"}
        header = (ROOT / "runtimes/native/include/csg_edge.h").read_text()
        assert names == {
            line.split("(")[0].split()[-1].lstrip("*")
            for line in header.splitlines()
            if line.startswith("CSG_EDGE_API ")
        }
