"""ONNX operators in torch, as far as our graphs use them; each follows onnx.ai/onnx/operators.

Torch is an argument of every operator, so that this module imports without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Operator = Callable[..., Any]  # (torch, attributes, *inputs) -> tensor or tuple of tensors


def _cast(torch: Any, attributes: Mapping[str, Any], value: Any) -> Any:
    # ONNX element types (onnx.TensorProto.DataType) that our graphs cast to.
    kinds = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 6: torch.int32, 7: torch.int64, 9: torch.bool,
             10: torch.float16, 11: torch.float64}  # fmt: skip
    return value.to(kinds[attributes["to"]])


def _conv(torch: Any, attributes: Mapping[str, Any], value: Any, weight: Any, bias: Any = None) -> Any:
    pads = attributes.get("pads", [0, 0, 0, 0])  # top, left, bottom, right
    if pads[:2] != pads[2:]:
        value, pads = torch.nn.functional.pad(value, (pads[1], pads[3], pads[0], pads[2])), [0, 0]
    return torch.nn.functional.conv2d(
        value, weight, bias, attributes.get("strides", 1), tuple(pads[:2]), attributes.get("dilations", 1),
        attributes.get("group", 1),
    )  # fmt: skip


def _gemm(torch: Any, attributes: Mapping[str, Any], left: Any, right: Any, bias: Any = None) -> Any:
    left = left.T if attributes.get("transA") else left
    right = right.T if attributes.get("transB") else right
    product = attributes.get("alpha", 1.0) * (left @ right)
    return product if bias is None else product + attributes.get("beta", 1.0) * bias


def _reshape(torch: Any, attributes: Mapping[str, Any], value: Any, shape: Any) -> Any:
    sizes = shape.tolist()
    if not attributes.get("allowzero"):
        sizes = [value.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return value.reshape(sizes)


def _slice(
    torch: Any, attributes: Mapping[str, Any], value: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None
) -> Any:
    starts, ends = starts.tolist(), ends.tolist()
    where = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    index = [slice(None)] * value.ndim
    for axis, start, end, stride in zip(where, starts, ends, strides, strict=True):
        size = value.shape[axis]  # starts and ends may lie far outside
        index[axis] = slice(max(-size, min(start, size)), max(-size, min(end, size)), stride)
    return value[tuple(index)]


def _split(torch: Any, attributes: Mapping[str, Any], value: Any, sizes: Any = None) -> Any:
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return tuple(torch.split(value, sizes.tolist(), axis))
    count = attributes["num_outputs"]
    return tuple(torch.split(value, -(-value.shape[axis] // count), axis))


def _reduce(name: str) -> Operator:
    def reduce(torch: Any, attributes: Mapping[str, Any], value: Any, axes: Any = None) -> Any:
        dims = tuple(range(value.ndim)) if axes is None else tuple(axes.tolist())
        return getattr(torch, name)(value, dim=dims, keepdim=bool(attributes.get("keepdims", 1)))

    return reduce


def _resize(
    torch: Any, attributes: Mapping[str, Any], value: Any, region: Any = None, scales: Any = None, sizes: Any = None
) -> Any:
    mode = attributes.get("mode", b"nearest")
    if mode == b"linear" and attributes.get("coordinate_transformation_mode", b"half_pixel") == b"half_pixel":
        method = {"mode": "bilinear", "align_corners": False}
    elif mode == b"nearest":
        method = {"mode": "nearest"}
    else:
        raise ValueError(f"Resize mode {mode!r} is neither nearest nor linear by half pixels")
    target = tuple(sizes.tolist()[2:]) if sizes is not None else None
    factor = None if target else tuple(scales.tolist()[2:])
    return torch.nn.functional.interpolate(value, size=target, scale_factor=factor, **method)


def _instance_norm(torch: Any, attributes: Mapping[str, Any], value: Any, scale: Any, bias: Any) -> Any:
    return torch.nn.functional.instance_norm(value, weight=scale, bias=bias, eps=attributes.get("epsilon", 1e-5))


def _group_norm(torch: Any, attributes: Mapping[str, Any], value: Any, scale: Any, bias: Any) -> Any:
    groups = attributes["num_groups"]
    return torch.nn.functional.group_norm(value, groups, scale, bias, attributes.get("epsilon", 1e-5))


def _clip(torch: Any, attributes: Mapping[str, Any], value: Any, low: Any = None, high: Any = None) -> Any:
    return torch.clamp(value, min=low, max=high)


def _depth_to_space(torch: Any, attributes: Mapping[str, Any], value: Any) -> Any:
    if attributes.get("mode", b"DCR") != b"CRD":
        raise ValueError("DepthToSpace mode DCR is not supported")
    return torch.nn.functional.pixel_shuffle(value, attributes["blocksize"])


def _average_pool(torch: Any, attributes: Mapping[str, Any], value: Any) -> Any:
    if any(attributes.get("pads", ())):
        raise ValueError("AveragePool with padding is not supported")
    return torch.nn.functional.avg_pool2d(value, attributes["kernel_shape"], attributes.get("strides"))


def _gather(torch: Any, attributes: Mapping[str, Any], value: Any, indices: Any) -> Any:
    axis = attributes.get("axis", 0) % value.ndim
    taken = torch.index_select(value, axis, indices.reshape(-1))
    return taken.reshape(value.shape[:axis] + indices.shape + value.shape[axis + 1 :])


def _unsqueeze(torch: Any, attributes: Mapping[str, Any], value: Any, axes: Any) -> Any:
    rank = value.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.tolist()):
        value = value.unsqueeze(axis)
    return value


def _squeeze(torch: Any, attributes: Mapping[str, Any], value: Any, axes: Any = None) -> Any:
    return value.squeeze() if axes is None else value.squeeze(tuple(axes.tolist()))


def _plain(function: Callable[..., Any]) -> Operator:
    return lambda torch, attributes, *inputs: function(torch, *inputs)


def _expand(torch: Any, attributes: Mapping[str, Any], value: Any, shape: Any) -> Any:
    return value.expand(torch.broadcast_shapes(value.shape, tuple(shape.tolist())))


OPERATORS: dict[str, Operator] = {
    "Add": _plain(lambda torch, a, b: a + b),
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda torch, attributes, *inputs: torch.cat(inputs, dim=attributes["axis"]),
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "Div": _plain(lambda torch, a, b: a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")),
    "Equal": _plain(lambda torch, a, b: a == b),
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "Greater": _plain(lambda torch, a, b: a > b),
    "GroupNormalization": _group_norm,
    "Identity": _plain(lambda torch, a: a),
    "InstanceNormalization": _instance_norm,
    "MatMul": _plain(lambda torch, a, b: a @ b),
    "Mul": _plain(lambda torch, a, b: a * b),
    "Pow": _plain(lambda torch, a, b: torch.pow(a, b)),
    "ReduceMax": _reduce("amax"),
    "ReduceMean": _reduce("mean"),
    "ReduceSum": _reduce("sum"),
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": _plain(lambda torch, a: torch.round(a)),
    "Shape": lambda torch, attributes, a: torch.tensor(
        a.shape[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64, device=a.device
    ),
    "Sigmoid": _plain(lambda torch, a: torch.sigmoid(a)),
    "HardSwish": _plain(lambda torch, a: torch.nn.functional.hardswish(a)),
    "Relu": _plain(lambda torch, a: torch.relu(a)),
    "Slice": _slice,
    "Softmax": lambda torch, attributes, a: torch.softmax(a, dim=attributes.get("axis", -1)),
    "Split": _split,
    "Sqrt": _plain(lambda torch, a: torch.sqrt(a)),
    "Squeeze": _squeeze,
    "Sub": _plain(lambda torch, a, b: a - b),
    "Transpose": lambda torch, attributes, a: a.permute(*attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}
