"""BiLSTM students in training: what they start as, the order in which they thaw, what each stage learns (methods/bilstm.py)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filbert import FilbertError, students
from filbert.bilstm import BiLstmConfig, BiLstmForSequenceClassification
from filbert.data import Batch
from filbert.device import seed_everything
from filbert.students import ask
from filbert.study import Study

Loss = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class ShapeConfig:
    """The student's sizes; its dense layer is as wide as what the teacher's head reads."""

    embedding: int
    lstm: int  # units of one direction
    pooling: Literal["last", "max"]  # the paper's, or that of the first version's code, over time
    dropout: float
    start: Literal["svd", "random"]  # of the embedding: the strongest directions of the teacher's table, or noise


def new_bilstm(study: Study, shape: ShapeConfig) -> BiLstmForSequenceClassification:
    """A fresh student whose embedding has the pieces seen in training alone; all others share the mean of those.

    Raises:
        FilbertError: the embedding is wider than the teacher's table, whose directions it would start as.
    """
    seed_everything(study.seed)
    table = students.load(study.teacher).get_input_embeddings().weight.detach()  # type: ignore[operator]
    if shape.start == "svd" and shape.embedding > table.shape[1]:
        raise FilbertError(f"shape.embedding: expected at most {table.shape[1]}, the teacher's; got {shape.embedding}")
    seen = torch.from_numpy(np.unique(study.train.ids).astype(np.int64))
    config = BiLstmConfig(
        vocab_size=len(table),
        kept_pieces=len(seen) + 1,
        embedding_size=shape.embedding,
        lstm_size=shape.lstm,
        hidden_size=study.cache.width("pooled"),
        pooling=shape.pooling,
        dropout=shape.dropout,
        **students.labels(study.task),
    )
    student = BiLstmForSequenceClassification(config)
    student.rows[seen] = torch.arange(1, len(seen) + 1, dtype=torch.int32)
    if shape.start == "svd":
        u, s, _ = torch.linalg.svd(table[seen].float(), full_matrices=False)
        strongest = (u * s)[:, : shape.embedding]
        with torch.no_grad():
            student.embedding.weight.copy_(torch.cat([strongest.mean(0, keepdim=True), strongest]))
    return student


def unfrozen(student: BiLstmForSequenceClassification, step_by_step: bool) -> Iterator[str]:
    """Thaw the student from the top, one part more each time, and name the part; or all of it at once."""
    parts: dict[str, nn.Module] = {
        "head": student.classifier, "dense": student.dense, "lstm": student.lstm, "embedding": student.embedding
    }  # fmt: skip
    student.requires_grad_(not step_by_step)
    for name, part in parts.items() if step_by_step else [("all", student)]:
        part.requires_grad_(True)
        yield name


def new_head(student: BiLstmForSequenceClassification, seed: int) -> None:
    """Forget the head, as stage 3 of the official code does."""
    seed_everything(seed)
    student.classifier.reset_parameters()


def learn_representation(student: BiLstmForSequenceClassification) -> Loss:
    """Squared error to what the teacher's head reads."""
    return lambda batch: F.mse_loss(ask(student, batch).hidden_states[0].float(), batch.teacher["pooled"].float())


def learn_logits(student: BiLstmForSequenceClassification) -> Loss:
    """Half the squared error of the logits (section 3.3: no temperature)."""
    return lambda batch: F.mse_loss(ask(student, batch).logits.float(), batch.teacher["logits"]) / 2
