"""The fibre prior: draws a fibre field from mask, context and noise, where the user gives none.

A small network on a grid of 8 x 8, two by two cells in one. It is trained as a rectified flow (see `process`) of the
first two channels of a field, and then made to take that flow in one step, since it is part of every graph: see
`fit_fibre_prior`. Of the mask it sees class fractions in the cells; of the context the orientation of its rows, read
off the two first bands of its block DCT, which are gradients.

The network does not give the velocity itself, but what is left of it when the best linear guess from the latent is
taken away, at unit variance whatever the noise (the idea of Karras et al., arXiv 2206.00364, for a straight flow).
Without, and with time as one more channel instead of a scale and shift in every block, fields of nerve and vessel had
three quarters of the fine detail of real ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from csg_edge.conditions import fibres
from csg_edge.errors import TrainingError
from csg_edge.storage import write_json
from csg_edge.training.model_files import read_json
from csg_edge.training.networks import coordinates, zero_init

VECTOR = fibres.GIVEN  # channels of a field that are drawn
CONTEXT_ROWS = 4  # what is known of each row of the context: mean vector, its length, strength
TIME_WAVES, TIME_WIDTH = 8, 64
LEAST_GRADIENT = 1e-2  # squared, in units of the vertical band: less is a dark frame
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class FibrePriorConfig:
    """Shape of a prior; stored as `fibre_prior/config.json` beside its weights.

    band_ratio: deviation of the context's horizontal band over that of its vertical one, as the block DCT scales them.
    deviation: of the fields, which the flow wants to be 1.
    """

    classes: int
    band_ratio: float
    deviation: float = 0.4
    block: int = 4  # of the context's block DCT
    width: int = 64
    blocks: int = 3

    def to_json(self) -> dict[str, Any]:
        return {"_class_name": "FibrePrior", **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FibrePriorConfig:
        """Raises TrainingError for another class name or unknown keys."""
        values = dict(values)
        if (name := values.pop("_class_name", None)) != "FibrePrior":
            raise TrainingError(f"fibre_prior config: class {name!r} is not FibrePrior; copy the model again")
        try:
            return cls(**values)
        except TypeError as error:
            raise TrainingError(f"fibre_prior config: {error}") from None


class Residual(nn.Module):
    """Two convolutions beside the identity, scaled and shifted by time between them; so small a field needs no norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = zero_init(nn.Linear(TIME_WIDTH, 2 * channels))
        self.conv_out = zero_init(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, features: Tensor, time: Tensor) -> Tensor:
        modulation, channels = self.film(time), features.shape[1]
        scale, shift = 1.0 + modulation[:, :channels], modulation[:, channels:]
        hidden = F.hardswish(features)
        if len(time) == 1:  # in a graph it is constant, and so are these weights
            weight, bias = self.conv_in.weight * scale.view(-1, 1, 1, 1), self.conv_in.bias * scale[0] + shift[0]
            hidden = F.conv2d(hidden, weight, bias, padding=1)
        else:
            hidden = self.conv_in(hidden) * scale[:, :, None, None] + shift[:, :, None, None]
        return features + self.conv_out(F.hardswish(hidden))


