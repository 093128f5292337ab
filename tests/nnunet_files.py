"""A raw data set of nnU-Net v2, made of phantoms."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from csg_edge.conditions import nifti
from csg_edge.conditions.files import read_context, read_mask
from csg_edge.labels import MSK_SCHEMA

# Other numbers than the set's own, and an ignore label.
NUMBERS = {"background": 0, "superficial_tissue": 1, "muscle": 2, "tendon": 3, "bone": 4, "ignore": 5}
SPACING = (0.08, 0.12, 1.0)


def write_raw(phantom_set: Path, folder: Path, *, ending: str) -> Path:
    """Twelve images in six groups, without folds; classes that it lacks are ignored."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    table = np.full(256, NUMBERS["ignore"], np.uint8)
    for name, number in NUMBERS.items():
        if name != "ignore":
            table[MSK_SCHEMA.index(name)] = number
    rows = []
    for place, path in enumerate(sorted((phantom_set / "images").iterdir())):
        image = read_context(path)[:200, :240]
        mask = table[read_mask(phantom_set / "masks" / path.name, MSK_SCHEMA)][:200, :240]
        for pixels, file in (
            (image, folder / "imagesTr" / f"case{place:02d}_0000{ending}"),
            (mask, folder / "labelsTr" / f"case{place:02d}{ending}"),
        ):
            if ending == ".nii.gz":
                file.write_bytes(nifti.encode(np.ascontiguousarray(pixels), SPACING, packed=True))
            else:
                cv2.imwrite(str(file), pixels)
        rows.append((f"case{place:02d}", f"patient{place // 2}"))
    (folder / "groups.csv").write_text("name,group\n" + "".join(f"{name},{group}\n" for name, group in rows))
    about = {"channel_names": {"0": "us"}, "labels": NUMBERS, "numTraining": 12, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder
