"""Students start from the checkpoint's layers and load in a process that knows nothing of filbert."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import ROOT, find_task, load_without_filbert, student_logits, tiny_tokenizer
from transformers import BertConfig, BertForSequenceClassification, DistilBertConfig, DistilBertModel

from filbert.models import checkpoints
from filbert.models.bert import FilbertConfig, FilbertForSequenceClassification

SST2 = find_task("sst2")


def test_a_plain_student_loads_as_bert_without_filbert(checkpoint: Path, tmp_path: Path, python: Path) -> None:
    student = checkpoints.new_student(checkpoint, SST2, checkpoints.StudentConfig((1,)))
    checkpoints.save(student, tiny_tokenizer(), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "bert"
    assert not list(tmp_path.glob("*.py"))
    said = load_without_filbert(python, tmp_path, "plain", tmp_path)
    torch.testing.assert_close(torch.tensor(said["logits"]), torch.tensor(student_logits(student)))
    assert said["label"] in SST2.labels
    torch.testing.assert_close(
        torch.tensor(student_logits(checkpoints.load_model(tmp_path))), torch.tensor(student_logits(student))
    )


def test_any_other_student_carries_its_code(tmp_path: Path, python: Path) -> None:
    config = FilbertConfig(hidden_size=16, num_hidden_layers=2, head_size=4, layer_heads=[3, 1], layer_intermediate=[20, 7],
                           embedding_size=5, vocab_size=40, **checkpoints.label_fields(SST2))  # fmt: skip
    student = FilbertForSequenceClassification(config)
    checkpoints.save(student, tiny_tokenizer(), tmp_path / "student")
    assert (tmp_path / "student" / "bert.py").read_text() == (ROOT / "filbert" / "models" / "bert.py").read_text()
    said = load_without_filbert(python, tmp_path / "student", "trust", tmp_path)
    torch.testing.assert_close(torch.tensor(said["logits"]), torch.tensor(student_logits(student)))
    torch.testing.assert_close(
        torch.tensor(student_logits(checkpoints.load_model(tmp_path / "student"))),
        torch.tensor(student_logits(student)),
    )


def test_a_bert_shaped_teacher_is_our_encoder_and_is_saved_as_bert(checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = checkpoints.new_teacher(checkpoint, SST2).eval()
    assert isinstance(teacher, FilbertForSequenceClassification)
    checkpoints.save(teacher, tiny_tokenizer(), tmp_path)
    loaded = checkpoints.load_model(tmp_path)
    assert type(loaded) is BertForSequenceClassification
    torch.testing.assert_close(torch.tensor(student_logits(loaded)), torch.tensor(student_logits(teacher)))


def test_a_student_has_the_checkpoints_layers(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    student = checkpoints.new_student(checkpoint, SST2, checkpoints.StudentConfig((1, 0, 1))).state_dict()
    for new, old in enumerate((1, 0, 1)):
        name = "attention.self.key.weight"
        assert torch.equal(student[f"bert.encoder.layer.{new}.{name}"], weights[f"encoder.layer.{old}.{name}"])
    assert torch.equal(student["bert.embeddings.word_embeddings.weight"], weights["embeddings.word_embeddings.weight"])
    assert torch.equal(student["bert.pooler.dense.weight"], weights["pooler.dense.weight"])


@pytest.mark.parametrize("layers", [(0, 2), (-1,), ()])
def test_layers_the_checkpoint_lacks_are_refused(checkpoint: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(checkpoints.ShapeError, match="expected numbers from 0 to 1"):
        checkpoints.new_student(checkpoint, SST2, checkpoints.StudentConfig(layers))


def test_a_checkpoint_that_is_no_bert_can_teach_but_not_be_cut(tmp_path: Path) -> None:
    shape = DistilBertConfig(dim=16, n_layers=2, n_heads=4, hidden_dim=32, vocab_size=40)
    DistilBertModel(shape).save_pretrained(tmp_path)
    teacher = checkpoints.new_teacher(tmp_path, SST2)
    assert teacher.config.num_labels == 2
    with pytest.raises(
        checkpoints.ShapeError, match="expected a BERT-shaped checkpoint to cut a student from, got distilbert"
    ):
        checkpoints.new_student(tmp_path, SST2, checkpoints.StudentConfig((0,)))


def test_tensorflows_names_are_understood(checkpoint: Path, tmp_path: Path) -> None:
    """google-bert/bert-base-uncased calls the scale and shift of its layer norms gamma and beta."""
    folder, names = shutil.copytree(checkpoint, tmp_path / "old"), {"weight": "gamma", "bias": "beta"}
    weights = load_file(folder / "model.safetensors")
    renamed = {re.sub(r"LayerNorm\.(\w+)$", lambda m: f"LayerNorm.{names[m[1]]}", n): v for n, v in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    shape = checkpoints.StudentConfig((1, 0))
    one, two = (checkpoints.new_student(path, SST2, shape).state_dict() for path in (folder, checkpoint))
    assert all(torch.equal(one[name], two[name]) for name in one if not name.startswith("classifier."))


def test_missing_weights_are_refused_not_invented(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    BertConfig.from_pretrained(folder, num_hidden_layers=3).save_pretrained(folder)
    with pytest.raises(checkpoints.ShapeError, match=r"weights lack bert\.encoder\.layer\.0"):
        checkpoints.new_student(folder, SST2, checkpoints.StudentConfig((2,)))
