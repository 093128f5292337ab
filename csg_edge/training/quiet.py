"""Silence for libraries that say much of what no user can act on."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(logger: str, *, below: int = logging.ERROR) -> Iterator[None]:
    """Within the block: no Python warnings, and nothing from the logger of this name that is below a level."""
    chosen = logging.getLogger(logger)
    level = chosen.level
    chosen.setLevel(below)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chosen.setLevel(level)
