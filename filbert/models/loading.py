"""Loading models from local folders: never from the hub, without running code of the folder, and only if complete."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from filbert import FilbertError

LOCAL = {"local_files_only": True, "trust_remote_code": False}  # Filbert's own types are registered with transformers
FRESH = ("pooler", "position_ids")  # parts of an encoder that a checkpoint may lack or have in excess
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)  # what transformers raises for a bad folder


class ModelError(FilbertError):
    """A folder holds no model, or only a part of one."""


def check_model_folder(folder: Path) -> None:
    """Refuse what is no folder with a model's configuration and weights.

    Raises:
        ModelError: names what is missing.
    """
    if not folder.is_dir():
        raise ModelError(
            f"{folder}: no such folder; expected a model's folder, with config.json, *.safetensors and tokenizer.json"
        )
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise ModelError(
                f"{folder}: no {pattern}; expected a model's folder, saved by transformers with safetensors weights"
            )


def load_config(folder: Path) -> PreTrainedConfig:
    """The configuration of the model in a folder.

    Raises:
        ModelError: there is no model, or transformers cannot read its configuration.
    """
    check_model_folder(folder)
    try:
        return AutoConfig.from_pretrained(folder, **LOCAL)
    except UNREADABLE as error:
        raise ModelError(
            f"{folder / 'config.json'}: not a configuration that can be used: {_first_line(error)}"
        ) from error


def load_pretrained(auto_class: Any, folder: Path, fresh_head: bool = False, **fields: Any) -> PreTrainedModel:
    """The model in a folder, in float32, by one of transformers' Auto classes.

    Args:
        fresh_head: whether the checkpoint may have no head, or one of another shape; it is then new.
        fields: of its configuration, instead of those in the folder.

    Raises:
        ModelError: there is no model, weights are missing, left over, of another shape, or not finite.
    """
    load_config(folder)
    try:
        model, report = auto_class.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=fresh_head,
            **LOCAL, **fields,
        )  # fmt: skip
    except UNREADABLE as error:
        raise ModelError(f"{folder}: weights and configuration do not make a model: {_first_line(error)}") from error
    for what, names in (
        ("lack", report["missing_keys"]),
        ("have, beyond the configuration,", report["unexpected_keys"]),
        ("have, of another shape,", [name for name, *_ in report["mismatched_keys"]]),
    ):
        if wrong := sorted(name for name in names if not _may_differ(name, model.base_model_prefix, fresh_head)):
            raise ModelError(f"{folder}: its weights {what} {wrong[0]} and {len(wrong) - 1} others")
    check_finite(dict(model.named_parameters()), folder)
    return model


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of all safetensors files of a folder, by name.

    Raises:
        ModelError: there is no model, a file is damaged, or a weight is not finite.
    """
    check_model_folder(folder)
    try:
        tensors = {
            name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()
        }
    except UNREADABLE as error:
        raise ModelError(f"{folder}: its safetensors files are damaged: {_first_line(error)}") from error
    check_finite(tensors, folder)
    return tensors


def check_finite(tensors: dict[str, Tensor], folder: Path) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        ModelError: names the first tensor that has some.
    """
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ModelError(
                f"{folder}: {name} has values that are not finite; the file is damaged or its training diverged"
            )


def _may_differ(name: str, prefix: str, fresh_head: bool) -> bool:
    """Whether a tensor may be missing or left over: of a fresh head all outside the encoder, and what is computed anyway."""
    if fresh_head:
        return not name.startswith(f"{prefix}.") or any(part in name for part in FRESH)
    return "position_ids" in name


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