class FibrePrior(nn.Module):
    """Velocity of the flow of fibre fields; `draw` takes it in one step."""

    def __init__(self, config: FibrePriorConfig) -> None:
        super().__init__()
        self.config = config
        inputs = 4 * (VECTOR + config.classes + CONTEXT_ROWS + 2)
        self.time = nn.Linear(1 + TIME_WAVES, TIME_WIDTH)
        self.stem = nn.Conv2d(inputs, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(Residual(config.width) for _ in range(config.blocks))
        self.head = nn.Conv2d(config.width, 4 * VECTOR, 3, padding=1)

    def forward(self, latent: Tensor, timestep: Tensor, classes: Tensor, rows: Tensor) -> Tensor:
        """Velocity (B, 2, 16, 16).

        latent: (B, 2, 16, 16); timestep: (B,) or (1,), 0 to 1; classes: (B, K, 16, 16), the fraction of each class in a
        cell; rows: of the context, as `rows` gives them (B, CONTEXT_ROWS, 16, 1).
        """
        when = timestep.view(-1, 1, 1, 1)
        variance = when.square() + (1.0 - when).square()  # of the latent, that of fields and of noise being 1
        rest = self.rest(latent / variance.sqrt(), timestep, classes, rows)
        return latent * ((2.0 * when - 1.0) / variance) + rest / variance.sqrt()

    def rest(self, latent: Tensor, timestep: Tensor, classes: Tensor, rows: Tensor) -> Tensor:
        """What the best linear guess leaves of the velocity, for a latent of unit variance; all as in `forward`."""
        everywhere = torch.zeros_like(latent[:, :1])
        given = [latent, classes, rows + everywhere, coordinates(everywhere) + everywhere]
        features = self.stem(F.pixel_unshuffle(torch.cat(given, dim=1), 2))
        time = self.embed(timestep)
        for block in self.blocks:
            features = block(features, time)
        return F.pixel_shuffle(self.head(features), 2)

    def embed(self, timestep: Tensor) -> Tensor:
        """(B,) timesteps -> (B, TIME_WIDTH)."""
        waves = torch.arange(TIME_WAVES + 1, device=timestep.device) * torch.pi
        angles = timestep[:, None] * waves
        return F.silu(self.time(torch.cat([timestep[:, None], angles[:, 1:].cos()], dim=1)))

    def draw(self, noise: Tensor, classes: Tensor, context: Tensor) -> Tensor:
        """The first two channels of fields (B, 2, 16, 16), of coherence 1 at most.

        noise: (B, 2, 16, 16), normal; classes: as in `forward`; context: block DCT (B, D, h, w), h a multiple of 16,
        of zeros for no context.
        """
        start = torch.ones(1, device=noise.device)
        # There the guess of the velocity is the noise itself, so a step ends at the negative of what is left.
        # A product, since the torch reference knows no operator for a change of sign.
        return self.to_field(-1.0 * self.rest(noise, start, classes, self.rows(context)))

    def to_field(self, clean: Tensor) -> Tensor:
        """Clean latents -> the first two channels of fields."""
        vector = clean * self.config.deviation
        return vector / vector.square().sum(dim=1, keepdim=True).clamp_min(1.0).sqrt()

    def rows(self, context: Tensor) -> Tensor:
        """(B, CONTEXT_ROWS, 16, 1): what orientation each row of the context has."""
        across, down = context[:, 1:2] * self.config.band_ratio, context[:, self.config.block : self.config.block + 1]
        products = torch.cat([down * down - across * across, 2.0 * across * down, across * across + down * down], dim=1)
        tensor = products.mean(dim=3, keepdim=True)
        # A trace makes tensors of sizes, and a window of pooling must not be one.
        tensor = F.avg_pool2d(tensor, (int(context.shape[2]) // fibres.SIDE, 1))
        strength = tensor[:, VECTOR:] + LEAST_GRADIENT
        vector = tensor[:, :VECTOR] / strength
        return torch.cat([vector, vector.square().sum(dim=1, keepdim=True), strength / (1.0 + strength)], dim=1)

    def save(self, directory: Path) -> None:
        """Write config and weights, in fp16."""
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", self.config.to_json())
        weights = {name: value.detach().cpu().half().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, directory / WEIGHTS)

    @classmethod
    def load(cls, directory: Path) -> FibrePrior:
        """Raises TrainingError for anything missing, damaged or of another shape."""
        prior = cls(FibrePriorConfig.from_json(read_json(directory / "config.json")))
        try:
            prior.load_state_dict({name: value.float() for name, value in load_file(directory / WEIGHTS).items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split("\n\t")[:2])
            raise TrainingError(f"{directory / WEIGHTS}: {reason}; train or copy the model again") from None
        return prior
