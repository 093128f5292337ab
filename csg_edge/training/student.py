"""What a student is before it is trained: a network made for kernels, started from its teacher where it can be.

Its shapes were chosen by latency measured in OpenVINO and ONNX Runtime against quality (docs/student.md): dense 3x3
convolutions, widths in multiples of 32, no attention, HardSwish, and constants in place of group norms. Those constants
are the statistics that the group norms meet on trajectories, so a student starts as near to its teacher as it can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from csg_edge.errors import TrainingError
from csg_edge.training.block_dct import BlockDct, BlockDctConfig
from csg_edge.training.learned_autoencoder import LearnedAutoencoder
from csg_edge.training.model import CsgModel
from csg_edge.training.networks import Affine, CsgUNet, NetworkConfig
from csg_edge.training.process import STUDENT_TIMESTEPS, mix
from csg_edge.training.teachers import Teacher
from csg_edge.training.trajectories import Trajectories

SAMPLE = 64  # trajectories that scales and statistics are taken from
NETWORKS = ("full", "nano")


def kernel_friendly(config: NetworkConfig, *, network: str = "full") -> NetworkConfig:
    """The shape of a student of a network like `config`; `nano` has half its widths, at most a quarter of its work."""
    slim = replace(config, norm="affine", activation="hardswish", attention=False, context_tokens=False)
    if network == "full":
        return slim
    widths = tuple(max(32, width // 64 * 32) for width in config.widths)
    return replace(
        slim, widths=widths, deeper=0, mask_features=max(8, config.mask_features // 4), embedding=config.embedding // 2
    )


def start_student(
    teacher: Teacher,
    trajectories: Trajectories,
    *,
    config: NetworkConfig | None = None,
    network: str = "full",
    steps: tuple[int, ...] = tuple(STUDENT_TIMESTEPS),
    inherit: bool = True,
    seed: int = 0,
) -> tuple[CsgModel, float]:
    """The student before training, and by what its latents are smaller than the teacher's.

    It inherits every weight of our own teacher that fits its shape (`config`, or `network` of NETWORKS); the rest is
    drawn by the seed. A foreign teacher's latents are brought to unit variance: a flow's noise levels are made for
    that, and not every autoencoder is scaled so. Raises TrainingError for a teacher whose latents cannot be rescaled.
    """
    torch.manual_seed(seed)
    prior = None
    if isinstance(teacher, CsgModel):
        autoencoder, transform, deviation = teacher.autoencoder, teacher.own_transform, 1.0
        prior = teacher.prior
        shape = config or kernel_friendly(teacher.network.config, network=network)
    elif isinstance(teacher.autoencoder, LearnedAutoencoder):
        clean, contexts = trajectories.sample(SAMPLE)
        deviation = max(clean.std().item(), 1e-6)
        autoencoder = teacher.autoencoder.rescaled(deviation)
        transform = BlockDct(BlockDctConfig.fit(contexts))
        foreign = NetworkConfig(
            classes=len(teacher.schema), latent_channels=autoencoder.channels, patch=autoencoder.patch
        )
        shape = config or kernel_friendly(foreign, network=network)
    else:
        raise TrainingError(f"teacher: {type(teacher.autoencoder).__name__} is no learned autoencoder")

    def model(denoiser: CsgUNet) -> CsgModel:
        return CsgModel(
            denoiser, autoencoder,
            schema=teacher.schema, image_size=teacher.image_size, role="student", steps=steps,
            context_transform=transform, prior=prior,
        )  # fmt: skip

    normalised = CsgUNet(replace(shape, norm="group"))
    if inherit and isinstance(teacher, CsgModel):
        take_over(normalised, teacher.network)
    if shape.norm == "group":
        return model(normalised), deviation
    student = model(CsgUNet(shape))
    with_norms = model(normalised).eval()
    freeze_norms(normalised, student.network, lambda: _visit(with_norms, trajectories, deviation, seed))
    return student, deviation


def continue_student(folder: Path, teacher: Teacher, *, steps: tuple[int, ...]) -> tuple[CsgModel, float]:
    """An earlier student of the same teacher's latents, to train on; the number as `start_student` gives it.

    Where the teacher knows fibre fields, so will the student, though it did not before.
    Raises TrainingError for a folder that is no student, or one of other latents, classes or image size.
    """
    earlier = CsgModel.load(folder)
    if earlier.role != "student":
        raise TrainingError(f"{folder}: a {earlier.role}, not a student; give the folder that distill wrote")
    deviation = 1.0
    if isinstance(earlier.autoencoder, LearnedAutoencoder) and isinstance(teacher.autoencoder, LearnedAutoencoder):
        deviation = teacher.autoencoder.scale / earlier.autoencoder.scale
    mine, theirs = earlier.autoencoder, teacher.autoencoder
    same = (
        earlier.schema == teacher.schema and earlier.image_size == teacher.image_size and type(mine) is type(theirs)
        and (not isinstance(mine, BlockDct) or not isinstance(theirs, BlockDct) or mine.config == theirs.config)
    )  # fmt: skip
    if not same or earlier.latent_shape(1) != tuple(teacher.latent_shape(1)):
        raise TrainingError(
            f"{folder}: a student of other latents, classes or image size than this teacher's; leave out --init"
        )
    earlier.steps = steps
    if isinstance(teacher, CsgModel) and teacher.prior is not None:
        _learn_fibres(earlier, teacher)
    return earlier, deviation


def _learn_fibres(student: CsgModel, teacher: CsgModel) -> None:
    """Give a student the teacher's prior, and one without a fibre branch the teacher's branch, too."""
    student.prior = teacher.prior
    if not student.network.config.fibres:
        network = CsgUNet(replace(student.network.config, fibres=True))
        take_over(network, teacher.network)
        network.load_state_dict(student.network.state_dict(), strict=False)
        student.network = network


def take_over(network: CsgUNet, teacher: CsgUNet) -> None:
    """Copy every parameter of the teacher that has the same name and shape."""
    mine = network.state_dict()
    fitting = {
        name: value for name, value in teacher.state_dict().items() if name in mine and mine[name].shape == value.shape
    }
    network.load_state_dict({**mine, **fitting})


@torch.no_grad()
def freeze_norms(normalised: CsgUNet, frozen: CsgUNet, visit: Callable[[], None]) -> None:
    """Give `frozen` the weights of `normalised`, each group norm becoming the constants that it meets in `visit`."""
    met: dict[str, tuple[Tensor, Tensor]] = {}

    def listen(name: str) -> Callable[[nn.GroupNorm, tuple[Tensor], Tensor], None]:
        def hook(norm: nn.GroupNorm, inputs: tuple[Tensor], _output: Tensor) -> None:
            (features,) = inputs
            groups = features.float().reshape(len(features), norm.num_groups, -1)
            mean = groups.mean(dim=(0, 2))
            spread = (groups - mean.view(1, -1, 1)).square().mean(dim=(0, 2)).add(norm.eps).sqrt()
            width = norm.num_channels // norm.num_groups
            met[name] = (mean.repeat_interleave(width), spread.repeat_interleave(width))

        return hook

    norms = {name: module for name, module in normalised.named_modules() if isinstance(module, nn.GroupNorm)}
    hooks = [norm.register_forward_hook(listen(name)) for name, norm in norms.items()]
    visit()
    for hook in hooks:
        hook.remove()
    frozen.load_state_dict(normalised.state_dict())  # a group norm and an affine have the same two parameters
    for name, module in frozen.named_modules():
        if isinstance(module, Affine):
            mean, spread = met[name]
            module.weight.div_(spread)
            module.bias.sub_(module.weight * mean)


@torch.no_grad()
def _visit(student: CsgModel, trajectories: Trajectories, deviation: float, seed: int) -> None:
    """One batch as training meets them: half at pure noise, half at later steps."""
    noise, clean, mask, context, field = trajectories.read(range(min(SAMPLE, trajectories.count)))
    timestep = torch.ones(len(noise))
    later = sorted({STUDENT_TIMESTEPS[steps][taken] for steps, taken in student.inner_places}, reverse=True)
    if later:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.tensor(later)[torch.randint(len(later), (len(noise),), generator=generator)]
        timestep[1::2] = chosen[1::2]
    latent = mix(clean / deviation, noise, timestep)
    student.network(latent, student.network.embed_time(timestep), student.conditions(mask, context, field))
