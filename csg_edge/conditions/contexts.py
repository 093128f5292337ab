"""A bank of contexts, indexed once by style, and ways to choose from it. NumPy and OpenCV only.

Style is measured in the sense of Gatys et al. (arXiv 1508.06576): correlations between the channels of a filter bank,
averaged over the picture, say what a texture looks like and not what lies where. Instead of a network the bank holds
fixed filters at four scales: differences of Gaussians, their bright and dark parts apart, and derivatives along and
across the beam. Ultrasound also changes with depth (gain, focus, attenuation), which an average over the picture
loses; so mean and deviation of the grey levels in eight depth bands are added. Every figure is the same for a picture
and its left-right mirror image.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from csg_edge.cache import BlobCache, key_of
from csg_edge.conditions.arrays import check_context, resize_image
from csg_edge.conditions.files import list_images, read_context
from csg_edge.errors import InputError
from csg_edge.noise import check_seed
from csg_edge.progress import Progress
from csg_edge.storage import write_whole

Image = NDArray[np.uint8]
Style = NDArray[np.float32]

SIDE = 256  # style is that of the picture as a model sees it
SCALES = (1.0, 2.0, 4.0, 8.0)  # standard deviations of the filters, pixels
CHANNELS = 5  # grey level, bright and dark details, differences along and across the beam
DEPTH_BANDS = 8
GRAM_FIGURES = len(SCALES) * CHANNELS * (CHANNELS + 1) // 2
VERSION = 1  # of the figures: an index made by another is made anew
QUICK = 200  # images indexed in a few seconds, without showing progress
SAME = 1e-4  # distance below which a picture is taken for the query itself


def style_of(image: Image) -> Style:
    """Style figures of a (H, W) uint8 image of any size, float32 (GRAM_FIGURES + 2 * DEPTH_BANDS,), grey levels 0..1.

    First the square roots of each scale's Gram matrix (its upper triangle), then mean and deviation per depth band.
    """
    grey = resize_image(check_context(image, name="image"), SIDE, SIDE).astype(np.float32) / np.float32(255)
    figures: list[NDArray[np.floating]] = []
    upper = np.triu_indices(CHANNELS)
    for scale in SCALES:
        smooth = _blur(grey, scale)
        detail = smooth - _blur(grey, 1.6 * scale)  # close to a Laplacian of Gaussian (Marr & Hildreth 1980)
        step = np.float32(scale)  # derivatives in units of the scale are comparable between scales
        along = np.abs(cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, scale=1 / 8)) * step
        across = np.abs(cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, scale=1 / 8)) * step
        channels = np.stack([smooth, np.maximum(detail, 0), np.maximum(-detail, 0), along, across])
        flat = channels.reshape(CHANNELS, -1)
        figures.append(np.sqrt(flat @ flat.T / flat.shape[1])[upper])
    bands = grey.reshape(DEPTH_BANDS, -1)
    figures += [bands.mean(axis=1), bands.std(axis=1)]
    return np.concatenate(figures).astype(np.float32)


def _blur(grey: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), sigma, borderType=cv2.BORDER_REFLECT), np.float32)


@dataclass(frozen=True)
class Chosen:
    """A context that was chosen, and its distance in style (root mean square, in standard deviations of the bank).

    To the query (`nearest`), or to the nearest of those chosen before it (`diverse`; None for the first).
    """

    path: Path
    distance: float | None


class ContextBank:
    """Contexts with their styles. Make one with `ContextBank.index`.

    points: (N, F) float32, the styles so scaled that their Euclidean distance is the distance in style.
    """

    def __init__(self, paths: Sequence[Path], styles: Style) -> None:
        """paths: N files; styles: (N, F) as `style_of` gives them. Raises InputError for an empty bank."""
        if not len(paths) or len(paths) != len(styles):
            raise InputError(f"context bank: {len(paths)} paths, {len(styles)} styles; give one style for each path")
        self.paths = tuple(paths)
        self._centre = styles.mean(axis=0)
        spread = styles.std(axis=0)
        # Figures that do not differ within the bank stay in grey levels; Gram and depth count the same in all.
        weight = np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 1.0)
        weight[:GRAM_FIGURES] /= np.sqrt(2 * GRAM_FIGURES)
        weight[GRAM_FIGURES:] /= np.sqrt(2 * 2 * DEPTH_BANDS)
        self._weight = weight.astype(np.float32)
        self.points = self._placed(styles)

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def index(cls, contexts: Path | Sequence[Path], *, cache: Path | bool = True) -> ContextBank:
        """Index a folder, a file or a list of files; what was indexed before is not read as a picture again.

        cache: True keeps the figures in the user's cache folder, a path in that .npz file, False nowhere; nothing is
        ever written beside the images. Figures belong to a file's content, whatever its name or date. Raises
        InputError for a missing path, a file that is no grey image, or a cache path that holds something else.
        """
        paths = list_images(contexts) if isinstance(contexts, Path) else list(contexts)
        store = _Store(cache, paths)
        known = store.load()
        digests = [_digest(path) for path in paths]
        new = {digest: path for digest, path in zip(digests, paths, strict=True) if digest not in known}
        progress = Progress("index contexts", len(new), unit="images") if len(new) > QUICK else None
        found = {digest: known[digest] for digest in digests if digest in known}
        for digest, path in new.items():
            found[digest] = style_of(read_context(path))
            if progress:
                progress.advance()
        if found.keys() != known.keys():
            store.save(found)
        return cls(paths, np.stack([found[digest] for digest in digests]) if digests else np.empty((0, 0), np.float32))

    def distances(self, image: Image) -> NDArray[np.float32]:
        """Distance in style of an image (H, W) uint8 to every context, float32 (N,)."""
        return np.asarray(np.linalg.norm(self.points - self._placed(style_of(image)), axis=1), np.float32)

    def nearest(self, image: Image, k: int = 1, *, itself: bool = False) -> list[Chosen]:
        """The k contexts nearest in style to an image (H, W) uint8, the nearest first.

        itself: whether the image may be found, if the bank holds it. Raises InputError for a k the bank cannot meet.
        """
        distances = self.distances(image)
        order = [i for i in np.argsort(distances, kind="stable") if itself or distances[i] > SAME]
        if not 1 <= k <= len(order):
            raise InputError(f"nearest contexts: {k} of {len(order)} that are not the query itself; give more contexts")
        return [Chosen(self.paths[i], float(distances[i])) for i in order[:k]]

    def draw(self, seed: int) -> Chosen:
        """A context drawn by a seed, each as likely as any other."""
        return Chosen(self.paths[int(np.random.default_rng(check_seed(seed)).integers(len(self)))], None)

    def diverse(self, k: int, seed: int) -> list[Chosen]:
        """k contexts as unlike as possible: each is the one farthest from those before it, the first drawn by the seed.

        The greedy k-centre rule (Gonzalez, Theor. Comput. Sci. 38:293, 1985): no context lies farther from the chosen
        than twice what is possible with k. Raises InputError for a k the bank cannot meet.
        """
        if not 1 <= k <= len(self):
            raise InputError(f"diverse contexts: {k} of {len(self)}; give more contexts or a smaller number")
        first = int(np.random.default_rng(check_seed(seed)).integers(len(self)))
        chosen = [Chosen(self.paths[first], None)]
        gap = np.linalg.norm(self.points - self.points[first], axis=1)
        gap[first] = -1.0  # never again, not even where all are the same
        while len(chosen) < k:
            farthest = int(np.argmax(gap))
            chosen.append(Chosen(self.paths[farthest], float(gap[farthest])))
            gap = np.minimum(gap, np.linalg.norm(self.points - self.points[farthest], axis=1))
            gap[farthest] = -1.0
        return chosen

    def _placed(self, styles: Style) -> Style:
        return np.asarray((styles - self._centre) * self._weight, np.float32)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); check the path") from None


class _Store:
    """Styles by the SHA-256 of their files, kept between runs."""

    def __init__(self, cache: Path | bool, paths: Sequence[Path]) -> None:
        self._file = None if isinstance(cache, bool) else cache
        self._blobs = BlobCache() if cache is True else None
        folders = sorted({str(path.parent.resolve()) for path in paths})
        self._key = key_of(kind="context styles", version=VERSION, folders=folders)

    def load(self) -> dict[str, Style]:
        if self._file is not None:
            return _unpack(self._file.read_bytes(), str(self._file)) if self._file.exists() else {}
        payload = None if self._blobs is None else self._blobs.load(self._key)
        return {} if payload is None else _unpack(bytes(payload), self._key)

    def save(self, styles: dict[str, Style]) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, version=np.array(VERSION), digests=np.array(list(styles)), styles=np.stack(list(styles.values()))
        )
        if self._blobs is not None:
            self._blobs.store(self._key, buffer.getvalue())
        if self._file is None:
            return
        try:
            write_whole(self._file, buffer.getvalue())
        except OSError as error:
            raise InputError(f"{self._file}: cannot write ({error.strerror}); choose another file") from None


def _unpack(payload: bytes, name: str) -> dict[str, Style]:
    """Styles by digest; none where another version made them. Raises InputError for a file that is no index."""
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as kept:
            if int(kept["version"]) != VERSION:
                return {}
            return dict(zip(kept["digests"].tolist(), kept["styles"].astype(np.float32), strict=True))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        raise InputError(f"{name}: not an index of contexts; remove it or name another file") from None
