"""Small models with random weights for tests: every branch says something, nothing takes long."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from csg_edge.labels import MSK_SCHEMA
from csg_edge.training.block_dct import BlockDct, BlockDctConfig
from csg_edge.training.fit_fibre_prior import new_prior
from csg_edge.training.model import CsgModel
from csg_edge.training.networks import CsgUNet, NetworkConfig

SIZE = 64
TINY = NetworkConfig(classes=len(MSK_SCHEMA), widths=(32, 32), blocks=(1, 1), embedding=32, mask_features=8, heads=2)


def tiny_model(
    role: str,
    config: NetworkConfig = TINY,
    *,
    deviation: float,
    biases: bool = True,
    images: NDArray[np.uint8] | None = None,
    steps: tuple[int, ...] | None = None,
) -> CsgModel:
    """A model of SIZE x SIZE images over a block DCT.

    Weights are drawn with `deviation`, for zero-initialised branches would hide what they do; biases keep their start
    unless `biases`. images: (N, SIZE, SIZE), whose bands the block DCT is scaled to; white noise if not given.
    """
    torch.manual_seed(0)
    network = CsgUNet(config)
    for parameter in network.parameters():
        if biases or parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=deviation)
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE), dtype=np.uint8)
    bands = BlockDct(BlockDctConfig.fit(images))
    prior = None
    if config.fibres:
        prior = new_prior(bands, classes=len(MSK_SCHEMA), seed=0)
        for parameter in prior.parameters():
            torch.nn.init.normal_(parameter, std=deviation)
    given = {} if steps is None else {"steps": steps}
    return CsgModel(network, bands, schema=MSK_SCHEMA, image_size=SIZE, role=role, prior=prior, **given)
