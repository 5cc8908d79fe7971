"""onnxruntime's sessions as this project opens them, and the processor's flags that int8 answers depend on. No torch."""

import os
from pathlib import Path
from typing import Any

import onnxruntime

from filbert import FilbertError

FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
)  # which integer kernels are chosen by


def new_session(file: Path, threads: int | None = None) -> Any:
    """A session over `file` with so many threads; None: all cores, `OMP_NUM_THREADS` at most.

    Raises:
        FilbertError: the file is missing or is no ONNX graph.
    """
    if not file.is_file():
        raise FilbertError(f"{file}: expected an exported model, found no file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or int(os.environ.get("OMP_NUM_THREADS") or 0)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # else int8 overflows where x86 has no VNNI
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # busy threads would slow what runs beside them
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base
        raise FilbertError(
            f"{file}: expected an ONNX graph that onnxruntime {onnxruntime.__version__} runs: {error}"
        ) from error


def processor_flags() -> str:
    """Those of FLAGS that this processor has."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    found = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join(flag for flag in FLAGS if flag in found)
