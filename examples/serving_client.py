"""Ask a Triton Inference Server, or an OpenVINO Model Server, for an image: noise is made here, from the seed.

    csg-edge serve-repository msk-256 --for triton --out models
    tritonserver --model-repository=models              # or ovms --config_path models/config.json --port 8001
    pip install 'csg-edge[serve]'
    python examples/serving_client.py --model msk-256-onnxruntime-fp32-steps-1 --mask mask.png --context context.png

Both servers speak the KServe protocol (v2) over gRPC. Tried against the files of a repository, not yet against a
running server. The image is that of `csg-edge generate` on the same engine.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from csg_edge.bundle.manifest import Manifest, find_bundle, read_bundle
from csg_edge.conditions.arrays import resize_image, resize_mask
from csg_edge.conditions.files import read_context, read_mask, write_png
from csg_edge.noise import noise_for


def make_inputs(
    manifest: Manifest, mask: NDArray[np.uint8], context: NDArray[np.uint8], seed: int
) -> dict[str, NDArray[Any]]:
    """Everything a served model takes, by name, for one image: batch 1 in front."""
    size = manifest.image_size
    inputs: dict[str, NDArray[Any]] = {
        "mask": resize_mask(mask, *size)[None],
        "context": resize_image(context, *size)[None],
        "noise": noise_for(seed, manifest.noise_shape)[None],
    }
    if manifest.fibre_shape is not None:
        inputs["fibre"] = np.zeros((1, *manifest.fibre_shape), np.float32)  # nothing given: the model draws it
    return inputs


def main() -> None:
    """Make one image and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="localhost:8001")
    parser.add_argument("--model", required=True)
    parser.add_argument("--bundle", default="msk-256")
    parser.add_argument("--mask", type=Path, required=True)
    parser.add_argument("--context", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("image.png"))
    arguments = parser.parse_args()

    from tritonclient import grpc

    manifest = read_bundle(find_bundle(arguments.bundle)).manifest
    given = make_inputs(
        manifest, read_mask(arguments.mask, manifest.schema), read_context(arguments.context), arguments.seed
    )
    inputs = []
    for name, array in given.items():
        kind = {"uint8": "UINT8", "float32": "FP32"}[array.dtype.name]
        inputs.append(grpc.InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array)
    with grpc.InferenceServerClient(arguments.url) as client:
        image = client.infer(arguments.model, inputs).as_numpy("image")
    write_png(arguments.out, image[0])
    print(f"{arguments.out}: {image.shape[1]} x {image.shape[2]}")


if __name__ == "__main__":
    main()
