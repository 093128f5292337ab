"""OpenVINO's int8: NNCF on the OpenVINO model itself, since it does not read Q/DQ graphs as they were meant."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from csg_edge.calibration.recipes import Recipe
from csg_edge.calibration.samples import CalibrationSet
from csg_edge.errors import EngineError, RuntimeUnavailableError
from csg_edge.export.openvino import save_ir

PARTS = "/WithoutBiases"  # how OpenVINO calls the product inside a layer with a bias
HEAVY = ("Convolution", "GroupConvolution", "MatMul")


def check_quantiser() -> None:
    """Raise RuntimeUnavailableError if NNCF is not installed."""
    if find_spec("nncf") is None:
        raise RuntimeUnavailableError("nncf is not installed; pip install 'csg-edge[calibrate]'")


def write_int8_ir(
    graph: Path,
    xml: Path,
    samples: CalibrationSet,
    recipe: Recipe,
    *,
    kept: Collection[str] = (),
    note: Callable[[], None] = lambda: None,
) -> str:
    """Quantise an fp32 graph for batch 1 and write `xml` and the `.bin` beside it; returns what did it.

    kept: names of ONNX nodes that stay in floating point; `note` is called for each sample read, some are read more
    than once. The same samples give the same bytes. Raises EngineError if NNCF refuses the graph or the names.
    """
    check_quantiser()
    import openvino

    nncf = _nncf()
    model = openvino.Core().read_model(graph)

    def read(index: int) -> Any:
        note()
        return samples.feeds(index)

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its own progress bars
            quantised = nncf.quantize(
                model,
                nncf.Dataset(range(len(samples)), read),
                subset_size=len(samples),
                target_device=nncf.TargetDevice.CPU,
                preset=nncf.QuantizationPreset.MIXED if recipe.mixed else nncf.QuantizationPreset.PERFORMANCE,
                model_type=nncf.ModelType.TRANSFORMER if recipe.transformer else None,
                fast_bias_correction=recipe.bias_correction != "full",
                ignored_scope=nncf.IgnoredScope(names=_operations(model, kept)),
                advanced_parameters=_advanced(recipe),
            )
    except (RuntimeError, nncf.ValidationError, nncf.InternalError, ValueError) as error:
        raise EngineError(
            f"{graph}: NNCF cannot quantise it ({_first_line(error)}); choose another --recipe"
        ) from error
    save_ir(quantised, xml)
    return f"nncf {nncf.__version__}, openvino {openvino.get_version().split('-')[0]}"


def _nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # sends nothing to anyone; read when it is imported
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf


def _operations(model: Any, kept: Collection[str]) -> list[str]:
    """Names of OpenVINO's operations for names of ONNX nodes."""
    known = {
        operation.get_friendly_name().removesuffix(PARTS): operation.get_friendly_name()
        for operation in model.get_ops()
        if operation.get_type_name() in HEAVY
    }
    if missing := sorted(set(kept) - set(known)):
        raise EngineError(f"{missing[0]}: not found in the model that OpenVINO read; update csg-edge or OpenVINO")
    return sorted(known[name] for name in kept)


def _advanced(recipe: Recipe) -> Any:
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    clipped = {"activations_range_estimator_params": RangeEstimatorParametersSet.MEAN_QUANTILE}
    return AdvancedQuantizationParameters(
        disable_bias_correction=recipe.bias_correction == "none",
        smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=0.5 if recipe.smooth else -1),
        **(clipped if recipe.percentile else {}),
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
