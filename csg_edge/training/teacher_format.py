"""`csg.json`: how mask and context enter a teacher that diffusers made, and how it is sampled; see
docs/teacher-format.md."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from csg_edge.errors import TrainingError

FORMAT = 1
ORDER = ("latent", "mask", "context")
SAMPLERS = ("ddim", "dpmsolver++")
Palette = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class MaskEntry:
    """How the mask enters."""

    channels: str = "one_hot"  # or latents, or none
    resize: str = "nearest"  # or area: how a one-hot comes to the size of the latent
    palette: Palette = ()  # grey level or red, green, blue of each class, where the mask becomes an image
    dropped: str = "unsupported"  # or zeros: what stands for no mask


@dataclass(frozen=True)
class ContextEntry:
    """How the context enters."""

    channels: str = "none"  # or latents
    tokens: str = "none"  # or latents: cross-attention to projected latents
    dropped: str = "unsupported"  # or zeros


@dataclass(frozen=True)
class TeacherFormat:
    """The contents of `csg.json`."""

    image_size: int
    mask: MaskEntry
    context: ContextEntry
    order: tuple[str, ...] = ORDER
    sampler: str = "ddim"
    steps: int = 50

    @property
    def droppable(self) -> bool:
        """Whether every condition that enters has something that stands for its absence."""
        context = self.context.channels != "none" or self.context.tokens != "none"
        return self.mask.dropped == "zeros" and (not context or self.context.dropped == "zeros")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TeacherFormat:
        """Raises TrainingError for missing or unknown keys and values that are none of those offered."""
        _check_keys("csg.json", values, required=("format", "image_size", "mask", "context"),
                    optional=("channel_order", "sampler"))  # fmt: skip
        if values["format"] != FORMAT:
            raise TrainingError(f"csg.json: format {values['format']!r}; this csg-edge reads {FORMAT}")
        mask, context = _object(values, "mask"), _object(values, "context")
        sampler = _object(values, "sampler") if "sampler" in values else {}
        _check_keys("csg.json: mask", mask, required=("channels",), optional=("resize", "palette", "dropped"))
        _check_keys("csg.json: context", context, required=("channels",), optional=("tokens", "dropped"))
        _check_keys("csg.json: sampler", sampler, required=(), optional=("name", "steps"))
        order = values.get("channel_order", list(ORDER))
        if not isinstance(order, list) or sorted(map(str, order)) != sorted(ORDER):
            raise TrainingError(f"csg.json: channel_order {order!r}; give {', '.join(ORDER)} in the order of your UNet")
        return cls(
            image_size=_whole(values["image_size"], "image_size"),
            mask=MaskEntry(
                channels=_choice(mask, "mask", "channels", ("one_hot", "latents", "none")),
                resize=_choice(mask, "mask", "resize", ("nearest", "area")),
                palette=_palette(mask.get("palette", [])),
                dropped=_choice(mask, "mask", "dropped", ("unsupported", "zeros")),
            ),
            context=ContextEntry(
                channels=_choice(context, "context", "channels", ("none", "latents")),
                tokens=_choice(context, "context", "tokens", ("none", "latents")),
                dropped=_choice(context, "context", "dropped", ("unsupported", "zeros")),
            ),
            order=tuple(order),
            sampler=_choice(sampler, "sampler", "name", SAMPLERS),
            steps=_whole(sampler.get("steps", 50), "sampler: steps"),
        )


def _check_keys(place: str, values: dict[str, Any], *, required: Collection[str], optional: Collection[str]) -> None:
    for key in required:
        if key not in values:
            raise TrainingError(f"{place}: no {key!r}; it is needed, see docs/teacher-format.md")
    for key in values:
        if key not in required and key not in optional:
            raise TrainingError(f"{place}: unknown key {key!r}; it knows {', '.join((*required, *optional))}")


def _object(values: dict[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(values[key], dict):
        raise TrainingError(f"csg.json: {key} is no JSON object; see docs/teacher-format.md")
    return dict(values[key])


def _choice(values: dict[str, Any], place: str, key: str, choices: tuple[str, ...]) -> str:
    """The value at `key`, or the first of the choices."""
    value = values.get(key, choices[0])
    if value not in choices:
        raise TrainingError(f"csg.json: {place}: {key} {value!r}; choose among {', '.join(choices)}")
    return str(value)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TrainingError(f"csg.json: {name} {value!r}; give a whole number from 1")
    return value


def _palette(values: Any) -> Palette:
    """Grey levels or [red, green, blue], 0..255, one per class."""
    if not isinstance(values, list):
        raise TrainingError(
            "csg.json: mask: palette is no list; give a grey level or [red, green, blue] for each class"
        )
    colours = [tuple(item) if isinstance(item, list) else (item,) for item in values]
    whole = all(isinstance(level, int) and 0 <= level <= 255 for colour in colours for level in colour)
    if not whole or {len(colour) for colour in colours} not in ({1}, {3}, set()):
        raise TrainingError(
            "csg.json: mask: palette: give each class one grey level, or each [red, green, blue], 0..255"
        )
    return tuple(colours)
