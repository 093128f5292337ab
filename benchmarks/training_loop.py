"""A segmenter in MONAI's own training loop, with few labels: real images, those of `csg-edge augment`, or RandCsgEdged.

    python benchmarks/training_loop.py --data ../shared/data/usgra_nerve_vessel \
        --data ../shared/data/dltrack_aponeurosis --out benchmarks/results/training_loop.json

For each set and seed a tenth of the training groups is drawn. All arms have the same network, iterations, classical
augmentation and learning rate; half of what is drawn is synthetic, from the folder or made in the loop, whose transform
is asked more often by as much as checks refuse (it then leaves the real pair), MOST at most: the real image of a pair
whose variants all pass would hardly be seen. `loop` keeps as many variants of a pair
as the folder has, in its cache; `fresh` makes a new image at each turn, which takes thrice the time. Each repeat trains
anew on the same groups, with other images, another order and another network to begin with: what is left between arms
after that is not chance alone. Dice on the validation groups. Needs the dev extra and pytorch-ignite,
which MONAI's engines run on. Trainings that `--out` has are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.inferers import SimpleInferer
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandScaleIntensityd,
    Resized,
    ToTensord,
)  # fmt: skip
from scipy import stats
from torch.utils.data import WeightedRandomSampler

from csg_edge.bundle.manifest import find_bundle, read_bundle
from csg_edge.cli.main import main as csg_edge
from csg_edge.conditions.files import write_png
from csg_edge.datasets.labelled_set import LabelledSet, read_set
from csg_edge.errors import InputError
from csg_edge.integrations.monai import RandCsgEdged
from csg_edge.labels import LabelSchema
from csg_edge.machine import processor_name
from csg_edge.quality.evaluators import grey_levels, make_segmenter, segmentation_loss
from csg_edge.quality.segmentation import known_labels, mean_dice
from csg_edge.quality.usefulness import choose_groups
from csg_edge.storage import write_json

ARMS = ("real", "folder", "loop", "fresh")
BATCH, SIDE, RATE = 8, 128, 4e-3
MOST = 0.8
KEYS = ("image", "label")


def write_set(data: LabelledSet, schema: LabelSchema, folder: Path) -> Path:
    """A set as `csg-edge augment` reads it."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    (folder / "labels.json").write_text(json.dumps({"names": schema.names}))
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("name", "group", "split"))
        for index, group in enumerate(data.groups):
            name = f"{index:04d}"
            write_png(folder / "images" / f"{name}.png", data.images[index])
            write_png(folder / "masks" / f"{name}.png", data.masks[index])
            table.writerow((name, group.replace("/", "_"), "train"))
    return folder


def augmented(
    data: LabelledSet, schema: LabelSchema, folder: Path, wanted: int, seed: int
) -> tuple[LabelledSet, dict[str, Any]]:
    """What `csg-edge augment` makes of a set, some `wanted` images, and the limits of its checks."""
    source, out = write_set(data, schema, folder / "source"), folder / "out"
    factor = 1 + wanted / len(data)
    command = [
        "augment", str(source), "--out", str(out), "--multiply", f"{factor:.2f}", "--seed", str(seed), "--size",
        "model", "--only-synthetic",
    ]  # fmt: skip
    done = CliRunner().invoke(csg_edge, command)
    if done.exit_code:
        raise InputError(done.output)
    limits = json.loads((out / "augmented.json").read_text())["limits"]
    return read_set(out, schema, split="train", size=data.images.shape[1]), limits


def pairs(data: LabelledSet) -> list[dict[str, Any]]:
    """Items as MONAI's dictionary transforms take them: (1, H, W) float32, the image in -1..1."""
    masks = known_labels(data.masks)
    return [
        {"image": image[None].astype(np.float32) / 127.5 - 1.0, "label": mask[None].astype(np.float32)}
        for image, mask in zip(data.images, masks, strict=True)
    ]


