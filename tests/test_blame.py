"""An engine that cannot be opened: the runtime's own words without its source code, and a remedy that fits them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from csg_edge.errors import EngineError
from csg_edge.runtimes import runtime_class
from csg_edge.runtimes.blame import OTHERWISE, cannot_open

NO_PROC = (
    "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: "
    "/onnxruntime_src/onnxruntime/core/optimizer/optimizer_execution_frame.cc:74 onnxruntime::OptimizerExecutionFrame::"
    "Info::Info(const std::vector<const onnxruntime::Node*>&, const std::filesystem::__cxx11::path&, const std::"
    "function<bool(const std::__cxx11::basic_string<char>&)>&) [ONNXRuntimeError] : 1 : FAIL : Secure opened-file "
    "canonicalization requires procfs at /proc/self/fd/6. Ensure /proc is mounted in the sandbox or chroot. Error: No "
    "such file or directory"
)
BROKEN = "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from a.onnx failed:Protobuf parsing failed."
OPENVINO = (
    "Exception from src/inference/src/cpp/core.cpp:104:\nException from src/frontends/ir/src/frontend.cpp:173:\n"
    "std::bad_alloc\n"
)


@pytest.mark.parametrize(
    ("message", "said", "remedy"),
    [
        (NO_PROC, "requires procfs at /proc/self/fd/6", "mount /proc in the sandbox"),
        (BROKEN, "Load model from a.onnx failed:Protobuf parsing failed", "copy or export the file again"),
        (OPENVINO, "std::bad_alloc", "free memory"),
        ("Unable to open: Permission denied", "Permission denied", "mend the permissions"),
        ("Unsupported model IR version: 99, max supported IR version: 13", "IR version: 99", "update the runtime"),
        ("something else went wrong", "something else went wrong", OTHERWISE),
        ("", "RuntimeError", OTHERWISE),
    ],
)
def test_the_remedy_fits_what_the_runtime_says(tmp_path: Path, message: str, said: str, remedy: str) -> None:
    path = tmp_path / "a.onnx"
    assert "no such file; copy the whole bundle" in str(cannot_open(path, "ONNX Runtime", RuntimeError(message)))
    path.touch()
    text = str(cannot_open(path, "ONNX Runtime", RuntimeError(message))).replace(str(path), "a.onnx")
    assert text.startswith("a.onnx: ONNX Runtime cannot open it (") and "\n" not in text
    assert said in text and text.endswith(remedy) if remedy == OTHERWISE else said in text and remedy in text
    assert not re.search(r"\.(cc|cpp):\d|ONNXRuntimeError|onnxruntime::", text)
    assert len(text) < 330


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "torch"])
def test_a_file_that_is_no_graph_is_the_file_s_fault(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"no graph at all, but some text")
    with pytest.raises(EngineError) as refused:
        runtime_class(name).open(path, device="CPU", precision="fp32")
    assert "again" in str(refused.value) and str(refused.value).startswith(f"{path}: ")
