"""Ways to calibrate that the quantisers offer, by name, so that each can be tried and its result recorded."""

from __future__ import annotations

from dataclasses import dataclass

from csg_edge.errors import InputError

PERCENTILE = 99.99  # of the values of a tensor over all samples; the rest is clipped


@dataclass(frozen=True)
class Recipe:
    """What NNCF and ONNX Runtime's quantiser are told. A setting that one of them lacks does not reach it.

    percentile: ranges leave out the outermost values. transformer: NNCF's scheme for transformers, which leaves the
    tensors between layers alone. mixed: activations may have zero points off centre (NNCF). bias_correction: "fast",
    "full" or "none" (NNCF). smooth: SmoothQuant for convolutions too (NNCF; Xiao et al., ICML 2023).
    """

    name: str
    about: str
    percentile: bool = False
    transformer: bool = True
    mixed: bool = False
    bias_correction: str = "fast"
    smooth: bool = False


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("default", "ranges from minimum to maximum, NNCF's transformer scheme, fast bias correction"),
        Recipe("percentile", "ranges that clip the outermost values", percentile=True),
        Recipe("no-bias-correction", "without bias correction", bias_correction="none"),
        Recipe("full-bias-correction", "NNCF's slow bias correction, layer after layer", bias_correction="full"),
        Recipe("smooth-quant", "SmoothQuant also for convolutions", smooth=True),
        Recipe("mixed", "NNCF's MIXED preset: zero points off centre", mixed=True),
        Recipe("cnn", "NNCF's scheme for convolutional networks", transformer=False),
    )
}


def find_recipe(name: str) -> Recipe:
    """Raises InputError for a name that is none."""
    if name not in RECIPES:
        raise InputError(f"--recipe {name}: choose among {', '.join(RECIPES)}")
    return RECIPES[name]
