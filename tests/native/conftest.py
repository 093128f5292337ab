"""The C library is tested where it is built: `make native`."""

from __future__ import annotations

from pathlib import Path

import pytest
from library import BUILD, LIBRARY

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if LIBRARY.is_file():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"no libcsg_edge in {BUILD}; make native builds it"))
