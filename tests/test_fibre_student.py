"""The fibre field in networks, prior, graph, bundle, generator and command line, on a tiny random student."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import run
from tiny_bundle import tiny_bundle
from tiny_model import SIZE, TINY, tiny_model

import csg_edge
from csg_edge.bundle.golden import read_case
from csg_edge.bundle.manifest import FORMAT, MANIFEST_NAME, read_bundle, read_manifest
from csg_edge.conditions.fibre_files import read_field, write_field
from csg_edge.conditions.fibres import GIVEN, SHAPE, Wish, directions, field_of_image, field_of_mask, nothing_given
from csg_edge.conditions.files import read_context, read_mask, write_png
from csg_edge.datasets.augmentation import Bend
from csg_edge.datasets.batches import BatchSource
from csg_edge.datasets.labelled_set import LabelledSet
from csg_edge.datasets.phantom import make_phantom
from csg_edge.errors import BundleError, InputError, TrainingError
from csg_edge.export.assemble import export_bundle
from csg_edge.export.graph import FewStepGraph, check_student
from csg_edge.generation.generator import Generator
from csg_edge.generation.verify import verify_bundle
from csg_edge.labels import MSK_SCHEMA
from csg_edge.noise import noise_for
from csg_edge.runtimes import runtime_class
from csg_edge.training.device import tensors
from csg_edge.training.fibre_prior import FibrePrior
from csg_edge.training.fit_fibre_prior import fit_fibre_prior, new_prior
from csg_edge.training.loop import LoopConfig
from csg_edge.training.model import PRIOR, CsgModel, coarse_noise
from csg_edge.training.networks import CsgUNet
from csg_edge.training.trajectories import given_fields

FIBRED = replace(TINY, fibres=True, norm="affine", attention=False)
MUSCLE = MSK_SCHEMA.index("muscle")
CPU = torch.device("cpu")
SCENES = [make_phantom(seed, size=SIZE) for seed in range(3)]


@pytest.fixture(scope="module")
def student() -> CsgModel:
    return tiny_model("student", FIBRED, deviation=0.2, images=np.stack([one.image for one in SCENES])).eval()


@pytest.fixture(scope="module")
def bundle(student: CsgModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fibred") / "bundle"
    export_bundle(student, out, steps=(1,), name="fibred")
    return out


@pytest.fixture(scope="module")
def generator(bundle: Path) -> Iterator[Generator]:
    with csg_edge.load(bundle, runtime="onnxruntime", precision="fp32", cache=False) as opened:
        yield opened


def wished(mask: np.ndarray, degrees: float) -> np.ndarray:
    target = MSK_SCHEMA.names[int(np.bincount(mask.ravel()).argmax())]
    return field_of_mask(mask, MSK_SCHEMA, [Wish(target, degrees, degrees)], seed=0)


class TestNetwork:
    def test_an_untrained_branch_says_nothing(self) -> None:
        plain = tiny_model("teacher", deviation=0.1)
        network = CsgUNet(replace(TINY, fibres=True))
        network.load_state_dict(plain.network.state_dict(), strict=False)
        mask, context = (torch.from_numpy(item[None]) for item in (SCENES[0].mask, SCENES[0].image))
        noise = torch.from_numpy(noise_for(0, plain.latent_shape(1)[1:])[None])
        field = torch.from_numpy(field_of_image(SCENES[0].image)[None])
        with torch.no_grad():
            expected = plain.velocity(plain.conditions(mask, context))(noise, 0.5)
            plain.network = network
            found = plain.velocity(plain.conditions(mask, context, field))(noise, 0.5)
        torch.testing.assert_close(found, expected)

    def test_folders_with_and_without_come_back(self, student: CsgModel, tmp_path: Path) -> None:
        student.save(tmp_path / "with")
        loaded = CsgModel.load(tmp_path / "with")
        assert loaded.prior is not None and loaded.network.config.fibres
        for name, value in student.prior.state_dict().items():  # type: ignore[union-attr]
            torch.testing.assert_close(loaded.prior.state_dict()[name], value.half().float(), atol=0, rtol=0)
        tiny_model("student", deviation=0.1).save(tmp_path / "without")
        assert CsgModel.load(tmp_path / "without").prior is None

    def test_a_damaged_prior_is_named(self, student: CsgModel, tmp_path: Path) -> None:
        student.save(tmp_path / "model")
        config = tmp_path / "model" / PRIOR / "config.json"
        config.write_text(config.read_text().replace('"blocks": 3', '"blocks": 2'))
        with pytest.raises(TrainingError, match="fibre_prior"):
            CsgModel.load(tmp_path / "model")

    def test_what_is_given_is_used_and_the_rest_is_drawn(self, student: CsgModel) -> None:
        mask, context = (torch.from_numpy(item[None]) for item in (SCENES[0].mask, SCENES[0].image))
        noise = torch.from_numpy(noise_for(0, student.latent_shape(1)[1:])[None])
        given = torch.from_numpy(wished(SCENES[0].mask, 20.0)[None])
        with torch.no_grad():
            drawn, used = (student.used_field(mask, context, noise, item) for item in (None, given))
        assert drawn is not None and used is not None
        share = given[:, GIVEN:]
        expected = share * given[:, :GIVEN] + (1 - share) * drawn[:, :GIVEN]
        torch.testing.assert_close(used[:, :GIVEN], expected, atol=1e-6, rtol=0)
        assert (used[:, GIVEN] == 1).all() and (drawn[:, GIVEN] == 1).all()
        assert drawn[:, :GIVEN].square().sum(1).max() <= 1 + 1e-5

    def test_a_network_without_the_branch_takes_no_prior(self, student: CsgModel) -> None:
        plain = tiny_model("student", deviation=0.1)
        with pytest.raises(TrainingError, match="takes no fibre field"):
            CsgModel(plain.network, plain.autoencoder, schema=MSK_SCHEMA, image_size=SIZE, role="student",
                     prior=student.prior)  # fmt: skip


class TestBatches:
    def test_fields_are_those_of_the_augmented_images(self) -> None:
        data = LabelledSet(
            np.stack([one.image for one in SCENES]), np.stack([one.mask for one in SCENES]),
            ("a", "b", "c"), ("a", "b", "c"), name="three",
        )  # fmt: skip
        plain = BatchSource([data], [1.0], batch=8, dropout=0.1, seed=0).draw(0)
        assert not plain.field.any()
        batch = BatchSource([data], [1.0], batch=64, dropout=0.1, seed=0, field_dropout=0.25).draw(0)
        kept = batch.field[:, GIVEN].all(axis=(1, 2))
        assert 0.55 < kept.mean() < 0.92
        for image, field in zip(batch.image[kept], batch.field[kept], strict=True):
            np.testing.assert_array_equal(field, field_of_image(image))
        assert not batch.field[~kept].any()

    def test_what_trajectories_are_given(self) -> None:
        data = LabelledSet(
            np.stack([one.image for one in SCENES]), np.stack([one.mask for one in SCENES]),
            ("a", "b", "c"), ("a", "b", "c"), name="three",
        )  # fmt: skip
        batch = BatchSource([data], [1.0], batch=128, dropout=0.1, seed=0, field_dropout=0.8).draw(0)
        given = given_fields(batch.mask, batch.field, MSK_SCHEMA, [0, 0])
        np.testing.assert_array_equal(given, given_fields(batch.mask, batch.field, MSK_SCHEMA, [0, 0]))
        whole, some = given[:, GIVEN].min(axis=(1, 2)) == 1, given[:, GIVEN].max(axis=(1, 2)) > 0
        assert 0.1 < whole.mean() < 0.35 and 0.1 < (some & ~whole).mean() < 0.45 and 0.35 < (~some).mean() < 0.7


class TestPrior:
    def test_learns_where_fibres_run_and_resumes(self, tmp_path: Path) -> None:
        """Muscle at 30 degrees, the rest level: drawn fields must say so after a few hundred iterations."""
        images, masks = _two_directions(24)
        names = tuple(f"g{index}" for index in range(len(images)))
        source = BatchSource(
            [LabelledSet(images, masks, names, names, name="stripes")], [1.0], batch=16, dropout=0.0, seed=0,
            own_contexts=0.0, geometry=lambda _: Bend(np.zeros((2, 5, 5), np.float32)), field_dropout=0.0,
        )  # fmt: skip
        context = tiny_model("teacher", deviation=0.1, images=images).context_transform
        loop = LoopConfig(120, batch=16, learning_rate=3e-3, warmup=10, ema=0.95)
        prior = new_prior(context, classes=len(MSK_SCHEMA), seed=0)
        assert fit_fibre_prior(prior, context, source, loop, out=tmp_path / "one", device=CPU, pairs=256)
        batch = tensors(source.draw(99), CPU)
        classes = torch.nn.functional.avg_pool2d(
            (batch.mask[:, None] == torch.arange(len(MSK_SCHEMA)).view(1, -1, 1, 1)).float(), SIZE // 16
        )
        with torch.no_grad():
            drawn = prior.draw(torch.randn(len(batch.mask), 2, 16, 16), classes, context.encode(batch.context))
        angles = [directions(np.concatenate([one.numpy(), np.ones((1, 16, 16), "f")]))[0] for one in drawn]
        level = np.array([np.median(angle[1:6]) for angle in angles])
        slanted = np.array([np.median(angle[10:15]) for angle in angles])
        assert np.abs(level).max() < 10
        assert np.abs(np.abs(slanted) - 30).mean() < 8 and -0.9 < np.sign(slanted).mean() < 0.9  # either, never between
        again = new_prior(context, classes=len(MSK_SCHEMA), seed=0)
        assert fit_fibre_prior(again, context, source, loop, out=tmp_path / "one", device=CPU, pairs=256)
        for name, value in prior.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], value, atol=0, rtol=0)

    def test_a_drawn_field_is_one_step_of_the_flow(self) -> None:
        context = tiny_model("teacher", deviation=0.1).context_transform
        prior = new_prior(context, classes=len(MSK_SCHEMA), seed=0)
        for parameter in prior.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        noise, classes = torch.randn(3, 2, 16, 16), torch.rand(3, len(MSK_SCHEMA), 16, 16)
        bands = torch.randn(3, 16, SIZE // 4, SIZE // 4)
        for start in (torch.ones(1), torch.ones(3)):  # folded into the weights, and a time for each image
            velocity = prior(noise, start, classes, prior.rows(bands))
            stepped = prior.to_field(noise - velocity)
            torch.testing.assert_close(prior.draw(noise, classes, bands), stepped, atol=1e-4, rtol=0)

    def test_its_noise_is_normal_whatever_the_latents(self) -> None:
        for channels, side in ((16, 64), (4, 32), (16, 16)):
            noise = coarse_noise(torch.randn(8, channels, side, side))
            assert noise.shape == (8, 2, 16, 16)
            assert abs(noise.std() - 1) < 0.05

    def test_saved_and_loaded(self, student: CsgModel, tmp_path: Path) -> None:
        student.prior.save(tmp_path)  # type: ignore[union-attr]
        assert FibrePrior.load(tmp_path).config == student.prior.config  # type: ignore[union-attr]


def _two_directions(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images whose upper half has level fibres, and whose lower half, muscle, rises (or in the mirror falls) by 30."""
    rows, columns = np.indices((SIZE, SIZE), dtype=np.float64)
    images, masks = [], []
    for index in range(count):
        angle = np.radians(30)
        slanted = np.sin(1.2 * (columns * np.sin(angle) + rows * np.cos(angle)) + index)
        level = np.sin(1.2 * rows + index)
        inside = rows >= SIZE // 2
        images.append(np.asarray(120 + 80 * np.where(inside, slanted, level), np.uint8))
        masks.append(np.where(inside, MUSCLE, 0).astype(np.uint8))
    return np.stack(images), np.stack(masks)


