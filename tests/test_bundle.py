"""The bundle: what is shipped can be read, and every kind of damage is named with its remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from csg_edge.bundle.manifest import (
    DIGEST_NAME,
    FORMAT,
    MANIFEST_NAME,
    Target,
    find_bundle,
    read_bundle,
    write_manifest,
)
from csg_edge.errors import BundleError, InputError
from csg_edge.labels import MSK_SCHEMA

Values = dict[str, Any]


def edit(bundle: Path, change: Callable[[Values], object]) -> None:
    """Change the manifest as a person with an editor would."""
    path = bundle / MANIFEST_NAME
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def assert_refused(bundle: Path, file: str, problem: str, remedy: str) -> None:
    with pytest.raises(BundleError) as refusal:
        read_bundle(bundle)
    assert str(refusal.value).startswith(f"{bundle / file}: ")
    assert problem in str(refusal.value)
    assert remedy in str(refusal.value)


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_the_shipped_bundle_is_whole(shipped: Path) -> None:
    manifest = read_bundle(shipped).manifest
    assert manifest.name == "msk-256"
    assert manifest.schema == MSK_SCHEMA
    assert manifest.image_size == (256, 256)
    assert manifest.steps == (1, 2, 4)
    on_disk = {path.relative_to(shipped).as_posix() for path in shipped.rglob("*") if path.is_file()}
    assert on_disk == {*manifest.files, MANIFEST_NAME, DIGEST_NAME}  # nothing ships unhashed
    assert len(manifest.golden) >= 1


def test_a_manifest_written_is_the_manifest_read(bundle_copy: Path) -> None:
    before = read_bundle(bundle_copy).manifest
    (bundle_copy / MANIFEST_NAME).unlink()
    after = replace(before, format=FORMAT)
    assert write_manifest(bundle_copy, before) == after
    assert read_bundle(bundle_copy).manifest == after
    assert not list(bundle_copy.glob(".*"))


def test_a_bundle_is_found_by_path_or_shipped_name(shipped: Path, bundle_copy: Path) -> None:
    assert find_bundle("msk-256") == shipped
    assert find_bundle(str(bundle_copy)) == bundle_copy
    with pytest.raises(BundleError, match=r"nowhere: no bundle there .*; give a bundle folder or .*\(.*msk-256"):
        find_bundle("nowhere")


@pytest.mark.parametrize("file", ["graphs/steps-1.onnx", "graphs/weights.safetensors", "golden/muscle.steps-1.png"])
@pytest.mark.parametrize("position", [0, -1], ids=["first byte", "last byte"])
def test_one_flipped_bit_in_a_file(bundle_copy: Path, file: str, position: int) -> None:
    flip(bundle_copy / file, position)
    assert_refused(bundle_copy, file, "does not match its hash in manifest.json", "copy the bundle again")


def test_one_byte_less(bundle_copy: Path) -> None:
    path = bundle_copy / "graphs/weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert_refused(bundle_copy, "graphs/weights.safetensors", "does not match its hash", "copy the bundle again")


@pytest.mark.parametrize("name", [MANIFEST_NAME, DIGEST_NAME])
def test_any_flipped_bit_in_the_manifest(bundle_copy: Path, name: str) -> None:
    path = bundle_copy / name
    whole = path.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(whole), 40):
        flip(path, int(position))
        with pytest.raises(BundleError, match="manifest"):
            read_bundle(bundle_copy)
        path.write_bytes(whole)
    read_bundle(bundle_copy)


def test_a_bundle_without_its_digest(bundle_copy: Path) -> None:
    (bundle_copy / DIGEST_NAME).unlink()
    assert_refused(bundle_copy, DIGEST_NAME, "missing from the bundle", "copy the bundle again")


@pytest.mark.parametrize("file", ["graphs/steps-4.onnx", "graphs/weights.safetensors", "golden/bone.mask.png"])
def test_a_missing_file(bundle_copy: Path, file: str) -> None:
    (bundle_copy / file).unlink()
    assert_refused(bundle_copy, file, "missing from the bundle", "copy the bundle again")


def test_a_missing_manifest(bundle_copy: Path) -> None:
    (bundle_copy / MANIFEST_NAME).unlink()
    assert_refused(bundle_copy, MANIFEST_NAME, "cannot read", "give a bundle folder")


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        ([], "name"),
        (["graphs", 0], "precision"),
        (["engines", 0], "file"),
        (["engines", 0], "built_with"),
        (["engines", 0, "tolerance"], "psnr"),
        (["golden", 0], "seed"),
        (["files", "graphs/steps-1.onnx"], "size"),
    ],
    ids=str,
)
def test_unknown_and_missing_keys_at_every_level(bundle_copy: Path, path: list[Any], needed: str) -> None:
    def level(values: Values) -> Values:
        for key in path:
            values = values[key]
        return values

    edit(bundle_copy, lambda values: level(values).update(colour="blue"))
    assert_refused(bundle_copy, MANIFEST_NAME, "unknown keys ['colour'], missing keys []", "export it again")
    edit(bundle_copy, lambda values: (level(values).pop("colour"), level(values).pop(needed)))
    assert_refused(bundle_copy, MANIFEST_NAME, f"unknown keys [], missing keys ['{needed}']", "export it again")


@pytest.mark.parametrize("found", [0, 1, 4, "2", 2.0, True, None], ids=repr)
def test_another_format(bundle_copy: Path, found: object) -> None:
    edit(bundle_copy, lambda values: values.update(format=found))
    reads = "this csg-edge reads 2 and 3"
    assert_refused(bundle_copy, MANIFEST_NAME, f"bundle format {found!r}, {reads}", "update csg-edge")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "golden/../../x", "a\\b", "C:x", "."])
def test_a_path_that_leads_out(bundle_copy: Path, name: str) -> None:
    (bundle_copy.parent / "x").write_text("private")
    edit(bundle_copy, lambda values: values["files"].update({name: {"sha256": "0" * 64, "size": 7}}))
    assert_refused(bundle_copy, MANIFEST_NAME, f"file {name!r} leads outside", "do not use this bundle")


@pytest.mark.parametrize("link", ["golden/bone.mask.png", "golden"], ids=["file", "folder"])
def test_a_symbolic_link_that_leads_out(bundle_copy: Path, link: str) -> None:
    outside = bundle_copy.parent / "outside"
    shutil.move(bundle_copy / link, outside)
    (bundle_copy / link).symlink_to(outside)  # same bytes, same hashes
    with pytest.raises(BundleError, match=r"golden/.*: leads outside the bundle; do not use this bundle"):
        read_bundle(bundle_copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["files"].pop("graphs/steps-2.onnx"),
        lambda values: values["engines"][0].update(file="graphs/other.onnx"),
        lambda values: values["graphs"][0].update(file="graphs/other.onnx"),
        lambda values: values["golden"][0].update(mask="golden/other.png"),
        lambda values: values["golden"][0]["expected"].update({"1": "golden/other.png"}),
    ],
    ids=["engine unlisted", "engine", "graph", "golden mask", "golden image"],
)
def test_a_file_in_use_must_be_listed(bundle_copy: Path, change: Callable[[Values], object]) -> None:
    edit(bundle_copy, change)
    assert_refused(bundle_copy, MANIFEST_NAME, "is used but not listed under files", "export the bundle again")


def test_every_golden_case_serves_every_number_of_steps(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda values: values["golden"][1]["expected"].pop("4"))
    assert_refused(bundle_copy, MANIFEST_NAME, "has no image for steps 4", "export the bundle again")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b'{"format": 1', b"\xff\xfe"], ids=repr)
def test_a_manifest_that_is_not_json(bundle_copy: Path, data: bytes) -> None:
    (bundle_copy / MANIFEST_NAME).write_bytes(data)
    assert_refused(bundle_copy, MANIFEST_NAME, "not JSON", "copy the bundle again")


@pytest.mark.parametrize("text", ["[]", "1", "null", '"text"'])
def test_a_manifest_that_is_no_object(bundle_copy: Path, text: str) -> None:
    (bundle_copy / MANIFEST_NAME).write_text(text)
    assert_refused(bundle_copy, MANIFEST_NAME, "bundle format None", "export it again")


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(name=7),
        lambda values: values.update(engines=None),
        lambda values: values.update(engines=["x"]),
        lambda values: values.update(files=[]),
        lambda values: values.update(labels="abc"),
        lambda values: values.update(labels=[0, 1]),
        lambda values: values.update(image_size=[256, "256"]),
        lambda values: values.update(image_size=256),
        lambda values: values.update(noise_shape=[16, 64]),
        lambda values: values.update(noise_shape=[16, 64, 0]),
        lambda values: values["engines"][0].update(steps="1"),
        lambda values: values["engines"][0].update(steps=True),
        lambda values: values["engines"][0].update(target=None),
        lambda values: values["engines"][0].update(batch="1"),
        lambda values: values["engines"][0].update(batch=True),
        lambda values: values["engines"][0].update(built_with=None),
        lambda values: values["engines"][0].update(report=[]),
        lambda values: values.update(graphs=None),
        lambda values: values["graphs"][0].update(steps="1"),
        lambda values: values["graphs"][0].update(error=None),
        lambda values: values["engines"][0]["tolerance"].update(share="all"),
        lambda values: values["golden"][0].update(seed=0.5),
        lambda values: values["golden"][0].update(expected=["golden/muscle.steps-1.png"]),
        lambda values: values["files"]["graphs/steps-1.onnx"].update(size="172095"),
    ],
)
def test_a_value_of_the_wrong_type(bundle_copy: Path, change: Callable[[Values], object]) -> None:
    edit(bundle_copy, change)
    assert_refused(bundle_copy, MANIFEST_NAME, "a value has the wrong type", "export the bundle again")


def test_an_engine_is_verified_or_unverified(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda values: values["engines"][0].update(state="passed"))
    assert_refused(bundle_copy, MANIFEST_NAME, "engine state 'passed' is none of verified, unverified", "export the")


def test_labels_must_be_a_schema(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda values: values.update(labels=["background", "nerve", "nerve"]))
    assert_refused(bundle_copy, MANIFEST_NAME, "label schema", "different from each other")


def test_targets_are_written_and_read_alike() -> None:
    assert str(Target.parse("openvino:CPU:bf16")) == "openvino:CPU:bf16"
    for text in ("openvino:CPU", "openvino::fp32", "openvino:CPU:fp8", "openvino:CPU:fp32:x"):
        with pytest.raises(InputError, match="write runtime:device:precision"):
            Target.parse(text)
