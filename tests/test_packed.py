"""Packed sets: the same images as the folders, the same bytes every time, sizes and limits, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from csg_edge.cli.main import main
from csg_edge.datasets.card import card_markdown, data_card
from csg_edge.datasets.labelled_set import find_sets, read_set, schema_of, splits_of
from csg_edge.datasets.layouts import Example
from csg_edge.datasets.packing import choose_groups, pack_sets
from csg_edge.errors import InputError
from csg_edge.labels import MSK_SCHEMA

SPLITS = ("train", "val")


@pytest.fixture(scope="session")
def packed(phantom_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve phantoms at 96 x 96. Not to be written to."""
    out = tmp_path_factory.mktemp("packed") / "phantoms.safetensors"
    pack_sets([phantom_set], out, size=96, splits=SPLITS, limit=10**6)
    return out


def assert_same_sets(folders: list[Path], packed: list[Path], size: int) -> None:
    for folder, inside in zip(folders, packed, strict=True):
        assert splits_of(folder) == splits_of(inside)
        for split in SPLITS:
            ours, theirs = (read_set(path, MSK_SCHEMA, split=split, size=size) for path in (folder, inside))
            np.testing.assert_array_equal(ours.images, theirs.images)
            np.testing.assert_array_equal(ours.masks, theirs.masks)
            assert (ours.name, ours.names, ours.groups) == (theirs.name, theirs.names, theirs.groups)


def test_a_packed_set_reads_as_its_folder(phantom_set: Path, packed: Path) -> None:
    assert find_sets(packed) == [packed / "set"] == find_sets(packed / "set")
    assert_same_sets([phantom_set], find_sets(packed), 96)
    assert schema_of([packed]) == schema_of([phantom_set]) == MSK_SCHEMA


def test_the_public_sets_packed(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "real.safetensors"
    pack_sets([real_data], out, size=64, splits=("val",), limit=10**6)
    for folder, inside in zip(find_sets(real_data), find_sets(out), strict=True):
        ours, theirs = (read_set(path, MSK_SCHEMA, split="val", size=64) for path in (folder, inside))
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.masks, theirs.masks)
        assert splits_of(inside) == {"val"}