class TestGraph:
    @pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
    @pytest.mark.parametrize("given", [False, True])
    def test_every_runtime_says_what_the_student_says(
        self, student: CsgModel, bundle: Path, given: bool, name: str
    ) -> None:
        mask, context = SCENES[1].mask[None], SCENES[1].image[None]
        noise = noise_for(3, student.latent_shape(1)[1:])[None]
        field = wished(mask[0], 25.0)[None] if given else nothing_given()[None]
        with torch.no_grad():
            image, used = FewStepGraph(student, 1)(*(torch.from_numpy(item) for item in (mask, context, noise, field)))
        with runtime_class(name).open(bundle / "graphs/steps-1.onnx", device="CPU", precision="fp32") as runtime:
            found = runtime.run({"mask": mask, "context": context, "noise": noise, "fibre": field})
        assert np.abs(found["image"].astype(int) - image.numpy()).max() <= 1
        np.testing.assert_allclose(found["fibre_used"], used.numpy(), atol=1e-4)

    def test_a_student_whose_prior_is_missing_is_refused(self, student: CsgModel) -> None:
        lame = CsgModel(student.network, student.autoencoder, schema=MSK_SCHEMA, image_size=SIZE, role="student")
        with pytest.raises(InputError, match="no prior"):
            check_student(lame)

    def test_an_image_size_that_the_field_does_not_divide_is_refused(self, student: CsgModel) -> None:
        student.image_size = 96
        try:
            with pytest.raises(InputError, match="multiple of 64"):
                check_student(student)
        finally:
            student.image_size = SIZE


