"""Checkpoints of one phase of training, so that a killed run can resume: weights, optimiser, best weights and step.

They are safetensors with JSON metadata. A checkpoint of other settings is ignored, a damaged one is set aside.
"""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from filbert.data.batches import TokenizedDataset
from filbert.runtime import distributed, progress
from filbert.runtime.files import IS_MAIN_PROCESS, atomic_file, code_hash

DAMAGE = (SafetensorError, OSError, ValueError, KeyError)  # what reading a damaged checkpoint raises


def training_fingerprint(
    model: nn.Module, rows: TokenizedDataset, config: Any, seed: int, provenance: dict[str, Any]
) -> str:
    """What a checkpoint must agree with to be resumed: initial weights, data, all settings of the stage, the code."""
    settings = [config, seed, provenance, code_hash()]
    digest = hashlib.sha256(json.dumps(settings, default=str).encode())
    for array in (rows.ids, rows.types, rows.offsets, rows.label, rows.hash):
        digest.update(np.ascontiguousarray(array).reshape(-1).data)  # labels may be [N, C]
    return digest.hexdigest() + weights_digest(model)


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 over a model's weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        digest.update(name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class TrainingState:
    """The full state of a phase: the weights, the optimiser, the best weights, and the step."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.AdamW, file: Path, fingerprint: str, step: int = 0):
        self.model, self.optimizer, self.file, self.fingerprint = model, optimizer, file, fingerprint
        self.step, self.best, self.best_step, self.misses = step, -math.inf, 0, 0
        self.best_weights: dict[str, Tensor] = {}

    def update_best(self, score: float) -> None:
        """Copy the weights if `score` is the best so far, else count a miss."""
        if score > self.best:
            self.best, self.best_step, self.misses = score, self.step, 0
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        else:
            self.misses += 1

    def restore_best(self) -> None:
        self.model.load_state_dict(self.best_weights)

    def save(self, optimizer_state: bool = True) -> None:
        """Write the checkpoint, in the main process; a finished phase does not need the optimiser's state. What processes gather in
        buffers, each of its own rows, becomes its mean over them, with which all go on."""
        distributed.average_buffers(self.model)
        if not IS_MAIN_PROCESS:
            return
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self.best_weights.items()}
        for number, moments in self.optimizer.state_dict()["state"].items() if optimizer_state else ():
            tensors |= {f"optimizer/{number}/{name}": value for name, value in moments.items()}
        tensors = _own_memory(tensors)
        place = {"step": self.step, "best": self.best, "best_step": self.best_step, "misses": self.misses}
        metadata = {"place": json.dumps(place), "fingerprint": self.fingerprint, "checksum": _checksum(tensors)}
        with atomic_file(self.file) as making:
            save_file(tensors, making, metadata)

    def resume(self, told: int) -> None:
        """Continue at the checkpoint, if there is one of this very phase, at a step up to which its history is `told`."""
        if not self.file.exists():
            return
        try:
            tensors, metadata = _read(self.file)
        except DAMAGE as error:
            self._set_aside(error)
            return
        if metadata["fingerprint"] != self.fingerprint:
            progress.log(f"{self.file}: made with other settings, data or start; beginning anew")
            return
        place = json.loads(metadata["place"])
        if place["step"] > told:
            progress.log(f"{self.file}: its history is cut off before step {place['step']}; beginning anew")
            return
        self._load(tensors, place)
        progress.log(f"{self.file.stem}: resumed at step {self.step}")

    def _set_aside(self, error: Exception) -> None:
        aside = self.file.with_suffix(".damaged")
        if IS_MAIN_PROCESS:
            os.replace(self.file, aside)
        progress.log(f"{self.file}: damaged ({str(error).splitlines()[0]}); renamed to {aside.name}, beginning anew")

    def _load(self, tensors: dict[str, Tensor], place: dict[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            part, rest = name.split("/", 1)
            parts[part][rest] = value
        self.model.load_state_dict(parts["model"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in parts["optimizer"].items():
            number, moment = name.split("/")
            moments.setdefault(int(number), {})[moment] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.best_weights = parts["best"]
        for name, value in place.items():
            setattr(self, name, value)


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a checkpoint.

    Raises:
        ValueError: the tensors are not those that were written.
    """
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if metadata["checksum"] != _checksum(tensors):
        raise ValueError("its checksum is another")
    return tensors, metadata


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_64()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU that share no memory, as safetensors demands; tied weights are copied."""
    seen: set[int] = set()
    out = {}
    for name, value in tensors.items():
        whole = value.detach().cpu().contiguous()
        out[name] = whole.clone() if whole.data_ptr() in seen else whole
        seen.add(whole.data_ptr())
    return out
