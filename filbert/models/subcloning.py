"""Weight subcloning (Samragh et al. 2023, arXiv 2312.09299): a small masked language model starts as a part of a large one.

Kept are layers at equal distances; the same numbers of every state; and of each layer heads and neurons: those of the largest mean
magnitude over some text. What reads and writes them is copied, with the LayerNorms' weights for them. The ranking, its one order of
the states for all layers, and the removal of layers are the paper's; whole heads, and weights that are not scaled, are our
reconstruction.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from filbert.data.batches import Batch
from filbert.models.checkpoints import ShapeError
from filbert.models.pruning import KeptUnits, UnitScores, slice_parameter, top_k

LAYER = "bert.encoder.layer."
READERS = HEADS, NEURONS = "attention.output.dense", "output.dense"  # of a layer's heads, of its neurons
READS = ("attention.self.", "intermediate.")  # parts of a layer that read states and write something else


@dataclass(frozen=True)
class SubcloneSelection:
    """What is kept of a model: layers, numbers of the states, and what each of those layers keeps."""

    layers: list[int]
    states: Tensor
    inner: list[KeptUnits]


def select_units(
    model: PreTrainedModel, layers: int, width: int, heads: int, neurons: int, batch: Batch
) -> SubcloneSelection:
    """What a student of some shape keeps of `model`, told by some text.

    Raises:
        ShapeError: the model is no BERT, or has no such part.
    """
    config = model.config
    if not isinstance(model, BertForMaskedLM):
        raise ShapeError(f"start subclone: expected a BERT-shaped checkpoint, got {config.model_type}")
    size = config.hidden_size // config.num_attention_heads
    most = (config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    if any(a > b for a, b in zip((layers, width, neurons), most, strict=True)) or heads * size != width:
        raise ShapeError(
            f"start subclone: expected a part of the checkpoint: at most {most[0]} layers, a width of {most[1]} in heads of {size} "
            f"and {most[2]} neurons; got {layers} layers, a width of {width} in {heads} heads, {neurons}"
        )
    states, of_layers = _magnitudes(model, batch)
    kept = [i * config.num_hidden_layers // layers for i in range(layers)]
    inner = top_k([of_layers[i] for i in kept], heads, neurons)
    return SubcloneSelection(kept, states.topk(width).indices.sort().values, inner)


def _magnitudes(model: BertForMaskedLM, batch: Batch) -> tuple[Tensor, list[UnitScores]]:
    """Mean magnitudes of the states' numbers [D], over all layers, and of each layer's heads and neurons."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., None]:
        def see(_: nn.Module, read: tuple[Tensor, ...], written: Tensor) -> None:
            seen = read[0] if name.endswith(READERS) else written
            found[name] = seen.abs().flatten(0, -2).mean(0)

        return see

    hooks = [
        module.register_forward_hook(watch(name))
        for name, module in model.bert.named_modules()
        if name.endswith((*READERS, "LayerNorm"))
    ]
    with torch.inference_mode():
        model.bert(input_ids=batch.ids, attention_mask=batch.mask)
    for hook in hooks:
        hook.remove()
    states = torch.stack([value for name, value in found.items() if name.endswith("LayerNorm")]).mean(0)
    size = model.config.hidden_size // model.config.num_attention_heads
    return states, [
        UnitScores(
            found[f"encoder.layer.{i}.{HEADS}"].unflatten(0, (-1, size)).mean(1), found[f"encoder.layer.{i}.{NEURONS}"]
        )
        for i in range(model.config.num_hidden_layers)
    ]


def subclone(model: PreTrainedModel, part: SubcloneSelection, table: Tensor, bias: Tensor, pad: int) -> BertForMaskedLM:
    """The part as a model of its own, whose word embeddings [V, W] and output bias [V] are given."""
    wide, first = model.config, part.inner[0]
    size = wide.hidden_size // wide.num_attention_heads
    config = BertConfig(
        **wide.to_dict()
        | {
            "vocab_size": len(table), "hidden_size": len(part.states), "num_hidden_layers": len(part.layers), "pad_token_id": pad,
            "num_attention_heads": len(first.heads), "intermediate_size": len(first.neurons),
        }
    )  # fmt: skip
    student = BertForMaskedLM(config)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    given = {"bert.embeddings.word_embeddings.weight": table, "cls.predictions.bias": bias}
    given |= {"cls.predictions.decoder.weight": table, "cls.predictions.decoder.bias": bias}

    def of(name: str) -> Tensor:
        if name in given:
            return given[name]
        if not name.startswith(LAYER):
            value = weights[name]
        else:
            number, inner = name.removeprefix(LAYER).split(".", 1)
            value = slice_parameter(
                weights[f"{LAYER}{part.layers[int(number)]}.{inner}"], inner, part.inner[int(number)], size
            )
        for dimension in _of_states(name, value.dim()):
            value = value.index_select(dimension, part.states)
        return value

    student.load_state_dict({name: of(name) for name in student.state_dict()})
    return student


def _of_states(name: str, dimensions: int) -> tuple[int, ...]:
    """Which dimensions of a tensor are numbers of the states."""
    if any(part in name for part in READS):
        return (1,) if dimensions == 2 else ()
    if name.startswith(LAYER):
        return (0,)
    return tuple(range(dimensions)) if name.startswith("cls.") else (dimensions - 1,)
