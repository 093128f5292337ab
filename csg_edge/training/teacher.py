"""Training the teacher: flow matching on labelled ultrasound."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from csg_edge.conditions import fibres
from csg_edge.datasets.augmentation import Bend
from csg_edge.datasets.batches import BatchSource, read_training_sets, weights_of
from csg_edge.datasets.card import card_markdown, data_card
from csg_edge.datasets.labelled_set import LabelledSet, find_sets, read_set, schema_of, splits_of
from csg_edge.errors import TrainingError
from csg_edge.generation.sheets import contact_sheet
from csg_edge.labels import MSK_SCHEMA
from csg_edge.noise import noise_for
from csg_edge.storage import write_json, write_whole
from csg_edge.training.autoencoders import load_autoencoder
from csg_edge.training.block_dct import BLOCK, BlockDct, BlockDctConfig
from csg_edge.training.device import Tensors, autocast, seeded
from csg_edge.training.fit_fibre_prior import fit_fibre_prior, new_prior
from csg_edge.training.loop import LoopConfig, TrainingState, fit_on_batches, start_or_resume
from csg_edge.training.model import CsgModel
from csg_edge.training.model_files import read_json
from csg_edge.training.networks import CsgUNet, NetworkConfig
from csg_edge.training.process import mix, training_timesteps

MSK_NETWORK = NetworkConfig(classes=len(MSK_SCHEMA), deeper=2, context_tokens=True, fibres=True)
SCHEMAS = ("msk", "own")
PRIOR_BATCH = 64
ROWS_OF_SET = 4  # in a sheet of samples


@dataclass(frozen=True)
class TeacherConfig:
    """Data and model of a teacher; how it is optimised is in LoopConfig."""

    data: tuple[Path, ...]
    schema: str = "msk"  # or "own": the classes of the sets themselves
    image_size: int = 256
    shares: tuple[tuple[str, float], ...] = ()  # how often a set is drawn, by name; 1 if not named
    dropout: float = 0.1  # of mask and of context, each
    field_dropout: float = 0.2  # of the fibre field, where the network has one
    fibres: bool | None = None  # whether the fibre field is a condition; None: as `network` or `init` has it
    prior_iterations: int = 6000  # of the fibre prior, after the teacher; 0 keeps that of `init`
    prior_rate: float = 2e-3  # its learning rate
    network: NetworkConfig | None = None  # that of `init`, or MSK_NETWORK
    autoencoder: Path | None = None  # folder of a learned autoencoder; that of `init`, or a block DCT
    init: Path | None = None  # a teacher to start from; what it lacks starts afresh
    sheet_every: int = 500  # iterations between sample sheets; 0 for none

    def __post_init__(self) -> None:
        for name, right, remedy in (
            ("image_size", self.image_size >= 32 and self.image_size % 32 == 0, "a multiple of 32"),
            ("schema", self.schema in SCHEMAS, " or ".join(SCHEMAS)),
            ("dropout", 0.0 <= self.dropout < 1.0, "0 or more and below 1"),
            ("field_dropout", 0.0 <= self.field_dropout < 1.0, "0 or more and below 1"),
            ("prior_iterations", self.prior_iterations >= 0, "0 or more"),
            ("prior_rate", 0.0 < self.prior_rate < math.inf, "a number above 0"),
            ("sheet_every", self.sheet_every >= 0, "0 or more"),
        ):
            if not right:
                raise TrainingError(f"{name} = {getattr(self, name)}: give {remedy}")


def train(
    config: TeacherConfig, loop: LoopConfig, *, out: Path, device: torch.device, compiled: bool = False
) -> bool:  # fmt: skip
    """Train or resume in `out`; writes `out/teacher` (EMA weights) at the end. Returns False when stopped early.

    compiled: by torch.compile, which takes a minute or more to begin.

    Every `sheet_every` iterations `out/sheets` gets samples of the held-out split. Where the fibre field is a
    condition, the prior that draws it is trained afterwards, in `out/fibre_prior`. Raises TrainingError for shares of
    sets that are not there, an `init` that does not fit, or a fibre field that does not divide the latents.
    """
    earlier = CsgModel.load(config.init) if config.init else None
    schema = earlier.schema if earlier else MSK_SCHEMA if config.schema == "msk" else schema_of(config.data)
    sets = read_training_sets(list(config.data), schema, split="train", size=config.image_size)
    weights = weights_of(sets, config.shares)
    learned = load_autoencoder(config.autoencoder) if config.autoencoder else earlier.autoencoder if earlier else None
    shape = _shape(config, earlier, patch=learned.patch if learned else BLOCK)
    source = BatchSource(
        sets, weights, batch=loop.batch, dropout=config.dropout, seed=loop.seed,
        field_dropout=config.field_dropout if shape.fibres else None,
        geometry=Bend.draw_tilted if shape.fibres else Bend.draw,
    )  # fmt: skip
    bands = earlier.context_transform.config if earlier else _bands(source, out / "autoencoder.json")
    autoencoder = learned or BlockDct(bands)
    transform = None if isinstance(autoencoder, BlockDct) else BlockDct(bands)

    torch.manual_seed(loop.seed)
    latent = {"latent_channels": autoencoder.channels, "patch": autoencoder.patch}
    network = CsgUNet(replace(shape, classes=len(schema), context_channels=bands.block**2, **latent))
    if earlier:
        _start_from(network, earlier, config.init)
    network = network.to(device, memory_format=torch.channels_last)
    model = CsgModel(
        network,
        autoencoder,
        schema=schema,
        image_size=config.image_size,
        role="teacher",
        context_transform=transform,
        prior=earlier.prior if earlier and shape.fibres else None,
    ).to(device)
    state = start_or_resume(network, loop, out)
    sheets = SampleSheets(config, model, state, out / "sheets", precision=loop.precision)
    evaluate = torch.compile(network) if compiled else network

    def loss(iteration: int, batch: Tensors) -> Tensor:
        image, mask, context, field = batch
        generator = seeded(loop.seed, iteration, device=device)
        with torch.no_grad():
            clean = model.autoencoder.encode(image)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timestep = training_timesteps(len(clean), generator)
        with autocast(device, loop.precision):
            conditions = model.conditions(mask, context, field)
            velocity = evaluate(mix(clean, noise, timestep), network.embed_time(timestep), conditions)
        return (velocity.float() - (noise - clean)).square().mean()

    finished = fit_on_batches(state, source, loss, loop, device=device, directory=out, label="train", after=sheets.draw)
    if finished and shape.fibres and config.prior_iterations:
        finished = _train_prior(model, sets, weights, config, loop, out=out / "fibre_prior", device=device)
    model.save(out / "teacher")
    _write_data_card(config, out)
    return finished


class SampleSheets:
    """Samples of the EMA weights for the same held-out masks, contexts and noise, as training goes on.

    The fibre fields, where the network takes them, are those of the masks' own images: there is no prior yet.
    They are a function of the weights alone, so that drawing them changes nothing in the run.
    """

    def __init__(
        self, config: TeacherConfig, model: CsgModel, state: TrainingState, folder: Path, *, precision: str
    ) -> None:
        self.every, self.model, self.state, self.folder = config.sheet_every, model, state, folder
        self.precision = precision
        self.rows: list[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]] = []
        if not self.every:
            return
        for root in config.data:
            for directory in find_sets(root):
                split = "val" if "val" in splits_of(directory) else "train"
                # One image of each group; the last row's context is of a group more.
                data = read_set(
                    directory, model.schema, split=split, size=config.image_size, first_of_groups=ROWS_OF_SET + 1
                )
                for number in range(min(ROWS_OF_SET, len(data))):
                    context = data.images[(number + 1) % len(data)]
                    field = fibres.field_of_image(data.images[number]) if model.network.config.fibres else np.zeros(0)
                    self.rows.append((data.masks[number], context, field.astype(np.float32)))

    def draw(self, iteration: int) -> None:
        """Write `ITERATION.jpg` when it is time for one."""
        if not self.every or iteration % self.every:
            return
        model = copy.deepcopy(self.model).eval()
        model.network.load_state_dict(self.state.ema)
        device = next(model.network.parameters()).device
        made = []
        for number, row in enumerate(self.rows):
            noise = torch.from_numpy(noise_for(number, model.latent_shape(1)[1:]))[None].to(device)
            mask, context, field = (torch.from_numpy(item)[None].to(device) for item in row)
            with torch.inference_mode(), autocast(device, self.precision):
                clean = model.integrate(mask, context, noise, guidance=1.0, field=field if field.numel() else None)
                made.append(model.autoencoder.decode(clean)[0].cpu().numpy())
        rows = [(mask, context, image) for (mask, context, _), image in zip(self.rows, made, strict=True)]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{iteration:06d}.jpg"
        _, encoded = cv2.imencode(".jpg", contact_sheet(rows, model.schema))
        write_whole(path, encoded.tobytes())


def _train_prior(
    model: CsgModel,
    sets: list[LabelledSet],
    weights: list[float],
    config: TeacherConfig,
    loop: LoopConfig,
    *,
    out: Path,
    device: torch.device,
) -> bool:
    """Train or resume the fibre prior of a teacher and put it into the model. Returns False when stopped early."""
    source = BatchSource(
        sets, weights, batch=PRIOR_BATCH, dropout=config.dropout, seed=loop.seed, own_contexts=0.0, field_dropout=0.0
    )
    model.prior = model.prior or new_prior(model.context_transform, classes=len(model.schema), seed=loop.seed)
    optimisation = LoopConfig(
        config.prior_iterations, batch=PRIOR_BATCH, learning_rate=config.prior_rate, warmup=100, decay=0.5, ema=0.995,
        seed=loop.seed, precision=loop.precision,
    )  # fmt: skip
    return fit_fibre_prior(model.prior, model.context_transform, source, optimisation, out=out, device=device)


def _shape(config: TeacherConfig, earlier: CsgModel | None, *, patch: int) -> NetworkConfig:
    """The network's shape; without the fibre field where nobody asked for it and the latents do not divide by it."""
    shape = config.network or (earlier.network.config if earlier else MSK_NETWORK)
    fits = config.image_size % (fibres.SIDE * patch) == 0
    if config.fibres and not fits:
        raise TrainingError(
            f"--fibres: with image_size = {config.image_size} the latents are no multiple of the field's "
            f"{fibres.SIDE} cells; give a multiple of {fibres.SIDE * patch}, or leave it out"
        )
    return replace(shape, fibres=fits and (shape.fibres if config.fibres is None else config.fibres))