class TestBundle:
    def test_golden_cases_with_and_without_a_given_field(self, bundle: Path) -> None:
        opened = read_bundle(bundle)
        assert opened.manifest.format == FORMAT == 3
        assert opened.manifest.fibre_shape == SHAPE
        given = [case.fibre for case in opened.manifest.golden]
        assert given[0] is None and any(given) and all(case.fibre_used for case in opened.manifest.golden)
        case = next(case for case in opened.manifest.golden if case.fibre)
        data = read_case(opened, case, 1)
        assert data.field is not None and data.used is not None
        cells = data.field[GIVEN] == 1
        assert cells.any() and not cells.all()
        np.testing.assert_allclose(data.used[:GIVEN, cells], data.field[:GIVEN, cells], atol=0.03)
        assert {result.status for result in verify_bundle(opened)} <= {"passed", "not run"}

    def test_an_engine_that_uses_another_field_fails(self, bundle: Path, tmp_path: Path) -> None:
        from csg_edge.bundle.manifest import write_manifest

        copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
        case = read_bundle(copy).manifest.golden[0]
        assert case.fibre_used
        name = case.fibre_used.removeprefix("golden/").removesuffix(".direction.png")
        field = read_field(copy / case.fibre_used)
        field[:GIVEN] = -field[:GIVEN]  # turned by ninety degrees
        write_field(copy / "golden", name, field, kind="png")
        write_manifest(copy, read_manifest(copy / MANIFEST_NAME))
        failed = [result for result in verify_bundle(read_bundle(copy)) if result.status == "failed"]
        assert failed and all(case.name in result.reason for result in failed)

    def test_a_manifest_of_format_2_is_read_and_written_as_3(self, bundle: Path, tmp_path: Path) -> None:
        from csg_edge.bundle.manifest import write_manifest

        values = json.loads((bundle / MANIFEST_NAME).read_text())
        del values["fibre_shape"]
        for case in values["golden"]:
            del case["fibre"], case["fibre_used"]
        values["format"] = 2
        (tmp_path / MANIFEST_NAME).write_text(json.dumps(values))
        manifest = read_manifest(tmp_path / MANIFEST_NAME)
        assert manifest.fibre_shape is None and not any(case.fibre for case in manifest.golden)
        assert write_manifest(tmp_path, manifest).format == 3

    @pytest.mark.parametrize("shape", [[3, 16], [3, 8, 8], [3, 16, 0], "3x16x16", 7])
    def test_another_shape_is_a_damaged_manifest(self, shape: object, bundle: Path, tmp_path: Path) -> None:
        values = json.loads((bundle / MANIFEST_NAME).read_text())
        values["fibre_shape"] = shape
        (tmp_path / MANIFEST_NAME).write_text(json.dumps(values))
        with pytest.raises(BundleError):
            read_manifest(tmp_path / MANIFEST_NAME)


