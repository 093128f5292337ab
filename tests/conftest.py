"""Fixtures shared by several test files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from csg_edge.bundle import find_bundle
from csg_edge.phantom import write_phantoms

REAL_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The bundle inside the package; not to be written to."""
    return find_bundle("msk-256")


@pytest.fixture
def bundle_copy(shipped: Path, tmp_path: Path) -> Path:
    """A copy of the shipped bundle, for damaging."""
    return Path(shutil.copytree(shipped, tmp_path / "bundle"))


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
