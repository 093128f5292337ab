"""Model repositories for Triton and OpenVINO Model Server, held against the files they serve; the client."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import run
from tiny_bundle import tiny_bundle

import csg_edge
from csg_edge.bundle.manifest import Bundle, read_bundle
from csg_edge.datasets.phantom import make_phantom
from csg_edge.errors import InputError
from csg_edge.export.serving import CONFIG, OVMS_CONFIG, SERVERS, check_repository, write_repository
from csg_edge.runtimes import runtime_class

EXAMPLE = Path(__file__).parents[1] / "examples" / "serving_client.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("served") / "bundle")


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def repository(bundle: Bundle, server: str, tmp_path: Path) -> Path:
    write_repository(bundle, tmp_path / "models", server=server)
    return tmp_path / "models"


def test_what_is_written_passes_its_check(repository: Path, bundle: Bundle, server: str) -> None:
    assert check_repository(repository, bundle, server=server) == []
    kind = {"triton": "onnxruntime", "ovms": "openvino"}[server]
    names = {path.name for path in repository.iterdir() if path.is_dir()}
    assert names and all(name.startswith(f"tiny-{kind}-") for name in names)


def test_a_served_model_makes_the_images_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    (first, *_) = write_repository(bundle, tmp_path / "models", server="triton")
    specification = importlib.util.spec_from_file_location("serving_client", EXAMPLE)
    assert specification and specification.loader
    client = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(client)
    phantom = make_phantom(1)
    given = client.make_inputs(bundle.manifest, phantom.mask, phantom.image, 7)
    path = tmp_path / "models" / first.name / "1" / "model.onnx"
    with runtime_class("onnxruntime").open(path, device="CPU", precision="fp32") as runtime:
        image = runtime.run(given)["image"][0]
    with csg_edge.load(bundle.path, runtime="onnxruntime", precision="fp32", cache=False) as generator:
        np.testing.assert_array_equal(image, generator.generate_one(phantom.mask, phantom.image, 7))


def test_a_wrong_shape_is_found(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models", server="triton")
    config = next((tmp_path / "models").glob(f"*/{CONFIG}"))
    config.write_text(config.read_text().replace("dims: [ 4, 64, 64 ]", "dims: [ 4, 32, 32 ]"))
    (fault,) = check_repository(tmp_path / "models", bundle, server="triton")
    assert "noise" in fault and "(4, 32, 32)" in fault and "(4, 64, 64)" in fault


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('name: "mask"', 'name: "labels"', "labels is not in the model"),
        ("TYPE_FP32", "TYPE_FP16", "noise"),
        ("backend:", "back_end:", "back_end"),
        ("model.onnx", "other.onnx", "other.onnx is missing"),
    ],
)
def test_other_faults_of_a_triton_repository(old: str, new: str, says: str, bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models", server="triton")
    config = next((tmp_path / "models").glob(f"*/{CONFIG}"))
    config.write_text(config.read_text().replace(old, new))
    assert says in " ".join(check_repository(tmp_path / "models", bundle, server="triton"))


def test_faults_of_an_ovms_repository(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_repository(bundle, folder, server="ovms")
    values = json.loads((folder / OVMS_CONFIG).read_text())
    first = values["model_config_list"][0]["config"]
    shutil.rmtree(folder / first["base_path"])
    assert "holds 0 models" in " ".join(check_repository(folder, bundle, server="ovms"))
    first["shapes"] = "auto"
    (folder / OVMS_CONFIG).write_text(json.dumps(values))
    assert "unknown keys shapes" in " ".join(check_repository(folder, bundle, server="ovms"))
    (folder / OVMS_CONFIG).write_text("[]")
    assert "not a list of models" in check_repository(folder, bundle, server="ovms")[0]


def test_another_model_than_the_manifest_promises_is_found(bundle: Bundle, shipped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    write_repository(bundle, folder, server="ovms")
    path = next(folder.glob("*/1/model.onnx"))
    shutil.copyfile(shipped / "graphs" / "steps-1.onnx", path)
    shutil.copyfile(shipped / "graphs" / "weights.safetensors", path.with_name("weights.safetensors"))
    assert "noise" in " ".join(check_repository(folder, bundle, server="ovms"))


def test_a_repository_is_replaced_whole_and_nothing_else_is(bundle: Bundle, repository: Path, server: str) -> None:
    (repository / "stale").mkdir()
    write_repository(bundle, repository, server=server)
    assert not (repository / "stale").exists()
    other = repository.with_name("thesis")
    other.mkdir()
    (other / "chapter.tex").write_text("precious")
    with pytest.raises(InputError, match="no model repository"):
        write_repository(bundle, other, server=server)
    assert (other / "chapter.tex").read_text() == "precious"


def test_a_bundle_without_an_engine_for_the_server(bundle: Bundle, tmp_path: Path) -> None:
    from dataclasses import replace

    engines = tuple(engine for engine in bundle.manifest.engines if engine.target.startswith("openvino"))
    poor = replace(bundle, manifest=replace(bundle.manifest, engines=engines))
    with pytest.raises(InputError, match="nothing that triton runs"):
        write_repository(poor, tmp_path / "models", server="triton")


def test_the_command(shipped: Path, tmp_path: Path) -> None:
    done = run("serve-repository", shipped, "--for", "triton", "--out", tmp_path / "models")
    assert done.returncode == 0 and "msk-256-onnxruntime-fp32-steps-1" in done.stdout
    assert check_repository(tmp_path / "models", read_bundle(shipped), server="triton") == []
    done = run("serve-repository", shipped, "--for", "torchserve", "--out", tmp_path / "other")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
