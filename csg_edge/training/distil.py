"""Distillation by offline trajectory regression.

The student learns to jump from the noise to the clean end of its teacher's trajectory, f(z_t, t) = z_t - t v(z_t, t)
(the parametrisation of consistency models, Song et al., arXiv 2303.01469; the fixed target as in knowledge distillation
of Luhman & Luhman, arXiv 2101.02388). Later steps are learned where a few-step student will stand: where its own steps
have taken it from the noise. Points of the teacher's curved trajectory instead made four steps far too contrasty, and
points towards its first jump alone left four steps no better than two. Nothing chases itself or an adversary: it cannot
diverge.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csg_edge.errors import TrainingError
from csg_edge.storage import write_json
from csg_edge.training.block_dct import BlockDct
from csg_edge.training.device import autocast
from csg_edge.training.loop import LoopConfig, fit, start_or_resume
from csg_edge.training.model import CsgModel
from csg_edge.training.model_files import read_json
from csg_edge.training.process import STUDENT_TIMESTEPS
from csg_edge.training.trajectories import Trajectories

if TYPE_CHECKING:  # it needs the quality extra, which a student trained without it does not
    from csg_edge.training.feature_matching import MatchedFeatures
    from csg_edge.training.segmentation_consistency import SegmentationConsistency

LOSS_FLOOR = 1e-4
TEXTURE_CELL = 4  # latent pixels, each way, over which the power of a band is taken
POWER_FLOOR = 1e-2  # of latents of unit variance
SEAM_CELL = 8  # pixels along and seams across, over which the power of the steps at seams is taken
SEAM_FLOOR = 1e-4  # of squared steps, black to white being 2
WINDOWS = (8, 16, 32)  # pixels, each way, over which orientation is taken
NEIGHBOURHOOD = 32  # pixels, each way, over whose strength gradients are divided
GRADIENT_FLOOR = 2.5e-4  # of squared gradients a pixel, black to white being 2: two grey levels


@dataclass(frozen=True)
class LossTerms:
    """Weights of what is added to the root mean square distance per image.

    texture: of `texture_distance`, and of the like for seams, which keep the power that a regression would average
    away. seams: of the error of the steps at seams, see `seam_distances`. relative: of `relative_distance`.
    orientation: of `orientation_distance`. segmentation: of `SegmentationConsistency`. feature_matching: of
    `squared_shift` of features, for which all images of a batch stand at one evaluation and have masks of the same
    classes.
    """

    texture: float = 0.0
    seams: float = 0.0
    relative: float = 0.0
    orientation: float = 0.0
    segmentation: float = 0.0
    feature_matching: float = 0.0


BLOCK_DCT_TERMS = LossTerms(texture=0.2, seams=8.0)
"""What students of a block DCT are made with: images neither soft nor with a grid, as the ablation shows."""


def distil(
    student: CsgModel,
    trajectories: Trajectories,
    loop: LoopConfig,
    *,
    terms: LossTerms = LossTerms(),
    features: MatchedFeatures | None = None,
    consistency: SegmentationConsistency | None = None,
    deviation: float = 1.0,
    compiled: bool = False,
    out: Path,
    device: torch.device,
) -> bool:
    """Train or resume a student; writes `out/student` at the end. Returns False when stopped early.

    features, consistency: needed where `terms.feature_matching` or `terms.segmentation` is not 0. deviation: of the
    trajectories' latents, where the student's have 1. compiled: by torch.compile, which takes minutes to begin and then
    half the time an iteration; it needs a C++ compiler. Raises TrainingError as `check_terms`, and for a student with a
    fibre field and trajectories without.
    """
    blocks = student.autoencoder
    check_terms(terms, blocks, batch=loop.batch)
    if bool(terms.feature_matching) != (features is not None):
        raise ValueError("terms.feature_matching goes with the features of fit_matched_features")
    if bool(terms.segmentation) != (consistency is not None):
        raise ValueError("terms.segmentation goes with what fit_segmentation_consistency gives")
    if student.network.config.fibres and not trajectories.has_fields:
        raise TrainingError("the student takes a fibre field, but the trajectories have none; leave out --init")
    # Weights fit a network of any number of steps: only this tells a run's students apart.
    run = {"steps": student.steps, "network": student.network.config.to_json(), "start": student.fingerprint()}
    check_same(out / "student.json", {**run, **asdict(terms)})
    student = student.to(device, memory_format=torch.channels_last)
    network = student.network.train()
    features = None if features is None else features.to(device)
    consistency = None if consistency is None else consistency.to(device)
    trajectories.move(device)
    state = start_or_resume(network, loop, out)
    evaluate = torch.compile(network) if compiled else network

    def loss(iteration: int) -> Tensor:
        random = np.random.default_rng([loop.seed, iteration])
        chosen = random.integers(trajectories.count, size=loop.batch)
        if features is not None:  # what images miss alike is another thing for nerves than for muscle
            kind = next(kind for kind in trajectories.kinds if chosen[0] in kind)
            chosen = random.choice(kind, size=loop.batch)
        noise, clean, mask, context, field = (column.to(device) for column in trajectories.read(chosen))
        drawn = draw_places(student, random, loop.batch if features is None else 1)
        drawn *= loop.batch // len(drawn)  # a mean of features is that of one evaluation
        with autocast(device, loop.precision):
            latent, timestep = walk(student, noise, mask, context, field, drawn)
            velocity = evaluate(latent, network.embed_time(timestep), student.conditions(mask, context, field))
        jump = latent - timestep.view(-1, 1, 1, 1) * velocity.float()
        wanted = clean / deviation
        distance = ((jump - wanted).square().mean(dim=(1, 2, 3)) + LOSS_FLOOR).sqrt().mean()
        if terms.texture:
            distance = distance + terms.texture * texture_distance(jump, wanted)
        if terms.relative:
            distance = distance + terms.relative * relative_distance(jump, wanted)
        in_pixels = any((terms.texture, terms.seams, terms.orientation, terms.segmentation, terms.feature_matching))
        if isinstance(blocks, BlockDct) and in_pixels:
            made, meant = blocks.decode_unit(jump), blocks.decode_unit(wanted)
            if terms.texture or terms.seams:
                error, power = seam_distances(made, meant, patch=blocks.patch)
                distance = distance + terms.seams * error + terms.texture * power
            if terms.orientation:
                distance = distance + terms.orientation * orientation_distance(made, meant)
            if consistency is not None:
                with autocast(device, loop.precision):
                    distance = distance + terms.segmentation * consistency(made, mask)
            if features is not None:
                with autocast(device, loop.precision):
                    differences = features(made) - features(meant)
                distance = distance + terms.feature_matching * squared_shift(differences)
        return distance

    finished = fit(state, loss, loop, directory=out, label="distil")
    network.load_state_dict(state.ema)
    student.save(out / "student")
    return finished


def draw_places(student: CsgModel, random: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Which evaluations to train, as (steps, evaluations taken): half of them at pure noise, where one step lives."""
    places = student.inner_places
    later = (random.random(count) < 0.5) & bool(places)
    chosen = random.integers(max(len(places), 1), size=count)
    return [places[index] if inner else (1, 0) for inner, index in zip(later, chosen, strict=True)]


