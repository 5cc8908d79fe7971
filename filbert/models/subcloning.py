"""Weight subcloning (Samragh et al. 2023, arXiv 2312.09299): a small masked language model starts as a part of a large one.

Kept are layers at equal distances, the same dimensions of the hidden states everywhere, and heads and neurons of each layer: those
with the largest mean magnitude over some text. The weights that belong to them are copied. The ranking, its single order of the
dimensions for all layers, and the removal of layers are the paper's; whole heads, and weights that are not rescaled, are our
reconstruction.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from filbert.data.batches import Batch
from filbert.models.checkpoints import LAYER, ShapeError
from filbert.models.pruning import KeptUnits, UnitScores, slice_parameter, top_k

UNITS = HEADS, NEURONS = (
    "attention.output.dense",
    "output.dense",
)  # modules whose inputs are a layer's heads, its neurons
FROM_STATES = ("attention.self.", "intermediate.")  # parts of a layer whose inputs, but not outputs, are hidden states


@dataclass(frozen=True)
class SubcloneSelection:
    """The part of a model that is kept."""

    layers: list[int]
    states: Tensor  # dimensions of the hidden states, ascending
    units: list[KeptUnits]  # of each of those layers


def select_units(
    model: PreTrainedModel, layers: int, width: int, heads: int, neurons: int, batch: Batch
) -> SubcloneSelection:
    """The part of `model` that a student of this shape keeps, by magnitudes on a batch of text.

    Raises:
        ShapeError: the model is no BERT, or is smaller.
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
    states, scores = _magnitudes(model, batch)
    kept = [i * config.num_hidden_layers // layers for i in range(layers)]
    units = top_k([scores[i] for i in kept], heads, neurons)
    return SubcloneSelection(kept, states.topk(width).indices.sort().values, units)


def _magnitudes(model: BertForMaskedLM, batch: Batch) -> tuple[Tensor, list[UnitScores]]:
    """Mean magnitudes of the hidden states' dimensions [D] over all layers, and of each layer's heads and neurons."""
    means: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[..., None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            values = inputs[0] if name.endswith(UNITS) else output
            means[name] = values.abs().flatten(0, -2).mean(0)

        return record

    hooks = [
        module.register_forward_hook(recorder(name))
        for name, module in model.bert.named_modules()
        if name.endswith((*UNITS, "LayerNorm"))
    ]
    with torch.inference_mode():
        model.bert(input_ids=batch.ids, attention_mask=batch.mask)
    for hook in hooks:
        hook.remove()
    states = torch.stack([value for name, value in means.items() if name.endswith("LayerNorm")]).mean(0)
    size = model.config.hidden_size // model.config.num_attention_heads
    return states, [
        UnitScores(
            means[f"encoder.layer.{i}.{HEADS}"].unflatten(0, (-1, size)).mean(1), means[f"encoder.layer.{i}.{NEURONS}"]
        )
        for i in range(model.config.num_hidden_layers)
    ]


def subclone(model: PreTrainedModel, part: SubcloneSelection, table: Tensor, bias: Tensor, pad: int) -> BertForMaskedLM:
    """The part as a model of its own, with the word embeddings `table` [V, W] and the output bias [V]; `pad` is a token id."""
    large, first = model.config, part.units[0]
    size = large.hidden_size // large.num_attention_heads
    config = BertConfig(
        **large.to_dict()
        | {
            "vocab_size": len(table), "hidden_size": len(part.states), "num_hidden_layers": len(part.layers), "pad_token_id": pad,
            "num_attention_heads": len(first.heads), "intermediate_size": len(first.neurons),
        }
    )  # fmt: skip
    student = BertForMaskedLM(config)
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    given = {"bert.embeddings.word_embeddings.weight": table, "cls.predictions.bias": bias}
    given |= {"cls.predictions.decoder.weight": table, "cls.predictions.decoder.bias": bias}

    def copied(name: str) -> Tensor:
        if name in given:
            return given[name]
        if not name.startswith(LAYER):
            value = weights[name]
        else:
            number, inner = name.removeprefix(LAYER).split(".", 1)
            value = slice_parameter(
                weights[f"{LAYER}{part.layers[int(number)]}.{inner}"], inner, part.units[int(number)], size
            )
        for dimension in _state_dimensions(name, value.dim()):
            value = value.index_select(dimension, part.states)
        return value

    student.load_state_dict({name: copied(name) for name in student.state_dict()})
    return student


def _state_dimensions(name: str, dimensions: int) -> tuple[int, ...]:
    """The dimensions of a tensor that run over the hidden states."""
    if any(part in name for part in FROM_STATES):
        return (1,) if dimensions == 2 else ()
    if name.startswith(LAYER):
        return (0,)
    return tuple(range(dimensions)) if name.startswith("cls.") else (dimensions - 1,)
