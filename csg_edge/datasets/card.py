"""The data card: what a labelled set holds, as it travels with a packed set and with a teacher trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from csg_edge.datasets.labelled_set import open_set
from csg_edge.datasets.layouts import FolderSet
from csg_edge.datasets.packed import PackedSet
from csg_edge.errors import InputError

DOCUMENTS = ("readme", "licen", "citation", "copying", "notice")  # starts of file names; licence and license


def data_card(sets: Sequence[Path], *, splits: Collection[str]) -> dict[str, Any]:
    """What the given splits of the sets hold; other splits are not looked at. JSON-ready.

    sets: paths as `find_sets` gives them. For each set: images and groups, and by split also the sizes of the images
    as they came (before resizing), the classes with the share of pixels and the number of images that have them, and
    a SHA-256 over names, groups, images and masks as they came; the documents found beside it, with their first line.
    A packed set hands on the card made when it was packed. Raises InputError for files that cannot be used.
    """
    return {"sets": [set_card(open_set(directory), splits) for directory in sets]}


def card_markdown(card: dict[str, Any]) -> str:
    """The same card as a Markdown document."""
    lines = ["# Data card", ""]
    for item in card["sets"]:
        lines += [
            f"## {item['name']}",
            "",
            f"{item['images']} images in {item['groups']} groups ({item['layout']}).",
            "",
        ]
        lines += [f"- {entry['file']}: {entry['heading']}" for entry in item["documents"]]
        lines += ["" if item["documents"] else "No README or licence file lies beside it.\n"]
        lines += ["| split | images | groups | height (least, median, most) | width (least, median, most) | SHA-256 |"]
        lines += ["|---|---|---|---|---|---|"]
        for split, part in item["splits"].items():
            spans = (", ".join(map(str, part[side])) for side in ("height", "width"))
            lines.append(f"| {split} | {part['images']} | {part['groups']} | {' | '.join(spans)} | {part['sha256']} |")
        lines += ["", "| class | split | images with it | share of pixels |", "|---|---|---|---|"]
        for split, part in item["splits"].items():
            for name, found in part["classes"].items():
                lines.append(f"| {name} | {split} | {found['images']} | {100 * found['pixel_share']:.2f} % |")
        lines.append("")
    return "\n".join(lines)


def set_card(source: FolderSet | PackedSet, splits: Collection[str]) -> dict[str, Any]:
    """The card of one set, an entry of `data_card`."""
    present = [split for split in dict.fromkeys(example.split for example in source.examples) if split in splits]
    if not present:
        raise InputError(f"{source.path}: no images in split {' or '.join(splits)}; choose other splits")
    if isinstance(source, PackedSet):
        parts = {split: source.card["splits"][split] for split in present}
        layout, documents = source.card["layout"], source.card["documents"]
    else:
        parts = {split: _split_card(source, split) for split in present}
        layout, documents = source.layout, _documents(source.path)
    return {
        "name": source.name,
        "layout": layout,
        "classes": list(source.classes.names),
        "images": sum(part["images"] for part in parts.values()),
        "groups": sum(part["groups"] for part in parts.values()),  # a group is in one split
        "splits": parts,
        "documents": documents,
    }


def _split_card(source: FolderSet, split: str) -> dict[str, Any]:
    positions = [position for position, example in enumerate(source.examples) if example.split == split]
    digest, shapes = hashlib.sha256(), []
    pixels, images_with = np.zeros(len(source.classes), dtype=np.int64), Counter[int]()
    for position in positions:
        image, mask = source.read(position)
        example = source.examples[position]
        digest.update(repr((example.name, example.group, image.shape)).encode())
        digest.update(image.tobytes())
        digest.update(mask.tobytes())
        shapes.append(image.shape)
        counts = np.bincount(mask.ravel(), minlength=256)[: len(source.classes)]  # what nobody labelled is left out
        pixels += counts
        images_with.update(np.flatnonzero(counts).tolist())
    heights, widths = (sorted(sides) for sides in zip(*shapes, strict=True))
    return {
        "images": len(positions),
        "groups": len({source.examples[position].group for position in positions}),
        "height": [heights[0], heights[len(heights) // 2], heights[-1]],
        "width": [widths[0], widths[len(widths) // 2], widths[-1]],
        "classes": {
            name: {"images": images_with[index], "pixel_share": round(float(pixels[index] / max(pixels.sum(), 1)), 6)}
            for index, name in enumerate(source.classes.names)
        },
        "sha256": digest.hexdigest(),
    }


def _documents(directory: Path) -> list[dict[str, str]]:
    """Files that tell licence and origin, and the first line of each that says something."""
    found = []
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.name.lower().startswith(DOCUMENTS):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            heading = next((line.strip("#* \t") for line in lines if line.strip("#*=- \t")), "")
            found.append({"file": path.name, "heading": heading})
    return found
