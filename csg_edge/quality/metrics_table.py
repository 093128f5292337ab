"""What each figure of a validation is called, which way is better, and what it means in one plain sentence."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """unit: empty for a plain number; better: "lower", "higher", "near real" or "near 0.5" and the like."""

    title: str
    unit: str
    better: str
    explanation: str


def describe_metric(name: str) -> Metric:
    """The entry of METRICS, of a set's or a class's figure too; for a figure without one, its name in words."""
    first, _, rest = name.partition("/")
    found = METRICS.get(first, Metric(first.replace("_", " "), "", "", ""))
    return found._replace(title=f"{found.title}, {rest.replace('/', ', ').replace('_', ' ')}") if rest else found


METRICS: dict[str, Metric] = {
    "c2st_structure": Metric(
        "C2ST accuracy by structure",
        "0 to 1",
        "near 0.5",
        "Classifier two-sample test on long-range structure alone: how far orientations agree in windows of 4 to 64 "
        "pixels, how long and straight bright ridges are. Sees broken fascia planes and short, wavy fascicles.",
    ),
    "coherence_shift": Metric(
        "Coherence",
        "deviations of real",
        "near 0",
        "How far the fibres of one neighbourhood (16 pixels) agree in direction, less what they do in real images; "
        "below 0 means broken, wavy structures.",
    ),
    "direction_spread": Metric(
        "Spread of direction",
        "ratio to real",
        "near 1",
        "How much the direction of fibres differs within an image; below 1 means that all run one way, mostly level.",
    ),
    "direction_gap": Metric(
        "Gap of direction",
        "degrees",
        "lower",
        "How far fibres must turn, on average, for their directions to be distributed as in real images.",
    ),
    "ridge_length": Metric(
        "Length of bright ridges",
        "ratio to real",
        "near 1",
        "Length of fascicles, septa and fascia planes, against that in real images.",
    ),
    "dice": Metric(
        "Dice of the masks",
        "0 to 1",
        "near real",
        "How well an independent segmenter finds the given mask in the image. As well as in real images is right; "
        "better than that means images simpler than real ones.",
    ),
    "contrast_correlation": Metric(
        "Class contrast correlation",
        "\N{MINUS SIGN}1 to 1",
        "higher",
        "Whether each class is as bright or dark against its image as in the real image of the mask; near 0 if the "
        "mask is ignored.",
    ),
    "kid": Metric(
        "KID",
        "",
        "lower",
        "Kernel inception distance (arXiv 1801.01401): between the two sets of images, in the features of our own "
        "encoder; about 0, and at times just below, for two sets of real images.",
    ),
    "kid_joint": Metric(
        "KID with masks",
        "",
        "lower",
        "The same on features of image and mask together: also sees good images that do not belong to their masks.",
    ),
    "mmd": Metric(
        "Mean discrepancy (MMD)",
        "",
        "lower",
        "As KID, with a Gaussian kernel, which weighs all differences of the sets and not only the first moments.",
    ),
    "mmd_joint": Metric(
        "Mean discrepancy with masks",
        "",
        "lower",
        "The same on features of image and mask together.",
    ),
    "frechet": Metric(
        "Fréchet distance",
        "",
        "lower",
        "Distance between normal distributions fitted to the features of both sets. It grows as images get fewer: "
        "compare sets of one size only.",
    ),
    "frechet_joint": Metric(
        "Fréchet distance with masks",
        "",
        "lower",
        "The same on features of image and mask together.",
    ),
    "spectrum_gap": Metric(
        "Spectrum gap",
        "nats",
        "lower",
        "Mean difference of the logarithmic power spectra over all spatial frequencies: sees blur, ringing and wrong "
        "speckle size.",
    ),
    "speckle_gap": Metric(
        "Speckle gap",
        "spreads of real",
        "lower",
        "Distance of speckle contrast, Nakagami m and speckle size inside homogeneous tissue, in units of their spread "
        "over real images.",
    ),
    "histogram_gap": Metric(
        "Grey level gap",
        "grey levels",
        "lower",
        "How far grey levels must move, on average over the classes, to match real ones.",
    ),
    "c2st": Metric(
        "C2ST accuracy",
        "0 to 1",
        "near 0.5",
        "Classifier two-sample test (arXiv 1610.06545): accuracy of a linear classifier of real and generated images "
        "on multi-scale features, on groups it was not trained on; 0.5 is guessing.",
    ),
    "c2st_pixels": Metric(
        "C2ST accuracy on pixels",
        "0 to 1",
        "near 0.5",
        "The same for a small network trained on pixels: sees artefacts that the features miss.",
    ),
    "context_hit_rate": Metric(
        "Own context recognised",
        "share",
        "higher",
        "How often an image is nearer in style to its own context than to another image's; 0.5 if contexts are "
        "ignored.",
    ),
    "style_error": Metric(
        "Style error",
        "ratio",
        "lower",
        "Style distance to the own context over that to other contexts; 1 if contexts are ignored.",
    ),
    "diversity": Metric(
        "Diversity",
        "feature distance",
        "near teacher",
        "How much images of one mask and context differ from seed to seed, in encoder features. Less than the "
        "teacher's is collapse, more may be noise.",
    ),
    "diversity_pixels": Metric(
        "Diversity in pixels",
        "grey levels",
        "near teacher",
        "The same as the mean absolute difference of pixels.",
    ),
    "seed_likeness": Metric(
        "Likeness by the seed",
        "correlation",
        "near 0",
        "How much more alike images of different masks and contexts are when they share a seed; above 0 means that "
        "the noise decides where structures lie.",
    ),
    "memorisation_ratio": Metric(
        "Distance to training images",
        "ratio",
        "near 1",
        "Median distance to the nearest training image, over that of held-out real images; well below 1 is copying.",
    ),
    "memorisation_rate": Metric(
        "Memorisation rate",
        "share",
        "lower",
        "Share of images nearer to a training image than the nearest 5 % of held-out real images; 0.05 is expected of "
        "honest images.",
    ),
    "context_copy_ratio": Metric(
        "Distance to own context",
        "ratio",
        "near 1",
        "Distance to the context image, over that of the mask's real image to the same context; well below 1 means "
        "that the context's structures are copied.",
    ),
    "usefulness_real": Metric(
        "Dice, trained on real images",
        "0 to 1",
        "higher",
        "Dice on untouched real images of a segmenter trained on real ones with classical augmentation.",
    ),
    "usefulness_both": Metric(
        "Dice, trained on real and generated images",
        "0 to 1",
        "higher",
        "The same with one half generated images in every batch.",
    ),
    "usefulness_synthetic": Metric(
        "Dice, trained on generated images",
        "0 to 1",
        "higher",
        "The same with generated images alone.",
    ),
    "usefulness_gain": Metric(
        "Gain in Dice by generated images",
        "Dice",
        "higher",
        "Trained on both less trained on real images; an interval above 0 means that the images help.",
    ),
}
"""By the name that a figure has in the record; in the order in which a report lists them."""
