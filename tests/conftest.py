"""Fixtures shared by several test files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker a core: two pools of BLAS threads on the same cores wait for each other. Before NumPy and torch load.
    for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(pool, "1")

from csg_edge.bundle.manifest import MANIFEST_NAME, find_bundle, read_manifest, write_manifest
from csg_edge.datasets.phantom import write_phantoms

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip contract tests of what this machine lacks, with one line of reason for each runtime and device."""
    classes = {cls for item in items if hasattr(cls := getattr(item, "cls", None), "absent")}
    reasons = {cls: cls.absent() for cls in classes}
    for item in items:
        if reason := reasons.get(getattr(item, "cls", None)):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests, and the processes they start, keep compiled engines here and leave the user's cache alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSG_EDGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The bundle inside the package; not to be written to."""
    return find_bundle("msk-256")


@pytest.fixture
def bundle_copy(shipped: Path, tmp_path: Path) -> Path:
    """A copy of the shipped bundle, for damaging."""
    return Path(shutil.copytree(shipped, tmp_path / "bundle"))


@pytest.fixture
def plain_copy(bundle_copy: Path) -> Path:
    """A copy of the shipped bundle as `csg-edge export` wrote it, without the engines of a calibration."""
    manifest = read_manifest(bundle_copy / MANIFEST_NAME)
    engines = tuple(engine for engine in manifest.engines if not engine.target.endswith("int8"))
    graphs = tuple(graph for graph in manifest.graphs if graph.precision != "int8")
    for name in ("engines", "calibration"):
        shutil.rmtree(bundle_copy / name)
    for graph in manifest.graphs:
        if graph not in graphs:
            (bundle_copy / graph.file).unlink()
    write_manifest(bundle_copy, replace(manifest, engines=engines, graphs=graphs))
    return bundle_copy


@pytest.fixture(scope="session")
def phantom_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve phantoms, as `csg-edge phantom` writes it."""
    folder = tmp_path_factory.mktemp("phantoms") / "set"
    write_phantoms(folder, count=12, seed=1)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The two public sets, which a user's fresh machine does not have."""
    if not REAL_DATA.is_dir():
        pytest.skip("the real ultrasound sets are not beside the repository (../shared/data)")
    return REAL_DATA
