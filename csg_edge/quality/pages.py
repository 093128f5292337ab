"""Self-contained HTML pages: templates, inlined images, files that appear whole or not at all."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.errors import InputError
from csg_edge.storage import write_whole

Image = NDArray[np.uint8]

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, /, *, folder: Path = TEMPLATES, **values: Any) -> str:
    """Fill a template of `folder`; in HTML every value is escaped unless it is `markupsafe.Markup`.

    Templates of any folder may build on those of this package.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def read_asset(name: str) -> str:
    """A style sheet or script of this package as it goes into a page."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def content_security_source(text: str) -> str:
    """What a page's Content-Security-Policy allows so that exactly this inline text runs (W3C CSP level 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def png_bytes(image: Image, *, compression: int = 9) -> bytes:
    """Encode (H, W) grey or (H, W, 3) BGR uint8. At compression 0 the length depends on the shape alone."""
    import cv2

    encoded, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, compression])
    if not encoded:
        raise InputError(f"an image of shape {image.shape} cannot be written as PNG; give (H, W) or (H, W, 3) uint8")
    return data.tobytes()


def data_uri(png: bytes) -> str:
    """A PNG as the address of an image inside a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def write_text(path: Path, text: str) -> None:
    """Write a file, whole or not at all; its folder is made. Raises InputError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot write ({error.strerror or error}); choose a writable folder") from None
