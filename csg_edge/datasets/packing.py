"""Packing labelled sets: from folders to one file that is small enough to carry."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from csg_edge.conditions.arrays import resize_image, resize_mask
from csg_edge.datasets.card import set_card
from csg_edge.datasets.labelled_set import find_sets, open_set
from csg_edge.datasets.layouts import Example, FolderSet
from csg_edge.datasets.packed import PackedSet, encode_image, pack, write_packed
from csg_edge.errors import InputError
from csg_edge.progress import Progress

STEP = 50  # images; the remedy for a file that is too large is given to this precision


def pack_sets(
    roots: Sequence[Path], out: Path, *, size: int, splits: Collection[str], limit: int, at_most: int | None = None
) -> dict[str, Any]:
    """Pack all sets below `roots` into the file `out`, every image stretched to (size, size), without loss after that.

    splits: which to take; no other is read. limit: bytes. at_most: images of each set, in whole groups chosen by the
    hashes of their names, so that the choice is the same everywhere. Returns what was packed. Raises InputError for
    bad sets, an `out` that is there already, or a file above the limit, and then writes nothing.
    """
    if out.exists():
        raise InputError(f"--out {out}: already there; choose another name or move it away")
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: a packed set is a safetensors file; give a name that ends in .safetensors")
    sources = [_selected(directory, splits, at_most) for root in roots for directory in find_sets(root)]
    twice = [name for name, times in Counter(source.name for source in sources).items() if times > 1]
    if twice:
        raise InputError(f"--data: two sets are named {twice[0]}; rename one of the folders")
    packed = [_pack_set(source, out, size=size) for source in sources]
    data = pack(packed)
    if len(data) > limit:
        raise InputError(
            f"--out {out}: {sum(len(item.examples) for item in packed)} images take {len(data) / 1e6:.1f} MB, "
            f"more than --limit-mb {limit / 1e6:g}; {_remedy(packed, limit, len(data))}"
        )
    write_packed(out, data)
    return {
        "out": str(out),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": size,
        "sets": [item.card for item in packed],
    }


def choose_groups(examples: Sequence[Example], at_most: int) -> set[str]:
    """Whole groups with `at_most` images together, in the order of the hashes of their names.

    Each split keeps its share, and at least one group.
    """
    chosen: set[str] = set()
    for split in {example.split for example in examples}:
        sizes = Counter(example.group for example in examples if example.split == split)
        room = at_most * sizes.total() / len(examples)
        for position, group in enumerate(sorted(sizes, key=_hash)):
            if position and sizes[group] > room:
                break
            chosen.add(group)
            room -= sizes[group]
    return chosen


def _selected(directory: Path, splits: Collection[str], at_most: int | None) -> FolderSet:
    source = open_set(directory)
    if isinstance(source, PackedSet):
        raise InputError(f"{directory}: already packed; give the folders that it was made of")
    positions = [position for position, example in enumerate(source.examples) if example.split in splits]
    if not positions:
        raise InputError(f"{directory}: no images in split {' or '.join(splits)}; choose others with --split")
    if at_most is not None and len(positions) > at_most:
        groups = choose_groups([source.examples[position] for position in positions], at_most)
        positions = [position for position in positions if source.examples[position].group in groups]
    return dataclasses.replace(
        source,
        examples=tuple(source.examples[position] for position in positions),
        images=tuple(source.images[position] for position in positions),
        masks=tuple(source.masks[position] for position in positions),
    )


def _pack_set(source: FolderSet, out: Path, *, size: int) -> PackedSet:
    progress = Progress(f"pack {source.name}", len(source.examples), unit="images")
    images, masks = [], []
    for position in range(len(source.examples)):
        image, mask = source.read(position)
        images.append(encode_image(resize_image(image, size, size)))
        masks.append(encode_image(resize_mask(mask, size, size)))
        progress.advance()
    card = set_card(source, {example.split for example in source.examples})
    return PackedSet(out / source.name, source.classes, size, source.examples, tuple(images), tuple(masks), card)


def _remedy(packed: Sequence[PackedSet], limit: int, total: int) -> str:
    rest = total - sum(_bytes_of(item, len(item.examples)) for item in packed)  # names and cards
    most = max(len(item.examples) for item in packed)
    for at_most in range((most - 1) // STEP * STEP, 0, -STEP):
        if sum(_bytes_of(item, at_most) for item in packed) <= limit - rest:
            return f"give --at-most {at_most} (images of each set), a smaller --size or a higher limit"
    return "give a smaller --size, fewer sets or a higher limit"


def _bytes_of(item: PackedSet, at_most: int) -> int:
    groups = choose_groups(item.examples, min(at_most, len(item.examples)))
    return sum(
        len(image) + len(mask)
        for example, image, mask in zip(item.examples, item.images, item.masks, strict=True)
        if example.group in groups
    )


def _hash(group: str) -> str:
    return hashlib.sha256(group.encode()).hexdigest()
