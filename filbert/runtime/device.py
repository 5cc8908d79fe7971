"""The device, its precision, the random seed, and the facts of the machine that a benchmark reports."""

import os
import platform
import random
from pathlib import Path

import numpy as np
import torch

from filbert.runtime import distributed


def select_device() -> torch.device:
    """CUDA if available, else the CPU; with several processes, the one of this process."""
    if distributed.WORLD_SIZE > 1:
        return distributed.init_process()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision(device: torch.device) -> str:
    """`bfloat16` where the device multiplies it natively, else `float32`."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision in `precision(device)`; off where that is float32."""
    kind = precision(device)
    return torch.autocast(device.type, dtype=getattr(torch, kind), enabled=kind != "float32")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch: runs on a CPU then repeat bit for bit."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def machine_facts() -> dict[str, str | int]:
    """Processor, instruction sets, cores, PyTorch's version and device."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    lines = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
    return {
        "processor": fields.get("model name", platform.processor() or platform.machine()),
        "flags": " ".join(flag for flag in wanted if flag in fields.get("flags", "").split()),
        "cores": os.cpu_count() or 1,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