def test_packing_twice_gives_the_same_bytes(phantom_set: Path, packed: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    # Another process: hash seeds and memory differ.
    command = ["pack", "--data", str(phantom_set), "--size", "96", "--out", str(again), "--json"]
    finished = subprocess.run([sys.executable, "-m", "csg_edge", *command], capture_output=True, text=True, check=True)
    assert again.read_bytes() == packed.read_bytes()
    report = json.loads(finished.stdout)
    assert report["bytes"] == packed.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["again.safetensors"]


def test_another_size_is_refused(packed: Path) -> None:
    with pytest.raises(InputError, match=r"set: packed at size 96, but size 64 is needed; .* again with --size 64"):
        read_set(packed / "set", MSK_SCHEMA, split="train", size=64)


def test_the_card_travels(phantom_set: Path, packed: Path) -> None:
    card = data_card([phantom_set], splits=SPLITS)
    assert data_card(find_sets(packed), splits=SPLITS) == json.loads(json.dumps(card))
    (item,) = card["sets"]
    assert (item["images"], item["groups"], item["documents"]) == (12, 3, [])
    assert item["splits"]["val"]["images"] == 5
    assert item["splits"]["val"]["height"] == [256, 256, 256]
    for part in item["splits"].values():
        assert sum(found["pixel_share"] for found in part["classes"].values()) == pytest.approx(1.0, abs=1e-5)
    only = data_card(find_sets(packed), splits=["val"])["sets"][0]
    assert (only["images"], list(only["splits"])) == (5, ["val"])
    assert "| val | 5 | 1 | 256, 256, 256 |" in card_markdown(card)


def test_the_card_counts_pixels_and_names_the_licence(tmp_path: Path, phantom_set: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(phantom_set, tmp_path / "mine"))
    (folder / "README.md").write_text("\n# Legs of volunteers\nmore\n")
    (folder / "LICENSE").write_text("   CC BY 4.0\n")
    (item,) = data_card([folder], splits=["val"])["sets"]
    assert item["documents"] == [
        {"file": "LICENSE", "heading": "CC BY 4.0"},
        {"file": "README.md", "heading": "Legs of volunteers"},
    ]
    masks = read_set(folder, MSK_SCHEMA, split="val", size=256).masks
    for index, name in enumerate(MSK_SCHEMA.names):
        found = item["splits"]["val"]["classes"][name]
        assert found["pixel_share"] == pytest.approx(np.mean(masks == index), abs=1e-6)
        assert found["images"] == sum((mask == index).any() for mask in masks)
    before = item["splits"]["val"]["sha256"]
    changed = next((folder / "images").glob("000005.png"))
    changed.write_bytes((folder / "images" / "000006.png").read_bytes())
    assert data_card([folder], splits=["val"])["sets"][0]["splits"]["val"]["sha256"] != before


def test_a_file_above_the_limit_is_not_written(phantom_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "sub" / "large.safetensors"
    with pytest.raises(InputError, match=r"12 images take 0\.\d MB, more than --limit-mb 0\.01; give a smaller --size"):
        pack_sets([phantom_set], out, size=96, splits=SPLITS, limit=10_000)
    assert list(tmp_path.iterdir()) == []


def test_the_remedy_for_a_large_file_works(
    phantom_set: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("csg_edge.datasets.packing.STEP", 2)
    limit = packed.stat().st_size - 1
    out = tmp_path / "p.safetensors"
    with pytest.raises(InputError, match=r"give --at-most \d+ ") as refusal:
        pack_sets([phantom_set], out, size=96, splits=SPLITS, limit=limit)
    at_most = int(str(refusal.value).split("--at-most ")[1].split()[0])
    report = pack_sets([phantom_set], out, size=96, splits=SPLITS, limit=limit, at_most=at_most)
    assert report["bytes"] <= limit
    assert report["sets"][0]["images"] == 10  # all but a group of two


def test_whole_groups_are_chosen_from_each_split() -> None:
    examples = [Example(f"{group}-{i}", f"g{group}", "val" if group % 5 == 1 else "train")
                for group in range(100) for i in range(4)]  # fmt: skip
    few, more = choose_groups(examples, 100), choose_groups(examples, 200)
    assert few < more
    chosen = [example for example in examples if example.group in few]
    assert 90 <= len(chosen) <= 100
    assert {example.split for example in chosen} == {"train", "val"}
    assert sum(example.split == "val" for example in chosen) == 20


def damaged(packed: Path, out: Path, change: str) -> Path:
    tensors = load_file(packed)
    metadata = json.loads(read_metadata(packed))
    if change == "pixels":
        tensors["0.images"] = tensors["0.images"].copy()
        tensors["0.images"][200] ^= 1
    elif change == "ends":
        tensors["0.image_ends"] = tensors["0.image_ends"] + 1
    elif change == "tensor":
        del tensors["0.masks"]
    elif change == "format":
        metadata["format"] = 2
    elif change == "count":
        metadata["sets"][0]["examples"].pop()
    save_file(tensors, out, metadata={} if change == "metadata" else {"csg_edge": json.dumps(metadata)})
    return out


def read_metadata(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return str(file.metadata()["csg_edge"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pixels", r"a truncated or damaged PNG"),
        ("ends", r"a damaged packed set 'set'"),
        ("tensor", r"a damaged packed set 'set'"),
        ("count", r"a damaged packed set 'set'"),
        ("format", r"packed sets of format 2, this is csg-edge for 1; pack the folders again"),
        ("metadata", r"not a packed set; give a file made by `csg-edge pack`"),
    ],
)
def test_damaged_files_are_refused(packed: Path, tmp_path: Path, change: str, message: str) -> None:
    path = damaged(packed, tmp_path / "d.safetensors", change)
    with pytest.raises(InputError, match=message):
        read_set(path / "set", MSK_SCHEMA, split="train", size=96)


def test_what_is_no_packed_set_is_refused(packed: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"", b"text", packed.read_bytes()[:1000]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.safetensors: not a packed set"):
            find_sets(path)
    with pytest.raises(InputError, match=r"phantoms\.safetensors: no set 'other'; choose from set"):
        read_set(packed / "other", MSK_SCHEMA, split="train", size=96)


def test_reading_needs_little(packed: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'PIL', 'pydicom', 'click']));"
        "from pathlib import Path; from csg_edge.datasets.labelled_set import find_sets, read_set;"
        "from csg_edge.labels import MSK_SCHEMA;"
        "print(len(read_set(find_sets(Path(sys.argv[1]))[0], MSK_SCHEMA, split='val', size=96)))"
    )
    finished = subprocess.run([sys.executable, "-c", code, str(packed)], capture_output=True, text=True, check=False)
    assert (finished.stdout.strip(), finished.stderr) == ("5", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "exam"], "no images in split exam; choose others with --split"),
        (["--size", "0"], "--size 0: give at least 8"),
        (["--at-most", "0"], "--at-most 0: give at least 1"),
        (["--limit-mb", "0"], "--limit-mb 0: give a number above 0"),
        (["--out", "x.zip"], "give a name that ends in .safetensors"),
        (["--data", "PHANTOMS"], "two sets are named set; rename one of the folders"),
        (["--data", "PACKED"], "already packed; give the folders that it was made of"),
        (["--data", "nowhere"], "nowhere: no labelled set here"),
        (["--out", "PACKED"], "already there; choose another name or move it away"),
    ],
)
def test_wrong_use(
    phantom_set: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"PHANTOMS": str(phantom_set), "PACKED": str(packed)}
    command = ["pack", "--data", str(phantom_set), "--out", "x.safetensors", *(places.get(o, o) for o in options)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
