"""What importing costs: NumPy alone at first, and no build-side package ever at run time.

Each test in a fresh Python.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import csg_edge

PACKAGE = Path(csg_edge.__file__).parent
BUILD_SIDE = ("csg_edge.training", "csg_edge.export", "csg_edge.calibration", "csg_edge.quality", "csg_edge.benchmarks")
RUN_TIME_QUALITY = ("csg_edge.quality", "csg_edge.quality.commands")  # options of `validate`; the rest on use
BARE = "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnxscript', 'safetensors']));"


def run_time_modules() -> dict[str, Path]:
    """Every module but training, export and `__main__`, by dotted name."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if (not name.startswith(BUILD_SIDE) or name in RUN_TIME_QUALITY) and parts[-1] != "__main__":
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
    assert modules.keys() >= {"csg_edge.cli", "csg_edge.runtimes.ov", "csg_edge.runtimes.ort", "csg_edge.verify"}
    code = BARE + f"import importlib; [importlib.import_module(name) for name in {list(modules)}]; print(*sys.modules)"
    loaded = set(python(code).split())
    assert loaded >= modules.keys()
    assert not [name for name in loaded if name.startswith(BUILD_SIDE) and name not in RUN_TIME_QUALITY]
    assert not loaded & {"openvino", "onnxruntime"}  # a runtime's framework is imported on use


def test_an_image_is_made_without_the_build_side() -> None:
    code = BARE + (
        "import numpy as np, csg_edge;"
        "blank = np.zeros((256, 256), np.uint8);"
        "generator = csg_edge.load(runtime='onnxruntime');"
        "print(*generator.generate([blank], [blank], [0]).shape)"
    )
    assert python(code) == "1 256 256"


def imports_of(path: Path) -> set[str]:
    """Absolute names imported anywhere in a module, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.update({node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names})
    return names


def test_nothing_at_run_time_reaches_for_training_or_export() -> None:
    modules = run_time_modules()
    reaching = {
        name
        for name, path in modules.items()
        if any(found.startswith(BUILD_SIDE) and found not in RUN_TIME_QUALITY for found in imports_of(path))
    }
    # Inside commands that make models and bundles, judge them or time them.
    assert reaching == {
        "csg_edge.cli", "csg_edge.cli_bench", "csg_edge.cli_build", "csg_edge.cli_calibrate", "csg_edge.cli_train",
        "csg_edge.quality.commands",
    }  # fmt: skip
