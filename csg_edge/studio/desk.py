"""What the page asks for, without the web: what there is, images made, files read, results packed.

Nothing is kept between two questions but open engines, so that a page goes on with a studio that was started again,
and two pages do not disturb each other.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import struct
import tempfile
import threading
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge import __version__
from csg_edge.bundle.golden import read_case
from csg_edge.bundle.manifest import MODELS, Target, find_bundle, read_bundle
from csg_edge.conditions.arrays import image_digest, resize_image, resize_mask
from csg_edge.conditions.fibres import Field, given_field
from csg_edge.conditions.files import encode_png, list_images, read_context, read_mask
from csg_edge.conditions.frames import image_name
from csg_edge.conditions.masks import VARIATIONS, vary_by
from csg_edge.datasets.phantom import make_phantom
from csg_edge.errors import InputError
from csg_edge.generation.generator import Generator
from csg_edge.generation.loading import load
from csg_edge.generation.selection import why_not
from csg_edge.generation.sheets import PALETTE
from csg_edge.labels import MSK_SCHEMA
from csg_edge.noise import MAX_SEED, check_seed
from csg_edge.storage import write_whole

NOTICE = "Synthetic image made by csg-edge. Not for diagnosis."
LARGEST_UPLOAD = 20_000_000  # bytes of a file dropped on the page
MOST_CONTEXTS = 500  # of a folder, in the gallery
AUTO = "auto"
SAVED = "studio_"  # of names in the folder for results

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Wish:
    """An image that the page asks for. mask, context: (H, W) uint8 at the bundle's image size.

    engine: a target such as openvino:CPU:int8, or auto; vary: a specification of `conditions.masks`, empty for
    nothing, drawn by the seed as `csg-edge generate --vary` draws it; fibre: directions as `conditions.fibres` has
    them, empty for nothing.
    """

    mask: Image
    context: Image
    seed: int = 0
    steps: int = 1
    engine: str = AUTO
    vary: str = ""
    fibre: str = ""


@dataclass(frozen=True)
class Made:
    """An image (H, W), its labels (H, W), the fibre field that was used or None, milliseconds, and the engine."""

    image: Image
    labels: Image
    used: Field | None
    milliseconds: float
    engine: str


class Desk:
    """Bundle, contexts, and the engines opened so far; may be asked from any thread.

    contexts: a folder for the gallery; results: a folder that results are put into, None: only sent to the page.
    Raises InputError for a folder that is not there, BundleError for a damaged bundle.
    """

    def __init__(
        self, name: str = "msk-256", contexts: Path | None = None, results: Path | None = None,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        self.bundle = read_bundle(find_bundle(name))
        manifest = self.bundle.manifest
        self.schema, self.size = manifest.schema, manifest.image_size
        self.results, self._threads = results, threads
        self.files = [] if contexts is None else list_images(contexts)[:MOST_CONTEXTS]
        self.golden = {case.name: read_case(self.bundle, case, manifest.steps[0]) for case in manifest.golden}
        self._open: dict[tuple[str, int], Generator] = {}
        self._lock = threading.Lock()

    def about(self) -> dict[str, Any]:
        """What there is to choose from. JSON-ready."""
        manifest = self.bundle.manifest
        engines = {engine.target: why_not(engine) or "" for engine in manifest.engines}
        palette = [[int(level) for level in reversed(colour)] for colour in PALETTE.tolist()]
        return {
            "bundle": manifest.name, "version": __version__, "height": self.size[0], "width": self.size[1],
            "steps": list(manifest.steps), "fibre": manifest.fibre_shape is not None, "highest_seed": str(MAX_SEED),
            "notice": NOTICE, "results": self.results is not None, "largest_upload": LARGEST_UPLOAD,
            "classes": [
                {"name": name, "colour": palette[index % len(palette)]} for index, name in enumerate(self.schema.names)
            ],
            "engines": [{"target": target, "why_not": reason} for target, reason in engines.items()],
            "scenes": list(self.golden),
            "phantom": self.schema.names == MSK_SCHEMA.names,
            "contexts": [image_name(path) for path in self.files],
            "variations": [
                {"name": name, "about": kind.about, "unit": kind.unit, "highest": kind.highest * kind.scale,
                 "target": kind.target, "signed": kind.signed, "takes_amount": kind.takes_amount}
                for name, kind in VARIATIONS.items()
            ],
        }  # fmt: skip

    def scene(self, name: str) -> tuple[Image, Image]:
        """Mask and context of a golden case, or of the phantom `phantom-SEED`."""
        if name in self.golden:
            case = self.golden[name]
            return resize_mask(case.mask, *self.size), resize_image(case.context, *self.size)
        found = re.fullmatch(r"phantom-(\d{1,9})", name)
        if found is None or self.schema.names != MSK_SCHEMA.names:
            raise InputError(f"scene {name[:40]!r}: there is none of that name; choose {', '.join(self.golden)}")
        phantom = make_phantom(int(found[1]))
        return resize_mask(phantom.mask, *self.size), resize_image(phantom.image, *self.size)

    def context(self, index: int) -> Image:
        """A context of the gallery's folder, by its place in `about`."""
        if not 0 <= index < len(self.files):
            raise InputError(f"context {index}: the gallery has {len(self.files)}; load the page again")
        return resize_image(read_context(self.files[index]), *self.size)

    def read(self, kind: str, name: str, data: bytes) -> Image:
        """A file dropped on the page as mask or context. Raises InputError naming it by the name it has there."""
        called = PurePosixPath(name.replace("\\", "/")).name[:80] or "file"
        if len(data) > LARGEST_UPLOAD:
            raise InputError(f"{called}: {len(data) / 1e6:.0f} MB; give at most {LARGEST_UPLOAD / 1e6:.0f} MB")
        suffix = "".join(re.findall(r"\.[A-Za-z0-9]{1,8}", called)[-2:])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"file{suffix}"
            path.write_bytes(data)
            try:
                if kind == "mask":
                    return resize_mask(read_mask(path, self.schema), *self.size)
                return resize_image(read_context(path), *self.size)
            except InputError as error:
                raise InputError(str(error).replace(str(path), called)) from None

    def make(self, wish: Wish) -> Made:
        """The image of a wish: the bytes that `csg-edge generate` makes of the same. Raises InputError."""
        generator = self._generator(wish.engine, wish.steps)
        began = time.perf_counter()
        labels, given = self._conditions(wish, generator)
        given, seed = generator.prepare_field(given, name="fibre"), check_seed(wish.seed)
        used = None
        if generator.bundle.manifest.fibre_shape is None:
            image = generator.generate_one(labels, wish.context, seed)
        else:
            images, fields = generator.generate([labels], [wish.context], [seed], fibres=[given], return_fibres=True)
            image, used = images[0], fields[0]
        return Made(image, labels, used, 1e3 * (time.perf_counter() - began), generator.engine.target)

    def _conditions(self, wish: Wish, generator: Generator) -> tuple[Image, Field | None]:
        labels = generator.prepare_mask(wish.mask, name="mask")
        if wish.vary:
            labels = vary_by(labels, self.schema, wish.vary, seed=wish.seed)
        if not wish.fibre and generator.bundle.manifest.fibre_shape is None:
            return labels, None
        direction, vary = wish.fibre or None, wish.vary or None
        return labels, given_field(labels, self.schema, direction=direction, vary=vary, seed=wish.seed)

    def _generator(self, engine: str, steps: int) -> Generator:
        with self._lock:
            if (engine, steps) not in self._open:
                runtime, device, precision = (AUTO, AUTO, AUTO) if engine == AUTO else _parts(engine)
                self._open[engine, steps] = load(
                    self.bundle.path, runtime=runtime, device=device, precision=precision, steps=steps,
                    threads=self._threads,
                )  # fmt: skip
            return self._open[engine, steps]

    def provenance(self, wish: Wish, made: Made) -> dict[str, Any]:
        """What an image was made of, in the words of `csg-edge augment`."""
        return {
            "bundle": self.bundle.manifest.name, "manifest_sha256": self.bundle.digest, "engine": made.engine,
            "steps": wish.steps, "noise_seed": wish.seed, "mask_sha256": image_digest(wish.mask),
            "vary": wish.vary or None, "vary_seed": wish.seed if wish.vary else None,
            "context_sha256": image_digest(wish.context), "direction": wish.fibre or None,
            "image_sha256": image_digest(made.image), "labels_sha256": image_digest(made.labels),
            "csg_edge": __version__, "notice": NOTICE,
        }  # fmt: skip

    def commands(self, wish: Wish, engine: str) -> dict[str, str]:
        """How to make the image again from the files of `packed`: for a shell, and in Python."""
        runtime, device, precision = _parts(engine)
        path = self.bundle.path
        bundle = path.name if path.parent == MODELS else str(path.resolve())
        words = [
            "csg-edge", "generate", "--mask", "painted.png", "--context", "context.png", "--out", "out", "--bundle",
            bundle, "--runtime", runtime, "--device", device, "--precision", precision, "--steps", str(wish.steps),
            "--seed", str(wish.seed),
        ]  # fmt: skip
        words += ["--vary", wish.vary] if wish.vary else []
        words += ["--fibre", wish.fibre] if wish.fibre else []
        fibre, tear = wish.fibre, wish.vary if self.bundle.manifest.fibre_shape is not None else ""
        lines = ["from pathlib import Path", "", "import csg_edge"]
        lines += ["from csg_edge.conditions.fibres import given_field"] if fibre or tear else []
        lines += ["from csg_edge.conditions.files import read_context, read_mask, write_png"]
        lines += ["from csg_edge.conditions.masks import vary_by"] if wish.vary else []
        lines += [
            "",
            f"with csg_edge.load({bundle!r}, runtime={runtime!r}, device={device!r}, precision={precision!r}, "
            f"steps={wish.steps}) as generator:",
            "    schema = generator.bundle.manifest.schema",
            '    mask = read_mask(Path("painted.png"), schema)',
            '    context = read_context(Path("context.png"))',
        ]
        lines += [f"    mask = vary_by(mask, schema, {wish.vary!r}, seed={wish.seed})"] if wish.vary else []
        if fibre or tear:
            lines += [
                f"    field = given_field(mask, schema, direction={fibre or None!r}, vary={tear or None!r}, "
                f"seed={wish.seed})"
            ]
        given = ", field=field" if fibre or tear else ""
        lines += [
            f"    image = generator.generate_one(mask, context, {wish.seed}{given})",
            '    write_png(Path("image.png"), image)',
        ]
        return {"shell": shlex.join(words), "python": "\n".join(lines) + "\n"}

    def packed(self, wish: Wish) -> dict[str, bytes]:
        """Files of an image by name: image, labels, what was painted, context, field, provenance, commands."""
        made = self.make(wish)
        files = {
            "image.png": png_with_text(made.image, {"Description": NOTICE, "Software": f"csg-edge {__version__}"}),
            "mask.png": png_with_text(made.labels, {"Description": f"Labels. {NOTICE}"}),
            "painted.png": png_with_text(wish.mask, {}),
            "context.png": png_with_text(wish.context, {}),
            "provenance.json": (json.dumps(self.provenance(wish, made), indent=2) + "\n").encode(),
        }
        if made.used is not None:
            buffer = io.BytesIO()
            np.savez(buffer, fibre=made.used)
            files["fibre_used.npz"] = buffer.getvalue()
        commands = self.commands(wish, made.engine)
        return {**files, "command.txt": (commands["shell"] + "\n").encode(), "make.py": commands["python"].encode()}

    def save(self, wish: Wish) -> str:
        """Put the files into a new folder of `results`; returns its name. Raises InputError where it cannot."""
        if self.results is None:
            raise InputError("no folder for results; start csg-edge studio with --out FOLDER, or save a zip file")
        files = self.packed(wish)
        try:
            self.results.mkdir(parents=True, exist_ok=True)
            number = 1 + max((int(path.name.removeprefix(SAVED)) for path in self.results.glob(f"{SAVED}[0-9]*")
                              if path.name.removeprefix(SAVED).isdecimal()), default=0)  # fmt: skip
            while True:
                folder = self.results / f"{SAVED}{number:06d}"
                try:
                    folder.mkdir()
                    break
                except FileExistsError:  # another page was quicker
                    number += 1
            for name, data in files.items():
                write_whole(folder / name, data)
        except OSError as error:
            raise InputError(
                f"{self.results}: cannot write ({error.strerror or error}); choose another --out"
            ) from None
        return folder.name

    def close(self) -> None:
        """Release the engines."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


def zipped(files: dict[str, bytes]) -> bytes:
    """Files as one zip file: the same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def png_with_text(image: Image, texts: dict[str, str]) -> bytes:
    """A PNG of (H, W) uint8 with tEXt chunks behind its header (PNG, third edition, 11.3.3.2). texts: Latin-1."""
    png = encode_png(image)
    header = 8 + 25  # signature and IHDR
    chunks = b""
    for key, text in texts.items():
        body = b"tEXt" + key.encode("latin-1") + b"\0" + text.encode("latin-1")
        chunks += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:header] + chunks + png[header:]


def _parts(target: str) -> tuple[str, str, str]:
    found = Target.parse(target)
    return found.runtime, found.device, found.precision
