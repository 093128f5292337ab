"""What engines can be built for: runtimes, their devices and precisions, tolerances, order of preference."""

from __future__ import annotations

import re

from csg_edge.bundle.manifest import Engine, Target, Tolerance
from csg_edge.errors import InputError

EXACT = Tolerance(levels=1, share=0.999, psnr=50.0)
SIXTEEN_BIT = Tolerance(levels=255, share=1.0, psnr=40.0)
EIGHT_BIT = Tolerance(levels=255, share=1.0, psnr=30.0)
TOLERANCES = {"fp32": EXACT, "bf16": SIXTEEN_BIT, "fp16": SIXTEEN_BIT, "int8": EIGHT_BIT}

MAX_BATCH = 64  # of graphs with a free batch

SM = "smNN"  # stands for every compute capability; the builder knows which it has
NVIDIA = ("tensorrt", "tensorrt-rtx")
OFFERED: dict[str, dict[str, tuple[str, ...]]] = {
    "openvino": {
        "CPU": ("bf16", "fp32", "int8"),
        "GPU": ("fp16", "fp32", "int8"),
        "NPU": ("fp16", "int8"),
    },
    "onnxruntime": {
        "CPU": ("fp32", "int8"),
        "CUDA": ("fp16", "fp32"),
        "TensorRT": ("fp16", "fp32", "int8"),
        "OpenVINO": ("fp32",),  # no int8: OpenVINO does not read a Q/DQ graph as it was meant
    },
    "tensorrt-rtx": {SM: ("fp16", "fp32", "int8")},
    "tensorrt": {SM: ("fp16", "fp32", "int8")},
}

# Fastest first, as far as that can be said without measuring.
PREFERENCE = (
    "tensorrt",
    "tensorrt-rtx",
    "onnxruntime:TensorRT",
    "onnxruntime:CUDA",
    "openvino:GPU",
    "openvino:NPU",
    "openvino",
    "onnxruntime",
)
PRECISION_PREFERENCE = ("int8", "fp16", "bf16", "fp32")


def check_target(text: str) -> Target:
    """`tensorrt-rtx:sm86:fp16` -> Target. Raises InputError naming what is offered instead."""
    target = Target.parse(text)
    devices = OFFERED.get(target.runtime)
    if devices is None:
        raise InputError(f"--target {text}: runtime {target.runtime} is unknown; choose among {', '.join(OFFERED)}")
    device = SM if SM in devices and re.fullmatch(r"sm\d{2,3}", target.device) else target.device
    if device not in devices:
        raise InputError(
            f"--target {text}: {target.runtime} has no device {target.device}; choose among {', '.join(devices)}"
        )
    if target.precision not in devices[device]:
        raise InputError(
            f"--target {text}: {target.precision} is not offered on {target.runtime}:{target.device}; choose among "
            f"{', '.join(devices[device])}"
        )
    return target


def preference(engine: Engine) -> tuple[int, int, int]:
    """Sort key of an engine: what `auto` should try first comes first.

    An int8 engine that was never timed against the 16-bit one, since its device was absent, comes after the others of
    its device: int8 has to earn its place.
    """
    target = Target.parse(engine.target)
    unproven = int(target.precision == "int8" and "speed_up" not in engine.report.get("calibration", {}))
    for name in (f"{target.runtime}:{target.device}", target.runtime):
        if name in PREFERENCE:
            return PREFERENCE.index(name), unproven, PRECISION_PREFERENCE.index(target.precision)
    return len(PREFERENCE), unproven, 0
