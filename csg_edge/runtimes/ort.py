"""ONNX Runtime: the CPU, and the CUDA, TensorRT and OpenVINO execution providers where the installed build has them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from csg_edge.cache import BlobCache, key_of
from csg_edge.errors import EngineError, RuntimeUnavailableError
from csg_edge.runtimes.base import Call, Feeds, Results, Runtime, TensorSpec, ThreadCall, first_line
from csg_edge.runtimes.blame import cannot_open

DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
INTEGER_KERNELS = (b"QLinearConv", b"ConvInteger", b"MatMulInteger", b"QGemm", b"QLinearMatMul")


@dataclass(frozen=True)
class Provider:
    """An execution provider: its name, what to install, and its options per precision."""

    name: str
    package: str
    options: dict[str, dict[str, str]] = field(default_factory=dict)


# By the device that stands in a target, `onnxruntime:CUDA:fp16`. fp16 and int8 are properties of the graph, but for
# providers that convert it themselves.
PROVIDERS = {
    "CPU": Provider("CPUExecutionProvider", "csg-edge[onnxruntime]", {"fp32": {}, "int8": {}}),
    "CUDA": Provider(
        "CUDAExecutionProvider", "csg-edge[onnxruntime-gpu]", {"fp32": {"use_tf32": "0"}, "fp16": {}, "int8": {}}
    ),
    "TensorRT": Provider(
        "TensorrtExecutionProvider",
        "csg-edge[onnxruntime-gpu]",
        {"fp32": {}, "fp16": {"trt_fp16_enable": "1"}, "int8": {"trt_int8_enable": "1"}},
    ),
    "OpenVINO": Provider(
        "OpenVINOExecutionProvider",
        "csg-edge[onnxruntime-openvino]",
        {"fp32": {"device_type": "CPU", "precision": "FP32"}, "fp16": {"device_type": "GPU", "precision": "FP16"}},
    ),
}


class OnnxRuntime(Runtime):
    """An ONNX graph in an `onnxruntime.InferenceSession`.

    What is cached is the graph after ONNX Runtime's own optimisation, for the CPU: it opens in less than half the time.
    """

    name: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "csg-edge[onnxruntime]"
    depth = 1  # two sessions at once would share the same threads

    def __init__(self, session: Any, *, path: Path, device: str, precision: str) -> None:
        super().__init__(_specs(session.get_inputs()), _specs(session.get_outputs()), device=device)
        self._session, self._path, self._precision = session, path, precision

    @classmethod
    def why_not(cls, device: str, precision: str) -> str | None:
        provider = PROVIDERS.get(device)
        if find_spec("onnxruntime") is None:
            return f"onnxruntime is not installed; pip install '{provider.package if provider else cls.extra}'"
        if provider is None:
            return f"device {device} is not supported by this runtime; use {', '.join(PROVIDERS)}"
        if precision not in provider.options:
            known = ", ".join(provider.options)
            return f"ONNX Runtime on {device} runs these graphs in {known}, not {precision}; use --precision fp32"
        import onnxruntime

        if provider.name not in onnxruntime.get_available_providers():
            return f"this onnxruntime has no {provider.name}; pip install '{provider.package}' in its own environment"
        return None

    @classmethod
    def version(cls) -> str:
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeUnavailableError(f"onnxruntime: {error}; pip install '{cls.extra}'") from None
        return str(onnxruntime.__version__)

    @classmethod
    def devices(cls) -> dict[str, dict[str, Any]]:
        found = {
            device: {
                "name": provider.name,
                "precisions": [name for name in provider.options if cls.why_not(device, name) is None],
            }
            for device, provider in PROVIDERS.items()
        }
        return {name: about for name, about in found.items() if about["precisions"]}

    @classmethod
    def open(
        cls, path: Path, *, device: str, precision: str, threads: int | None = None, streams: int = 1,
        cache: BlobCache | None = None, identity: str = "",
    ) -> Self:  # fmt: skip
        if reason := cls.why_not(device, precision):
            raise RuntimeUnavailableError(reason)
        import onnxruntime

        provider = PROVIDERS[device]
        key = ""
        if cache is not None and identity and device == "CPU":
            from csg_edge.machine import processor

            key = key_of(
                engine=identity, file=path.name, runtime=f"onnxruntime {cls.version()}", processor=processor(),
                precision=precision,
            )  # fmt: skip
        options = _options(threads)
        chosen = [(provider.name, provider.options[precision])]
        session = None
        if device in ("CUDA", "TensorRT"):
            onnxruntime.preload_dlls()  # CUDA and cuDNN of torch or of NVIDIA's own packages, where the system has none
        try:
            if cache is not None and key:
                session = _open_cached(cache, key, options, chosen) or _open_and_keep(cache, key, path, options, chosen)
            else:
                session = onnxruntime.InferenceSession(path, options, providers=chosen)
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise cannot_open(path, "ONNX Runtime", error) from error
        if session.get_providers()[0] != provider.name:  # it falls back to the CPU with a mere warning
            raise RuntimeUnavailableError(
                f"{provider.name} did not start and ONNX Runtime fell back to the CPU; check the driver and libraries "
                f"that {provider.package} needs, or use --device CPU"
            )
        return cls(session, path=path, device=device, precision=precision)

    @property
    def effective_precision(self) -> str:
        """On the CPU: int8 if its optimised graph has integer kernels, else fp32, each node's own type.

        Elsewhere: the precision that the provider's options, read back, were made for.
        """
        if self.device == "CPU":
            return "int8" if self._precision == "int8" and self._has_integer_kernels() else "fp32"
        provider = PROVIDERS[self.device]
        found = self._session.get_provider_options().get(provider.name, {})
        wanted = provider.options[self._precision]
        return self._precision if all(found.get(key) == value for key, value in wanted.items()) else "fp32"

    def _has_integer_kernels(self) -> bool:
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            options = _options(None)
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            onnxruntime.InferenceSession(self._path, options, providers=[PROVIDERS["CPU"].name])
            optimised = (Path(folder) / "optimised.onnx").read_bytes()
        return any(kernel in optimised for kernel in INTEGER_KERNELS)

    def _run(self, feeds: Feeds, results: Results) -> None:
        self._infer(feeds, results, None)

    def _start(self, feeds: Feeds, results: Results) -> Call:
        import onnxruntime

        options = onnxruntime.RunOptions()

        def stop() -> None:
            options.terminate = True  # looked at between nodes

        return ThreadCall(lambda: self._infer(feeds, results, options), stop)

    def _infer(self, feeds: Feeds, results: Results, options: Any) -> None:
        # Bound memory is read and written in place on the CPU; a GPU provider copies to and from the device itself.
        try:
            binding = self._session.io_binding()
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            for name, array in results.items():
                binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            raise EngineError(f"onnxruntime: inference failed ({first_line(error)}); run `csg-edge verify`") from error

    def _close(self) -> None:
        self._session = None


def _options(threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is told by the exception, in one line
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _open_cached(cache: BlobCache, key: str, options: Any, providers: Any) -> Any:
    import onnxruntime

    if (blob := cache.load(key)) is None:
        return None
    everything = options.graph_optimization_level
    try:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # done already
        return onnxruntime.InferenceSession(bytes(blob), options, providers=providers)
    except Exception:  # whole, but not to this ONNX Runtime's taste
        options.graph_optimization_level = everything
        cache.discard(key)
        return None


def _open_and_keep(cache: BlobCache, key: str, path: Path, options: Any, providers: Any) -> Any:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(optimised)
        session = onnxruntime.InferenceSession(path, options, providers=providers)
        cache.store(key, optimised.read_bytes())
    return session


def _specs(arguments: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            item.name,
            np.dtype(DTYPES[item.type]),
            tuple(size if isinstance(size, int) else None for size in item.shape),
        )
        for item in arguments
    )
