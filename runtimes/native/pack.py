"""Pack libcsg_edge with everything it needs: dist/csg-edge-native-linux-x86_64.tar.gz, and say how large it is.

    python runtimes/native/pack.py --build build/native --bundle csg_edge/models/msk-256 --out dist

The archive holds the library, its OpenVINO module and OpenVINO itself (of the installed wheel), headers, CMake and
pkg-config files, two programs, the bundle and the licences. It needs glibc and libstdc++ of the target, no Python.
"""

from __future__ import annotations

import argparse
import gzip
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import distribution
from pathlib import Path

HERE = Path(__file__).parent
# Of OpenVINO: the core, the CPU, the two kinds of files a bundle has, and threads.
OPENVINO = ("libopenvino.so.*", "libopenvino_intel_cpu_plugin.so", "libopenvino_ir_frontend.so.*",
            "libopenvino_onnx_frontend.so.*", "libtbb.so.*", "libtbbmalloc.so.*")  # fmt: skip
SYSTEM = ("libspng.so.0", "libz.so.1")
README = """libcsg_edge {version}: images from a csg-edge bundle, without Python.

    bin/verify share/csg_edge/{bundle}
    bin/generate MASK.png CONTEXT.png IMAGE.png --bundle share/csg_edge/{bundle} --seed 7

include/csg_edge.h is the interface; lib/cmake and lib/pkgconfig find it. The synthetic images are not for diagnosis.
"""


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    name = f"csg-edge-native-linux-{platform.machine()}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / name
        fill(root, arguments.build, arguments.bundle)
        sizes = footprint(root, arguments.bundle.name)
        arguments.out.mkdir(parents=True, exist_ok=True)
        archive = arguments.out / f"{name}.tar.gz"
        write_archive(root, archive)
    for what, size in {**sizes, str(archive): archive.stat().st_size}.items():
        print(f"{size / 1e6:8.2f} MB  {what}")
    return 0


def fill(root: Path, build: Path, bundle: Path) -> None:
    """Lay out what the archive holds."""
    subprocess.run(["cmake", "--install", build, "--prefix", root, "--strip"], check=True, stdout=subprocess.DEVNULL)
    (library,) = (path for path in root.glob("lib*") if path.is_dir())
    openvino = distribution("openvino")
    wheel = Path(str(openvino.locate_file("openvino"))) / "libs"
    for path in sorted(found for pattern in OPENVINO for found in wheel.glob(pattern)):
        shutil.copy(path, library)
    linked = subprocess.run(["ldd", library / "libcsg_edge.so"], check=True, capture_output=True, text=True).stdout
    where = {line.split()[0]: line.split()[2] for line in linked.splitlines() if "=>" in line}
    for soname in SYSTEM:
        shutil.copy(Path(where[soname]).resolve(), library / soname)
    shutil.copytree(bundle, root / "share" / "csg_edge" / bundle.name)
    licences = root / "licenses"
    licences.mkdir()
    shutil.copy(HERE.parents[1] / "LICENSE", licences / "csg-edge")
    for item in openvino.files or ():
        if "licenses" in item.parts or "LICENSE" in item.name.upper():
            shutil.copy(Path(str(openvino.locate_file(item))), licences / f"openvino-{item.name}")
    packages = {"libspng": "libspng0", "zlib": "zlib1g", "openssl": "libssl3", "nlohmann-json": "nlohmann-json3-dev"}
    for what, package in packages.items():
        shutil.copy(Path("/usr/share/doc") / package / "copyright", licences / what)
    version = subprocess.run(["pkg-config", "--modversion", library / "pkgconfig" / "csg_edge.pc"], check=True,
                             capture_output=True, text=True).stdout.strip()  # fmt: skip
    (root / "README.txt").write_text(README.format(version=version, bundle=bundle.name), encoding="utf-8")


def footprint(root: Path, bundle: str) -> dict[str, float]:
    """Bytes of the parts, and the peak memory of a process that makes the golden images at int8."""
    (library,) = (path for path in root.glob("lib*") if path.is_dir())
    ours = [path for path in library.glob("libcsg_edge*") if not path.is_symlink()]
    runtime = [path for path in library.glob("lib*.so*") if path not in ours and not path.is_symlink()]
    folder = root / "share" / "csg_edge" / bundle
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):  # the second finds the compiled engine and the verdict
            peak = peak_memory([str(root / "bin/verify"), str(folder), "int8"], {"CSG_EDGE_CACHE": cache})
    return {
        "library and module": sum(path.stat().st_size for path in ours),
        "OpenVINO, libspng, zlib": sum(path.stat().st_size for path in runtime),
        "bundle": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "peak memory at int8 with a warm cache": peak,
    }


def peak_memory(command: list[str], environment: dict[str, str]) -> float:
    """Resident memory of a program at its highest, bytes."""
    measure = "import os,resource,subprocess,sys; subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr); "
    measure += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    run = [sys.executable, "-c", measure, *command]
    done = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return 1024 * float(done.stdout)


def write_archive(root: Path, archive: Path) -> None:
    """The same tree gives the same bytes."""

    def plain(item: tarfile.TarInfo) -> tarfile.TarInfo:
        item.uid = item.gid = item.mtime = 0
        item.uname = item.gname = ""
        return item

    with (
        archive.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, 0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path in sorted(root.rglob("*")):
            tar.add(path, path.relative_to(root.parent).as_posix(), recursive=False, filter=plain)


if __name__ == "__main__":
    sys.exit(main())