@torch.no_grad()
def walk(
    student: CsgModel,
    noise: Tensor,
    mask: Tensor,
    context: Tensor,
    field: Tensor | None,
    places: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor]:
    """Where a few-step student stands: (B, C, h, w) latents and (B,) timesteps.

    places: for each image the number of steps of a student and how many of them it has taken, by its own evaluations.
    """
    latent, network = noise.clone(), student.network
    timesteps = [STUDENT_TIMESTEPS[count] for count, _ in places]
    for done in range(max(taken for _, taken in places)):
        rows = [row for row, (_, taken) in enumerate(places) if taken > done]
        chosen = torch.tensor(rows, device=noise.device)
        now, then = (
            torch.tensor([timesteps[row][index] for row in rows], device=noise.device) for index in (done, done + 1)
        )
        here = None if field is None else field[chosen]
        conditions = student.conditions(mask[chosen], context[chosen], here)
        velocity = network(latent[chosen], network.embed_time(now), conditions).float()
        latent[chosen] += (then - now).view(-1, 1, 1, 1) * velocity
    reached = [row[taken] for row, (_, taken) in zip(timesteps, places, strict=True)]
    return latent, torch.tensor(reached, dtype=torch.float32, device=noise.device)


def texture_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean difference of the logarithms of local power, band by band, of two (B, C, h, w) latents.

    The features of the design's second term: in a block DCT each channel is a band, and its power around a place is
    what speckle and fibres are told by. Nothing of the evaluators is in it.
    """
    powers = [F.avg_pool2d(latent.float().square(), TEXTURE_CELL) for latent in (made, wanted)]
    first, second = ((power + POWER_FLOOR).log() for power in powers)
    return (first - second).abs().mean()


def relative_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Root mean square error of (B, C, h, w) latents, each in units of the local amplitude of its band in `wanted`.

    Speckle is multiplicative: an error that nobody sees in a bright fascia fills a shadow with grain. By plain distance
    a student had 1.2 to 2.5 times its teacher's power in the darkest tenth of its cells.
    """
    power = F.avg_pool2d(wanted.float().square(), TEXTURE_CELL)
    power = F.interpolate(power, scale_factor=float(TEXTURE_CELL), mode="nearest") + POWER_FLOOR
    errors = (made - wanted).square() / power
    return (errors.mean(dim=(1, 2, 3)) + LOSS_FLOOR).sqrt().mean()