class TestGenerator:
    def test_a_field_used_and_given_again_makes_the_same_image(self, generator: Generator) -> None:
        masks, contexts = [one.mask for one in SCENES], [one.image for one in SCENES]
        images, fields = generator.generate(masks, contexts, [1, 2, 3], return_fibres=True)
        assert fields.shape == (3, *SHAPE) and fields.dtype == np.float32
        again = generator.generate(masks, contexts, [1, 2, 3], fibres=fields)
        assert np.abs(images.astype(int) - again).max() <= 1
        np.testing.assert_array_equal(generator.generate(masks, contexts, [1, 2, 3]), images)

    def test_what_is_given_changes_the_image_and_is_used(self, generator: Generator) -> None:
        mask, context = SCENES[0].mask, SCENES[0].image
        field = wished(mask, 35.0)
        images, used = generator.generate([mask] * 2, [context], [5, 5], fibres=[None, field], return_fibres=True)
        assert (images[0] != images[1]).any()
        given = field[GIVEN] == 1
        np.testing.assert_allclose(directions(used[1])[0][given], 35, atol=1e-3)
        (alone,) = generator.generate([mask], [context], [5], fibres=[field])
        np.testing.assert_array_equal(alone, images[1])

    def test_streams(self, generator: Generator) -> None:
        masks, contexts = [one.mask for one in SCENES], [one.image for one in SCENES]
        field = wished(masks[0], 10.0)
        images, fields = generator.generate(masks, contexts, [1, 2, 3], fibres=[field], return_fibres=True)
        streamed = list(generator.stream_with_fibres(masks, contexts, iter([1, 2, 3]), field))
        np.testing.assert_array_equal([image for image, _ in streamed], images)
        np.testing.assert_array_equal([used for _, used in streamed], fields)
        for given in ([field] * 3, np.stack([field] * 3)):
            np.testing.assert_array_equal(list(generator.stream(masks, contexts, [1, 2, 3], given)), images)

    @pytest.mark.parametrize("field", [np.zeros(SHAPE), np.full(SHAPE, np.float32("nan")), np.zeros((2, 16, 16), "f")])
    def test_a_bad_field_is_refused_before_anything_is_made(self, generator: Generator, field: np.ndarray) -> None:
        with pytest.raises(InputError, match=r"fibres\[0\]"):
            generator.generate([SCENES[0].mask], [SCENES[0].image], [1], fibres=[field])

    def test_a_bundle_that_takes_none_says_so(self, tmp_path: Path) -> None:
        phantom = make_phantom(0)
        plain = tiny_bundle(tmp_path / "plain").path
        with csg_edge.load(plain, runtime="onnxruntime", precision="fp32", cache=False) as opened:
            for options in ({"fibres": [nothing_given()]}, {"return_fibres": True}):
                with pytest.raises(InputError, match="takes no fibre field"):
                    opened.generate([phantom.mask], [phantom.image], [1], **options)