def _write_data_card(config: TeacherConfig, out: Path) -> None:
    """What the teacher saw, beside its weights; made once, since every image is read for its hash."""
    kept = out / "data_card.json"
    if not kept.exists():
        directories = [directory for root in config.data for directory in find_sets(root)]
        write_json(kept, data_card(directories, splits=("train",)))
    write_whole(out / "teacher" / "data_card.json", kept.read_bytes())
    write_whole(out / "teacher" / "data_card.md", card_markdown(read_json(kept)))


def _bands(source: BatchSource, path: Path) -> BlockDctConfig:
    """Band statistics of the augmented training images.

    Fixed for the whole run even when it is resumed with more data.
    """
    if not path.exists():
        bands = BlockDctConfig.fit(np.concatenate([source.draw(index).image for index in range(16)]))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, bands.to_json())
    return BlockDctConfig.from_json(read_json(path))


def _start_from(network: CsgUNet, earlier: CsgModel, folder: Path) -> None:
    """Take over the weights of an earlier teacher; new parts join as they were initialised, mostly as nothing."""
    mine, theirs = network.state_dict(), earlier.network.state_dict()
    unfit = [name for name, value in theirs.items() if name not in mine or mine[name].shape != value.shape]
    if unfit:
        raise TrainingError(
            f"{folder}: {len(unfit)} of its weights do not fit this network (first: {unfit[0]}); "
            "give a network that only adds to it, or train without --init"
        )
    network.load_state_dict(theirs, strict=False)
