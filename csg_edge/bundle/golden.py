"""Golden cases of a bundle: read them, and say how far an image is from the expected one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from csg_edge.bundle.manifest import Bundle, GoldenCase, Tolerance
from csg_edge.conditions.fibre_files import read_field
from csg_edge.conditions.fibres import GIVEN, Field
from csg_edge.conditions.files import read_context, read_mask

Image = NDArray[np.uint8]


QUANTILES = (0.5, 0.9, 0.99, 0.999)
FIELD_TOLERANCE = 0.08  # of `field_difference`, for every precision; the files round to whole degrees


# Wang et al. 2004, 10.1109/TIP.2003.819861, section III-B: an 11 x 11 Gaussian of deviation 1.5, K1 and K2.
SSIM_RADIUS, SSIM_DEVIATION, SSIM_K1, SSIM_K2 = 5, 1.5, 0.01, 0.03


@dataclass(frozen=True)
class Difference:
    """How far two uint8 images are apart: grey levels, PSNR in dB (peak 255; infinite if equal) and SSIM (1 if equal).

    `p99_levels`: 99 % of pixels differ by no more.
    """

    max_levels: int
    mean_levels: float
    p99_levels: float
    share_within_1: float
    psnr: float
    ssim: float

    @classmethod
    def between(cls, image: Image, expected: Image) -> Difference:
        """The difference between two (H, W) images of one shape, at least 11 x 11."""
        levels = np.abs(image.astype(np.int16) - expected.astype(np.int16))
        mean_square = float(np.mean(levels.astype(np.float64) ** 2))
        return cls(
            max_levels=int(levels.max()),
            mean_levels=float(levels.mean()),
            p99_levels=float(np.quantile(levels, 0.99)),
            share_within_1=float((levels <= 1).mean()),
            psnr=float(10.0 * np.log10(255.0**2 / mean_square)) if mean_square else math.inf,
            ssim=structural_similarity(image, expected),
        )

    @classmethod
    def worst(cls, differences: Sequence[Difference]) -> Difference:
        """The worst of each figure over several pairs of images."""
        smaller_is_worse = ("share_within_1", "psnr", "ssim")
        return cls(
            **{
                item.name: (min if item.name in smaller_is_worse else max)(
                    getattr(difference, item.name) for difference in differences
                )
                for item in fields(cls)
            }
        )

    def to_json(self) -> dict[str, float | None]:
        """As a dictionary; JSON has no infinity, so the PSNR of equal images is None."""
        return {**asdict(self), "psnr": self.psnr if math.isfinite(self.psnr) else None}


class CaseData(NamedTuple):
    """A golden case, read: mask, context and expected image (H, W) uint8, what is given of the fibre field, and used.

    field, used: (3, 16, 16) float32, or None.
    """

    mask: Image
    context: Image
    expected: Image
    field: Field | None
    used: Field | None


def read_case(bundle: Bundle, case: GoldenCase, steps: int) -> CaseData:
    """Read the files of a golden case. Raises InputError for a file that is not what the manifest says it is."""
    return CaseData(
        read_mask(bundle.file(case.mask), bundle.manifest.schema),
        read_context(bundle.file(case.context)),
        read_context(bundle.file(case.expected[str(steps)])),
        *(None if name is None else read_field(bundle.file(name)) for name in (case.fibre, case.fibre_used)),
    )


def field_difference(field: Field, expected: Field) -> float:
    """Root mean square distance of the direction vectors of two fibre fields, 0 to 2."""
    return float(np.sqrt(np.square(field[:GIVEN] - expected[:GIVEN]).sum(axis=0).mean()))


def within(image: Image, expected: Image, tolerance: Tolerance, *, psnr: float) -> bool:
    """Whether an image with this PSNR is as close to the expected one as the manifest asks of an engine."""
    levels = np.abs(image.astype(np.int16) - expected.astype(np.int16))
    return psnr >= tolerance.psnr and float((levels <= tolerance.levels).mean()) >= tolerance.share


def error_statistics(pairs: Sequence[tuple[Image, Image]]) -> dict[str, float | int | None]:
    """Of (image, expected) pairs: grey levels over all pixels (max, mean, quantiles), worst PSNR and SSIM; for JSON."""
    levels = np.concatenate([np.abs(image.astype(np.int16) - expected).ravel() for image, expected in pairs])
    worst = Difference.worst([Difference.between(image, expected) for image, expected in pairs]).to_json()
    return {
        "cases": len(pairs),
        "max_levels": int(levels.max()),
        "mean_levels": float(levels.mean()),
        **{f"p{100 * share:g}_levels": float(np.quantile(levels, share)) for share in QUANTILES},
        "share_within_1": float((levels <= 1).mean()),
        "worst_psnr": worst["psnr"],
        "worst_ssim": worst["ssim"],
    }


def structural_similarity(image: Image, expected: Image) -> float:
    """Mean SSIM of two (H, W) uint8 images where the window fits inside (Wang et al. 2004, equation 13)."""
    import cv2

    def blur(values: NDArray[np.float64]) -> NDArray[np.float64]:
        side = 2 * SSIM_RADIUS + 1
        inside = slice(SSIM_RADIUS, -SSIM_RADIUS)
        blurred = cv2.GaussianBlur(values, (side, side), SSIM_DEVIATION)
        return np.asarray(blurred, dtype=np.float64)[inside, inside]

    first, second = image.astype(np.float64), expected.astype(np.float64)
    mean_first, mean_second = blur(first), blur(second)
    variance_first = blur(first * first) - mean_first**2
    variance_second = blur(second * second) - mean_second**2
    covariance = blur(first * second) - mean_first * mean_second
    luminance, contrast = (SSIM_K1 * 255.0) ** 2, (SSIM_K2 * 255.0) ** 2
    similarity = ((2 * mean_first * mean_second + luminance) * (2 * covariance + contrast)) / (
        (mean_first**2 + mean_second**2 + luminance) * (variance_first + variance_second + contrast)
    )
    return float(similarity.mean())