class TestCommand:
    @pytest.fixture
    def inputs(self, tmp_path: Path) -> Path:
        for index, one in enumerate(SCENES):
            for kind, pixels in (("masks", one.mask), ("contexts", one.image)):
                (tmp_path / kind).mkdir(exist_ok=True)
                write_png(tmp_path / kind / f"s{index}.png", pixels)
        return tmp_path

    def generate(self, bundle: Path, inputs: Path, *options: object, out: str = "out") -> tuple[int, str, Path]:
        done = run(
            "generate", "--mask", inputs / "masks", "--context", inputs / "contexts", "--bundle", bundle, "--runtime",
            "onnxruntime", "--precision", "fp32", "--out", inputs / out, "--no-cache", *options,
        )  # fmt: skip
        return done.returncode, done.stderr, inputs / out

    def test_directions_by_class(self, bundle: Path, inputs: Path) -> None:
        code, _, out = self.generate(bundle, inputs, "--fibre", "muscle=10..30deg?", "--write-fibres")
        assert code == 0
        record = json.loads((out / "generated.json").read_text())
        found = [row for row in record["images"] if "muscle" in row["fibre_used"]]
        assert found and all(row["fibre"] == "muscle=10..30deg?" for row in found)
        for row in found:
            assert 5 < row["fibre_used"]["muscle"]["direction_deg"] < 35
            field = read_field(out / "fibres" / f"{row['name']}.npz")
            assert field.shape == SHAPE

    @pytest.mark.parametrize("kind", ["npz", "csv", "png"])
    def test_fields_written_make_the_same_images(self, kind: str, bundle: Path, inputs: Path) -> None:
        code, _, out = self.generate(bundle, inputs, "--write-fibres", kind)
        assert code == 0
        code, _, again = self.generate(bundle, inputs, "--fibre", out / "fibres", out="again")
        assert code == 0
        for index in range(3):
            first, second = (read_context(folder / f"s{index}.png").astype(int) for folder in (out, again))
            assert np.abs(first - second).mean() < {"npz": 0.05, "csv": 0.05, "png": 6.0}[kind]

    def test_like_the_context(self, bundle: Path, inputs: Path) -> None:
        code, _, out = self.generate(bundle, inputs, "--fibre", "like", "--write-fibres")
        assert code == 0
        for index, one in enumerate(SCENES):
            np.testing.assert_allclose(
                read_field(out / "fibres" / f"s{index}.npz"), field_of_image(one.image), atol=1e-5
            )

    def test_like_a_context_of_another_picture_is_refused(self, bundle: Path, inputs: Path) -> None:
        (inputs / "contexts" / "s2.png").rename(inputs / "contexts" / "other.png")
        code, stderr, out = self.generate(bundle, inputs, "--fibre", "like")
        assert code == 2 and stderr.count("\n") == 1 and "fibres run elsewhere" in stderr
        assert not out.exists()

    def test_a_tear_has_no_direction(self, bundle: Path, inputs: Path) -> None:
        for index in range(3):
            mask = np.full((SIZE, SIZE), MUSCLE, np.uint8)
            mask[16:48] = MSK_SCHEMA.index("tendon")
            write_png(inputs / "masks" / f"s{index}.png", mask)
        code, stderr, out = self.generate(
            bundle, inputs, "--vary", "insert:ditf=80%", "--fibre", "tendon=0deg:0.9", "--write-fibres"
        )
        assert code == 0, stderr
        lower = []
        for index in range(3):
            torn = read_mask(out / "masks" / f"s{index}.png", MSK_SCHEMA) == MSK_SCHEMA.index("ditf")
            share = torn.reshape(16, SIZE // 16, 16, SIZE // 16).mean(axis=(1, 3))
            _, coherence = directions(read_field(out / "fibres" / f"s{index}.npz"))
            lower.append((coherence[share > 0.9], coherence[6:10][share[6:10] == 0]))
        inside, outside = (np.concatenate(part) for part in zip(*lower, strict=True))
        assert len(inside) and inside.max() < 0.15 and np.median(outside) > 0.8

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (("--fibre", "muscle=18"), "muscle=18deg"),
            (("--fibre", "bone=18deg,nerve=4deg,tendon=3deg,vessel=1deg"), "the mask has no"),
            (("--fibre", "nowhere.npz"), "no such file"),
            (("--fibre", "{masks}"), "no fibre fields"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, options: tuple[str, str], says: str, bundle: Path, inputs: Path) -> None:
        given = [part.format(masks=inputs / "masks") for part in options]
        code, stderr, out = self.generate(bundle, inputs, *given)
        assert code == 2 and says in stderr and stderr.count("\n") == 1
        assert not (out / "generated.json").exists()

    @pytest.mark.parametrize("damage", ["nan", "shape", "coherence"])
    def test_a_bad_file_is_one_line(self, damage: str, bundle: Path, inputs: Path) -> None:
        field = field_of_image(SCENES[0].image)
        if damage == "nan":
            field[0, 3, 3] = np.nan
        if damage == "coherence":
            field[:GIVEN] *= 3
        np.savez(inputs / "bad.npz", fibre=field[:, :8] if damage == "shape" else field)
        code, stderr, out = self.generate(bundle, inputs, "--fibre", inputs / "bad.npz")
        assert code == 2 and "bad.npz" in stderr and stderr.count("\n") == 1
        assert not (out / "generated.json").exists()