def train(
    arm: str,
    real: LabelledSet,
    made: LabelledSet,
    limits: dict[str, Any],
    synthetic: int,
    cache: Path,
    classes: int,
    iterations: int,
    seed: int,
) -> Any:
    """A segmenter after so many iterations of MONAI's SupervisedTrainer."""
    items = pairs(real)
    weights = [1.0 / len(items)] * len(items)
    if arm == "folder":
        items += pairs(made)
        weights += [1.0 / len(made)] * len(made)
    steps: list[Any] = []
    if arm in ("loop", "fresh"):
        prob = min(MOST, 0.5 * synthetic / len(made))
        kept = {"variants": round(synthetic / len(real)), "cache": cache} if arm == "loop" else {}
        steps.append(RandCsgEdged(
            KEYS, prob=prob, contexts=list(real.images), check=limits["dice"], nearest=limits["nearest"],
            levels=(-1.0, 1.0), **kept,
        ))  # fmt: skip
    steps += [
        Resized(KEYS, (SIDE, SIDE), mode=("area", "nearest")),
        RandFlipd(KEYS, prob=0.5, spatial_axis=1),
        RandAffined(
            KEYS, prob=0.9, rotate_range=0.07, translate_range=0.06 * SIDE, scale_range=(-0.05, 0.14),
            mode=("bilinear", "nearest"), padding_mode="border",
        ),
        RandAdjustContrastd("image", prob=0.7, gamma=(0.7, 1.4)),
        RandScaleIntensityd("image", factors=0.2, prob=0.7),
        ToTensord(KEYS),
    ]  # fmt: skip
    transform = Compose(steps).set_random_state(seed)
    sampler = WeightedRandomSampler(weights, iterations * BATCH, generator=torch.Generator().manual_seed(seed))
    loader = DataLoader(Dataset(items, transform), num_workers=0, batch_size=BATCH, sampler=sampler)
    torch.manual_seed(seed)
    network = make_segmenter(classes, activation="relu")
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE / 2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=iterations)

    def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return segmentation_loss(scores.float(), labels[:, 0].round().to(torch.uint8))

    SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=1, train_data_loader=loader, network=network, optimizer=optimizer,
        loss_function=loss, inferer=SimpleInferer(), epoch_length=iterations,
        train_handlers=[LrScheduleHandler(schedule, print_lr=False, epoch_level=False)],
    ).run()  # fmt: skip
    return network.eval()


def dice(network: Any, data: LabelledSet) -> list[float]:
    """Dice of each image."""
    with torch.inference_mode():
        found = network(grey_levels(torch.from_numpy(data.images))).argmax(1).to(torch.uint8).numpy()
    return [float(value) for value in mean_dice(found, data.masks) if np.isfinite(value)]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean Dice of each arm; from the folder to the loop with a 95 % interval (t) over seeds and repeats."""
    found = []
    for name in dict.fromkeys(row["set"] for row in rows):
        means = {(row["arm"], row["seed"], row["repeat"]): float(np.mean(row["dice"])) for row in rows
                 if row["set"] == name}  # fmt: skip
        runs = sorted({key[1:] for key in means if all((arm, *key[1:]) in means for arm in ("folder", "loop"))})
        if len(runs) < 2:  # no interval
            continue
        gain = np.array([means["loop", *run] - means["folder", *run] for run in runs])
        half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5
        found.append({
            "set": name, "trainings": len(runs),
            **{arm: round(float(np.mean([value for key, value in means.items() if key[0] == arm])), 4) for arm in ARMS
               if any(key[0] == arm for key in means)},
            "loop_minus_folder": [round(float(value), 4) for value in gain],
            "mean_and_interval": [round(float(value), 4) for value in (gain.mean(), gain.mean() - half,
                                                                       gain.mean() + half)],
        })  # fmt: skip
    return found


def main() -> None:
    """Train what is missing; write the record after each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default="real,folder,loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--synthetic", type=int, default=300)
    given = parser.parse_args()
    schema = read_bundle(find_bundle("msk-256")).manifest.schema
    rows = json.loads(given.out.read_text())["trainings"] if given.out.is_file() else []
    done = {(row["set"], row["seed"], row["repeat"], row["arm"]) for row in rows}
    for repeat, seed, path in product(range(given.repeats), range(given.seeds), given.data):
        missing = [arm for arm in given.arms.split(",") if (path.name, seed, repeat, arm) not in done]
        if not missing:
            continue
        whole, held = (read_set(path, schema, split=split, size=256) for split in ("train", "val"))
        real = choose_groups(whole, 0.1, seed=seed)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            made, limits = augmented(real, schema, folder, given.synthetic, repeat)
            for arm in missing:
                network = train(
                    arm, real, made, limits, given.synthetic, folder / "cache", len(schema), given.iterations,
                    seed + 1000 * repeat,
                )  # fmt: skip
                scores = dice(network, held.resized(SIDE))
                rows.append({
                    "set": path.name, "seed": seed, "repeat": repeat, "arm": arm, "real": len(real),
                    "synthetic": len(made) if arm == "folder" else None, "dice": [round(value, 4) for value in scores],
                })  # fmt: skip
                print(
                    path.name, seed, repeat, arm, len(real), rows[-1]["synthetic"], f"{np.mean(scores):.3f}", flush=True
                )
                write_json(given.out, {
                    "machine": processor_name(), "iterations": given.iterations, "batch": BATCH, "side": SIDE,
                    "summary": summary(rows), "trainings": rows,
                })  # fmt: skip


if __name__ == "__main__":
    main()
