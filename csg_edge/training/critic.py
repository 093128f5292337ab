"""An adversarial stage on a leash: a critic beside the regression, its pull a fixed share of the regression's.

A regression averages what it cannot know; a critic that sees the teacher's end and the student's jump from the same
noise tells the average from an image. Relativistic pairing (Jolicoeur-Martineau, arXiv 1807.00734) with a penalty on
the critic's slope at the teacher's ends (R1; Mescheder et al., arXiv 1801.04406). The gradient that reaches the
student is rescaled to a share of the regression's own, batch by batch, as the adaptive weight of Esser et al. (arXiv
2012.09841) does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 48
SLOPE_WEIGHT = 0.1
SLOPE_EVERY = 4  # iterations; the penalty is as much dearer as it is rarer
CRITIC_WEIGHT = 0.1  # AdamW does not mind, and the shared limit on the norm of gradients stays the student's


class Critic(nn.Module):
    """Latents (B, C, h, w), class maps (B, K, h, w) -> scores (B, 1, h / 4, w / 4), high where like a teacher's."""

    def __init__(self, latent_channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(latent_channels + classes, WIDTH, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(WIDTH, 2 * WIDTH, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * WIDTH, 2 * WIDTH, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * WIDTH, 1, 3, padding=1),
        )

    def forward(self, latent: Tensor, class_map: Tensor) -> Tensor:
        return self.layers(torch.cat([latent, class_map], dim=1))


def pull(
    critic: Critic,
    jump: Tensor,
    wanted: Tensor,
    class_map: Tensor,
    regression: Callable[[Tensor], Tensor],
    share: float,
) -> Tensor:
    """A term of value 0 whose gradient draws `jump` to where the critic sees a teacher's image.

    regression: the loss of a jump that the critic is held to; the gradient's norm is `share` of that of its.
    """
    point = jump.detach().requires_grad_()
    (anchor,) = torch.autograd.grad(regression(point), point)
    with torch.no_grad():
        wanted_score = critic(wanted, class_map).float()
    (away,) = torch.autograd.grad(F.softplus(wanted_score - critic(point, class_map).float()).mean(), point)
    direction = away * (share * anchor.norm() / away.norm().clamp_min(1e-12))
    moved = (direction * jump).sum()
    return moved - moved.detach()


def critic_loss(critic: Critic, jump: Tensor, wanted: Tensor, class_map: Tensor, *, iteration: int) -> Tensor:
    """What the critic minimises: the teacher's end is to score higher than the student's jump from the same noise."""
    margin = critic(wanted, class_map).float() - critic(jump.detach(), class_map).float()
    loss = F.softplus(-margin).mean()
    if iteration % SLOPE_EVERY == 0:
        point = wanted.detach().requires_grad_()
        with torch.autocast(point.device.type, enabled=False):
            scores = critic(point, class_map.float())
            (slope,) = torch.autograd.grad(scores.sum(), point, create_graph=True)
        loss = loss + SLOPE_WEIGHT * SLOPE_EVERY * 0.5 * slope.square().sum() / scores.numel()
    return CRITIC_WEIGHT * loss
