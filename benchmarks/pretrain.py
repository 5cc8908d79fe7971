"""How fast stage II of pretraining goes, and what share of the machine's matrix multiplication that is.

| arm | what |
| --- | --- |
| as it is | a step of `pretrain.NAME`: `device.precision`, fused AdamW, a softmax where a word is hidden |
| float32 | the same without mixed precision |
| softmax everywhere | the same with a softmax at every place |
| compiled | the same through `torch.compile` |
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.turns import in_turn, machine, ratios
from filbert.data import batches
from filbert.data.batches import Batch, TokenizedDataset
from filbert.methods.mixed_vocabulary import PretrainConfig, new_student
from filbert.runtime import config, device
from filbert.runtime.files import write_text
from filbert.text import corpus
from filbert.text.masked_lm import MaskedLanguageModel, mask_tokens
from filbert.text.vocabulary import new_vocabulary
from filbert.training.loop import new_optimizer

WORDS = 200_000  # of the corpus at least, whole texts
SQUARE = 2048  # rows and columns of the product that stands for the machine


def main(
    name: str,
    words: Path,
    checkpoint: Path,
    out: Annotated[Path, typer.Argument(help="the Markdown file to write")],
    rounds: int = 5,
    steps: Annotated[int, typer.Option(help="of an arm in a round")] = 8,
) -> None:
    """Measure steps of the student that params.yaml describes under `pretrain.NAME`, on the corpus WORDS."""
    settings, on = config.section(f"pretrain.{name}", PretrainConfig), device.select_device()
    read = corpus.read_corpus(words / corpus.TEXT)
    few = read.select(np.concatenate([[0], read.ends[:-1]]) < WORDS)
    tokenizer = new_vocabulary(few, settings.vocabulary_size, batches.load_tokenizer(checkpoint), settings.block_length)
    rows = corpus.pack_blocks(few, [corpus.WordTokens(few.words, tokenizer)], 0.0, settings.block_length, 0)
    arms = {
        "as it is": _arm(settings, tokenizer, rows, on, steps),
        "float32": _arm(settings, tokenizer, rows, on, steps, mixed=False),
        "softmax everywhere": _arm(settings, tokenizer, rows, on, steps, everywhere=True),
        "compiled": _arm(settings, tokenizer, rows, on, steps, compiled=True),
    }
    with FlopCounterMode(display=False) as counter:
        arms["as it is"]()
    arms["compiled"]()  # compiles
    kind = getattr(torch, device.precision(on))
    square = torch.randn(SQUARE, SQUARE, device=on, dtype=kind)
    out_of = torch.empty_like(square)

    def multiply() -> None:
        torch.matmul(square, square, out=out_of)

    times = in_turn({**arms, "product": multiply}, rounds)
    product = 2 * SQUARE**3 / np.median(times.pop("product"))
    reached = counter.get_total_flops() / np.median(times["as it is"])
    shape = settings.shape
    parts = [
        "# Pretraining: how fast",
        f"Measured by `python -m benchmarks.pretrain {name}`: {shape.layers} × {shape.width}, {len(tokenizer)} tokens, batches of "
        f"{settings.training.batch_size} blocks of {settings.block_length}, "
        f"{rounds} rounds of {steps} steps in turn, {machine(on)}.",
        ratios(times, steps * settings.training.batch_size * settings.block_length, "tokens/s"),
        f"As it is: {reached / 1e9:.0f} billion operations a second in matrix products and attention, "
        f"{100 * reached / product:.0f} % of the {product / 1e9:.0f} that one product of {SQUARE} × {SQUARE} reaches here in "
        f"{device.precision(on)}.",
    ]
    write_text(out, "\n\n".join(parts) + "\n")
    print(out.read_text())


def _arm(
    settings: PretrainConfig, tokenizer: batches.PreTrainedTokenizerBase, rows: TokenizedDataset, on: torch.device, steps: int,
    mixed: bool = True, everywhere: bool = False, compiled: bool = False,
) -> Callable[[], None]:  # fmt: skip
    torch.manual_seed(0)
    model = MaskedLanguageModel(new_student(tokenizer, settings.shape), tokenizer, on)
    model.model.train()
    optimizer = new_optimizer(model.model, settings.training)

    def all_places(batch: Batch) -> Tensor:
        ids, at = mask_tokens(batch, [model.vocabulary])
        logits = model.model(input_ids=ids, attention_mask=batch.mask).logits
        return F.cross_entropy(logits[at].float(), batch.ids[at])

    loss = all_places if everywhere else model.loss
    if compiled:
        model.model.bert = torch.compile(model.model.bert)

    def run() -> None:
        for start in range(0, steps * settings.training.batch_size, settings.training.batch_size):
            batch = rows.batch(np.arange(start, start + settings.training.batch_size) % len(rows)).to(on)
            with device.autocast(on) if mixed else nullcontext():
                value = loss(batch)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()

    return run


if __name__ == "__main__":
    typer.run(main)
