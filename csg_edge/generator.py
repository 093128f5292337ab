"""The generator: what users hold. A bundle and a runtime; masks, contexts and seeds in, uint8 images out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from csg_edge.bundle import PRECISIONS, Bundle, Engine, Target, find_bundle, read_bundle
from csg_edge.conditions import check_context, check_mask, resize_image, resize_mask
from csg_edge.errors import EngineError, InputError, RuntimeUnavailableError
from csg_edge.noise import noise_for
from csg_edge.runtimes import RUNTIMES, Runtime, runtime_class
from csg_edge.runtimes.base import Feeds

Image = NDArray[np.uint8]


class Generator:
    """Makes ultrasound images from masks and contexts with one engine. Use it as a context manager or call `close`."""

    def __init__(self, bundle: Bundle, engine: Engine, runtime: Runtime) -> None:
        self.bundle, self.engine, self.runtime = bundle, engine, runtime

    def generate(self, masks: Sequence[Image], contexts: Sequence[Image], seeds: Sequence[int]) -> Image:
        """One image per mask.

        masks: N (H, W) uint8 class indices; contexts: N, or one for all, (H, W) uint8 grey levels; any size,
        stretched to the bundle's image size. seeds: N integers in 0..2^64-1; the same mask, context and seed give the
        same bytes whatever else is in the call. Returns (N, H, W) uint8. Raises InputError before anything is
        generated.
        """
        if len(contexts) not in (1, len(masks)) or len(seeds) != len(masks) or not len(masks):
            raise InputError(
                f"{len(masks)} masks, {len(contexts)} contexts, {len(seeds)} seeds; give at least one mask, "
                "a seed for each mask, and one context or one for each mask"
            )
        shared = len(contexts) == 1
        prepared = [self.prepare_context(context, name=f"contexts[{i}]") for i, context in enumerate(contexts)]
        ready = [
            (self.prepare_mask(mask, name=f"masks[{i}]"), prepared[0 if shared else i], self._noise(seeds[i]))
            for i, mask in enumerate(masks)
        ]
        return np.stack([self._infer(*feeds) for feeds in ready])

    def generate_one(self, mask: Image, context: Image, seed: int) -> Image:
        """(H, W) mask, (H, W) context and a seed -> (H, W) image; as `generate` for one."""
        return self._infer(
            self.prepare_mask(mask, name="mask"), self.prepare_context(context, name="context"), self._noise(seed)
        )

    def prepare_mask(self, mask: Image, *, name: str) -> Image:
        """Check a mask and stretch it to the bundle's image size: the labels of the generated image."""
        return resize_mask(check_mask(mask, self.bundle.manifest.schema, name=name), *self.bundle.manifest.image_size)

    def prepare_context(self, context: Image, *, name: str) -> Image:
        """Check a context and stretch it to the bundle's image size."""
        return resize_image(check_context(context, name=name), *self.bundle.manifest.image_size)

    def close(self) -> None:
        self.runtime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _noise(self, seed: int) -> NDArray[np.float32]:
        return noise_for(seed, self.bundle.manifest.noise_shape)

    def _infer(self, mask: Image, context: Image, noise: NDArray[np.float32]) -> Image:
        feeds: Feeds = {"mask": mask[None], "context": context[None], "noise": noise[None]}
        image: Image = self.runtime.run(feeds)["image"][0]
        return image


def load(
    bundle: str | Path = "msk-256",
    *,
    runtime: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    steps: int = 1,
    threads: int | None = None,
) -> Generator:
    """Open a bundle (a folder, or the name of a shipped one) on this machine.

    With `auto` the first engine in the bundle's order of preference that this machine can run is taken. Raises
    BundleError for a missing or damaged bundle, InputError for an option the bundle does not offer,
    RuntimeUnavailableError if nothing that fits can run here, EngineError if the runtime refuses the engine.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads {threads}: give at least 1")
    checked = read_bundle(find_bundle(str(bundle)))
    engine = choose_engine(checked, runtime=runtime, device=device, precision=precision, steps=steps)
    return open_engine(checked, engine, threads=threads)


def choose_engine(bundle: Bundle, *, runtime: str, device: str, precision: str, steps: int) -> Engine:
    """The first engine that fits the options and can run here; see `load` for what is raised."""
    if runtime != "auto" and runtime not in RUNTIMES:
        raise InputError(f"runtime {runtime!r} is unknown; choose auto, {', '.join(RUNTIMES)}")
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision {precision!r} is unknown; choose auto, {', '.join(PRECISIONS)}")
    manifest = bundle.manifest
    if steps not in manifest.steps:
        raise InputError(f"steps {steps}: bundle {manifest.name} has steps {', '.join(map(str, manifest.steps))}")
    wanted = {"runtime": runtime, "device": device, "precision": precision}
    fitting = []
    for engine in manifest.engines:
        target = Target.parse(engine.target)
        if engine.steps == steps and all(value in ("auto", getattr(target, key)) for key, value in wanted.items()):
            fitting.append(engine)
    if not fitting:
        offered = ", ".join(dict.fromkeys(engine.target for engine in manifest.engines))
        asked = ":".join(wanted.values())
        raise InputError(f"bundle {manifest.name} has no engine for {asked}; it has {offered}")
    reasons = []
    for engine in fitting:
        reason = why_not(engine)
        if reason is None:
            return engine
        reasons.append(f"{engine.target}: {reason}")
    raise RuntimeUnavailableError("no engine can run here. " + "; ".join(reasons))


def why_not(engine: Engine) -> str | None:
    """None if this machine can run the engine, else the reason."""
    target = Target.parse(engine.target)
    if target.runtime not in RUNTIMES:
        return f"runtime {target.runtime} is unknown to this csg-edge; update it"
    return runtime_class(target.runtime).why_not(target.device, target.precision)


def open_engine(bundle: Bundle, engine: Engine, *, threads: int | None = None) -> Generator:
    """Open one engine of a bundle. Raises EngineError if its inputs or outputs are not what the manifest promises."""
    target = Target.parse(engine.target)
    runtime = runtime_class(target.runtime).open(
        bundle.file(engine.file), device=target.device, precision=target.precision, threads=threads
    )
    size, noise = bundle.manifest.image_size, bundle.manifest.noise_shape
    promised = {"mask": size, "context": size, "noise": noise, "image": size}
    found = {spec.name: spec.shape[1:] for spec in (*runtime.inputs, *runtime.outputs)}
    if found != promised:
        runtime.close()
        raise EngineError(f"{engine.file}: the engine has {found}, the manifest promises {promised}; export it again")
    return Generator(bundle, engine, runtime)
