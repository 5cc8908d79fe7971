"""What a phase of training must not lose to a kill: weights, optimiser, best weights, place; safetensors and JSON only."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from filbert.data.batches import TokenizedDataset
from filbert.runtime import progress
from filbert.runtime.files import atomic_file, code_hash


def training_fingerprint(
    model: nn.Module, rows: TokenizedDataset, config: Any, seed: int, provenance: dict[str, Any]
) -> str:
    """What a checkpoint must agree with to be resumed: the start, the data, all settings of the stage, the code."""
    settings = [config, seed, provenance, code_hash()]
    digest = hashlib.sha256(json.dumps(settings, default=str).encode())
    for array in (rows.ids, rows.types, rows.offsets, rows.label, rows.hash):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest() + weights_digest(model)


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 over a model's weights and buffers, by name."""
    digest = hashlib.sha256()
    for name, parameter in model.state_dict().items():
        digest.update(name.encode() + parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class TrainingState:
    """All that must survive a kill: the weights, the optimiser, the best weights, and where the phase stands."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.AdamW, file: Path, fingerprint: str, step: int = 0):
        self.model, self.optimizer, self.file, self.fingerprint = model, optimizer, file, fingerprint
        self.step, self.best, self.best_step, self.misses = step, -math.inf, 0, 0
        self.best_weights: dict[str, Tensor] = {}

    def judge(self, score: float) -> None:
        if score > self.best:
            self.best, self.best_step, self.misses = score, self.step, 0
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        else:
            self.misses += 1

    def restore_best(self) -> None:
        self.model.load_state_dict(self.best_weights)

    def save(self, moments: bool = True) -> None:
        """Write the state; a phase that is done needs the optimiser's moments no more."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best/{name}": value for name, value in self.best_weights.items()}
        for number, found in self.optimizer.state_dict()["state"].items() if moments else ():
            tensors |= {f"optimizer/{number}/{name}": value for name, value in found.items()}
        place = {"step": self.step, "best": self.best, "best_step": self.best_step, "misses": self.misses}
        metadata = {"place": json.dumps(place), "fingerprint": self.fingerprint}
        with atomic_file(self.file) as making:
            save_file(_apart(tensors), making, metadata)

    def resume(self) -> None:
        """Go on where the checkpoint stands, if there is one of this very phase."""
        if not self.file.exists():
            return
        with safe_open(self.file, framework="pt") as stored:
            metadata = stored.metadata()
            if metadata["fingerprint"] != self.fingerprint:
                progress.log(f"{self.file}: made with other settings, data or start; beginning anew")
                return
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
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
        for name, value in json.loads(metadata["place"]).items():
            setattr(self, name, value)
        progress.log(f"{self.file.stem}: resumed at step {self.step}")


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that can be saved: tied ones, as a masked language model has, each with its own memory."""
    seen: set[int] = set()
    out = {}
    for name, value in tensors.items():
        whole = value.detach().cpu().contiguous()
        out[name] = whole.clone() if whole.data_ptr() in seen else whole
        seen.add(whole.data_ptr())
    return out