def seam_distances(made: Tensor, wanted: Tensor, *, patch: int) -> tuple[Tensor, Tensor]:
    """Of two (B, 1, H, W) images made of blocks of `patch` pixels, at the borders between blocks.

    Root mean square difference of the steps from one block to the next, and mean difference of the logarithms of their
    local power, across and down in sum. A student errs independently in each band, which shows as a grid that its
    teacher's images hardly have: 19 % more power of the steps across borders than elsewhere, the teacher's 6.
    """
    pairs = [
        [image[..., patch::patch] - image[..., patch - 1 : -1 : patch] for image in (made, wanted)],
        [image[..., patch::patch, :] - image[..., patch - 1 : -1 : patch, :] for image in (made, wanted)],
    ]
    squares = [(ours - theirs).square().mean(dim=(1, 2, 3)) for ours, theirs in pairs]
    error = (squares[0] + squares[1] + 0.1 * SEAM_FLOOR).sqrt().mean()
    logs = [[(F.avg_pool2d(step.square(), SEAM_CELL) + SEAM_FLOOR).log() for step in pair] for pair in pairs]
    across, down = ((ours - theirs).abs().mean() for ours, theirs in logs)
    return error, across + down


def orientation_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean difference of local orientation of two (B, 1, H, W) images, H and W multiples of 32, -1..1.

    Orientation is the vector of the structure tensor (Bigün & Granlund, ICCV 1987), the longer the more the gradients
    of a window agree. The difference of the vectors is counted, and beside it that of their lengths, the coherence:
    where a student cannot know a direction, the best vector is a short one, and fibres come out with less order than
    its teacher's.
    """
    first, second = (_orientation(image) for image in (made, wanted))
    total = made.new_zeros(())
    for (u, v, weight), (wanted_u, wanted_v, wanted_weight) in zip(first, second, strict=True):
        kept = (weight * wanted_weight).sqrt().detach()
        turned = ((u - wanted_u).square() + (v - wanted_v).square() + LOSS_FLOOR).sqrt()
        lengths = [(a.square() + b.square() + LOSS_FLOOR).sqrt() for a, b in ((u, v), (wanted_u, wanted_v))]
        total = total + (kept * (turned + (lengths[0] - lengths[1]).abs())).sum() / kept.sum()
    return total / len(WINDOWS)


def _orientation(image: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each of WINDOWS the two parts of the orientation vector and the weight of each window, 0 to 1.

    Gradients are divided by their strength around them first, so neither gain nor contrast nor depth counts.
    """
    smooth = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    # Scharr's derivatives are true to direction, which central differences are not.
    scharr = smooth.new_tensor([[-3.0, 0.0, 3.0], [-10.0, 0.0, 10.0], [-3.0, 0.0, 3.0]]) / 32.0
    gradients = F.conv2d(
        F.pad(smooth, (1, 1, 1, 1), mode="reflect"), torch.stack([scharr, scharr.T.contiguous()])[:, None]
    )
    across, down = gradients[:, :1], gradients[:, 1:]
    tensor = torch.cat([across.square() + down.square(), across.square() - down.square(), 2 * across * down], 1)
    strength = F.avg_pool2d(tensor[:, :1], NEIGHBOURHOOD) + GRADIENT_FLOOR
    tensor = tensor / F.interpolate(strength, scale_factor=float(NEIGHBOURHOOD), mode="bilinear")
    found = []
    for window in WINDOWS:
        trace, u, v = F.avg_pool2d(tensor, window).split(1, 1)
        found.append((u / (trace + 1e-6), v / (trace + 1e-6), trace.clamp_max(1.0)))
    return found


def squared_shift(differences: Tensor) -> Tensor:
    """Of (B, K) differences of features, B at least 2: the mean square of their mean, without bias.

    The product of the means of two halves: the square of one mean would count the scatter of a small batch, too, and
    pull all images together.
    """
    half = len(differences) // 2
    return (differences[:half].mean(0) * differences[half:].mean(0)).mean()


def check_terms(terms: LossTerms, autoencoder: object, *, batch: int) -> None:
    """Raise TrainingError for terms that this autoencoder, a student's or its teacher's, or the batch cannot give."""
    for weight, option, lacks in (
        (terms.seams, "--seams", "the latents of a learned autoencoder have no blocks"),
        (terms.orientation, "--orientation", "not for the latents of a learned autoencoder"),
        (terms.segmentation, "--segmentation", "not for the latents of a learned autoencoder"),
        (terms.feature_matching, "--feature-matching", "not for the latents of a learned autoencoder"),
    ):
        if weight and not isinstance(autoencoder, BlockDct):
            raise TrainingError(f"{option}: {lacks}; leave it out")
    if terms.feature_matching and batch < 2:
        raise TrainingError("--feature-matching: compares the halves of a batch; give a --batch of 2 or more")


def check_same(path: Path, run: dict[str, Any]) -> None:
    """Raise TrainingError unless the folder of `path` is new or of the same run; what the run is stays in `path`."""
    wanted = json.loads(json.dumps(run))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
    elif (found := read_json(path)) != wanted:
        changed = " and ".join(key for key in wanted if found.get(key) != wanted[key])
        raise TrainingError(f"{path.parent}: a student of other {changed}; use the same options or another --out")
