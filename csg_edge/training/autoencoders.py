"""Which autoencoder a folder holds."""

from __future__ import annotations

from pathlib import Path

from csg_edge.errors import TrainingError
from csg_edge.training.autoencoder import Autoencoder
from csg_edge.training.block_dct import BlockDct, BlockDctConfig
from csg_edge.training.learned_autoencoder import LEARNED, load_learned
from csg_edge.training.model_files import read_json


def load_autoencoder(directory: Path) -> Autoencoder:
    """Read a folder with `config.json`: BlockDct, or AutoencoderKL or VQModel as diffusers writes them.

    Raises TrainingError for a folder that is missing, damaged or of another class, or whose weights are a pickle.
    """
    config = read_json(directory / "config.json")
    name = str(config.get("_class_name"))
    if name == "BlockDct":
        return BlockDct(BlockDctConfig.from_json(config))
    if name in LEARNED:
        return load_learned(directory, name)
    raise TrainingError(
        f"{directory / 'config.json'}: class {name!r} is unknown; give one of {', '.join(['BlockDct', *LEARNED])}"
    )
