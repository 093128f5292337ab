"""libcsg_edge through ctypes: the header's structures, and a class that raises its failures."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
BUILD = Path(os.environ.get("CSG_EDGE_NATIVE", ROOT / "build" / "native"))
LIBRARY = BUILD / "libcsg_edge.so"

Image = NDArray[np.uint8]
LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_char_p, ctypes.c_void_p)


class Status(IntEnum):
    OK = 0
    INVALID_ARGUMENT = 1
    BAD_BUNDLE = 2
    UNAVAILABLE = 3
    ENGINE_FAILED = 4
    CANCELLED = 5
    TIMED_OUT = 6
    TOO_LITTLE_MEMORY = 7
    INTERNAL = 8


class NativeError(Exception):
    """A status that is not OK, with the handle's sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = Status(status)


class _Sized(ctypes.Structure):
    """A structure of the header: its first field is its size."""

    def __init__(self, **values: Any) -> None:
        super().__init__(ctypes.sizeof(type(self)), **values)


class Options(_Sized):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("runtime", ctypes.c_char_p),
        ("device", ctypes.c_char_p),
        ("precision", ctypes.c_char_p),
        ("steps", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("cache", ctypes.c_char_p),
        ("memory_limit", ctypes.c_uint64),
        ("unproven", ctypes.c_int32),
        ("log", LogCallback),
        ("log_data", ctypes.c_void_p),
    )


class Info(_Sized):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("noise_channels", ctypes.c_int32),
        ("noise_height", ctypes.c_int32),
        ("noise_width", ctypes.c_int32),
        ("fibre_channels", ctypes.c_int32),
        ("fibre_rows", ctypes.c_int32),
        ("fibre_columns", ctypes.c_int32),
        ("classes", ctypes.c_int32),
        ("steps", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("memory_estimate", ctypes.c_uint64),
    )


class Job(_Sized):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("mask", ctypes.c_void_p),
        ("mask_stride", ctypes.c_ssize_t),
        ("context", ctypes.c_void_p),
        ("context_stride", ctypes.c_ssize_t),
        ("seed", ctypes.c_uint64),
        ("noise", ctypes.c_void_p),
        ("fibre", ctypes.c_void_p),
        ("image", ctypes.c_void_p),
        ("image_stride", ctypes.c_ssize_t),
        ("fibre_used", ctypes.c_void_p),
        ("timeout_ms", ctypes.c_uint32),
        ("cancellation", ctypes.c_void_p),
    )


class Verification(_Sized):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("cases", ctypes.c_int32),
        ("passed", ctypes.c_int32),
        ("max_levels", ctypes.c_int32),
        ("worst_psnr", ctypes.c_double),
    )


def open_library(path: Path = LIBRARY) -> Any:
    """The library, with the types of what its functions take and give."""
    library = ctypes.CDLL(str(path))
    for name in ("version", "status_text", "class_name", "engine", "choice"):
        getattr(library, f"csg_edge_{name}").restype = ctypes.c_char_p
    for name in ("class_name", "engine", "choice", "close", "get_info", "verify", "generate", "last_error"):
        getattr(library, f"csg_edge_{name}").argtypes = None
    library.csg_edge_last_error.restype = ctypes.c_size_t
    library.csg_edge_cancellation_create.restype = ctypes.c_void_p
    return library


class NativeGenerator:
    """A handle of the library. Use it as a context manager."""

    def __init__(
        self, bundle: Path, *, library: Any = None, log: Callable[[int, str], None] | None = None, **options: Any
    ) -> None:
        """options: fields of `Options`; text and paths as such. Raises NativeError."""
        self._library = open_library() if library is None else library
        self._log = LogCallback(lambda level, text, _: log(level, text.decode()) if log else None)
        encoded = {
            key: os.fsencode(value) if isinstance(value, str | Path) else value for key, value in options.items()
        }
        self._handle = ctypes.c_void_p()
        status = self._library.csg_edge_open(
            os.fsencode(bundle), ctypes.byref(Options(log=self._log, **encoded)), ctypes.byref(self._handle)
        )
        if status:
            text = self.last_error()
            self.close()
            raise NativeError(status, text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._library.csg_edge_close(self._handle)
        self._handle = ctypes.c_void_p()

    def last_error(self) -> str:
        size = self._library.csg_edge_last_error(self._handle, None, ctypes.c_size_t(0)) + 1
        text = ctypes.create_string_buffer(size)
        self._library.csg_edge_last_error(self._handle, text, ctypes.c_size_t(size))
        return text.value.decode()

    @property
    def engine(self) -> str:
        return str(self._library.csg_edge_engine(self._handle).decode())

    @property
    def choice(self) -> str:
        return str(self._library.csg_edge_choice(self._handle).decode())

    @property
    def classes(self) -> list[str]:
        found = []
        while name := self._library.csg_edge_class_name(self._handle, ctypes.c_int32(len(found))):
            found.append(name.decode())
        return found

    def info(self) -> Info:
        found = Info()
        self.check(self._library.csg_edge_get_info(self._handle, ctypes.byref(found)))
        return found

    def verify(self) -> Verification:
        found = Verification()
        self.check(self._library.csg_edge_verify(self._handle, ctypes.byref(found)))
        return found

    def run(self, job: Job) -> None:
        """Make one image as `job` says. Raises NativeError."""
        self.check(self._library.csg_edge_generate(self._handle, ctypes.byref(job)))

    def generate(
        self, mask: Image | None, context: Image | None, seed: int = 0, *, fibre: NDArray[np.float32] | None = None,
        used: NDArray[np.float32] | None = None, **fields: Any,
    ) -> Image:  # fmt: skip
        """One image, (H, W) uint8, of arrays that are as wide as they say or views with wider rows."""
        info = self.info()
        image = np.zeros((info.height, info.width), np.uint8)
        arrays = {"mask": mask, "context": context, "fibre": fibre, "fibre_used": used, "image": image}
        given = {name: None if array is None else array.ctypes.data for name, array in arrays.items()}
        strides = {
            f"{name}_stride": array.strides[0]
            for name, array in (("mask", mask), ("context", context))
            if array is not None
        }
        self.run(Job(seed=seed, **given, **strides, **fields))
        return image

    def check(self, status: int) -> None:
        if status:
            raise NativeError(status, self.last_error())
