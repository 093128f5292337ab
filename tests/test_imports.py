"""What importing costs, each in a fresh Python; and the contracts of pyproject.toml, which say who may import whom."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import csg_edge

PACKAGE = Path(csg_edge.__file__).parent
BUILD_SIDE = ("csg_edge.training", "csg_edge.export", "csg_edge.calibration", "csg_edge.quality", "csg_edge.benchmarks")
# What needs an extra of a module that by itself needs none, and is imported on use.
EXTRAS = (
    "csg_edge.augment.checks", "csg_edge.augment.report", "csg_edge.integrations.monai",
    "csg_edge.integrations.pytorch", "csg_edge.integrations.torchio", "csg_edge.studio.server",
)  # fmt: skip
BARE = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnxscript', 'safetensors']));"


def run_time_modules() -> dict[str, Path]:
    """Every module that users run, commands included, by dotted name."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if not name.startswith((*BUILD_SIDE, *EXTRAS)) and parts[-1] != "__main__":
            modules[name] = path
    return modules


def python(code: str) -> str:
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_importing_the_package_loads_no_framework() -> None:
    loaded = set(python("import sys, csg_edge; csg_edge.load; print(*sys.modules)").split())
    assert "numpy" in loaded
    assert not loaded & {"torch", "openvino", "onnxruntime", "onnx", "cv2", "click"}


def test_every_run_time_module_imports_without_the_build_side() -> None:
    modules = run_time_modules()
    assert modules.keys() >= {
        "csg_edge.cli.main",
        "csg_edge.runtimes.ov",
        "csg_edge.runtimes.ort",
        "csg_edge.generation.verify",
    }
    code = BARE + f"import importlib; [importlib.import_module(name) for name in {list(modules)}]; print(*sys.modules)"
    loaded = set(python(code).split())
    assert loaded >= modules.keys()
    assert not [name for name in loaded if name.startswith(BUILD_SIDE)]
    assert not loaded & {"openvino", "onnxruntime"}  # a runtime's framework is imported on use


def test_an_image_is_made_without_the_build_side() -> None:
    code = BARE + (
        "import numpy as np, csg_edge;"
        "blank = np.zeros((256, 256), np.uint8);"
        "generator = csg_edge.load(runtime='onnxruntime');"
        "print(*generator.generate([blank], [blank], [0]).shape)"
    )
    assert python(code) == "1 256 256"


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the package's modules, and of the contracts, to plant imports in."""
    shutil.copytree(PACKAGE, tmp_path / "csg_edge", ignore=lambda _, names: {"models", "__pycache__"} & set(names))
    shutil.copy(PACKAGE.parent / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """The contracts of pyproject.toml, held against the modules of a folder."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_the_contracts_hold(sources: Path) -> None:
    done = lint(sources)
    assert done.returncode == 0, done.stdout
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "planted", "broken"),
    [
        ("noise.py", "def late():\n    from csg_edge.generation import loading\n", "one direction"),
        ("generation/folders.py", "def late():\n    import torch\n", "Run time needs neither"),
        ("generation/selection.py", "def late():\n    from csg_edge.generation import loading\n", "No circles"),
    ],
    ids=["upwards", "torch at run time", "a circle of modules"],
)
def test_a_wrong_import_is_found_wherever_it_hides(sources: Path, module: str, planted: str, broken: str) -> None:
    path = sources / "csg_edge" / module
    path.write_text(path.read_text() + "\n\n" + planted)
    done = lint(sources)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if broken in line and "BROKEN" in line]
    assert line
