"""What is no whole model in a local folder is refused in one line; the hub is not asked and no foreign code runs."""

import json
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import find_task, tiny_config
from transformers import BertForMaskedLM, BertForSequenceClassification

from filbert import FilbertError
from filbert.data.batches import load_tokenizer
from filbert.models import checkpoints
from filbert.models.loading import ModelError

SST2 = find_task("sst2")


def configure(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def foreign(folder: Path) -> None:
    (folder / "evil.py").write_text("open('it_ran', 'w')\n")
    configure(
        folder,
        model_type="unknown",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"},
    )


BAD = {
    "no folder": (lambda f: shutil.rmtree(f), "no such folder"),
    "no configuration": (lambda f: (f / "config.json").unlink(), r"no config\.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not a configuration that can be used"),
    "pickled weights alone": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"no \*\.safetensors"),
    "foreign code": (foreign, "not a configuration that can be used"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"half"), "do not make a model|damaged"),
    "no head": (lambda f: change_weights(f, lambda w: w.pop("classifier.weight")), r"lack classifier\.weight and 0 others"),
    "a layer missing": (lambda f: configure(f, num_hidden_layers=3), r"lack bert\.encoder\.layer\.2.* and 15 others"),
    "a layer dropped": (lambda f: configure(f, num_hidden_layers=1), r"beyond the configuration, bert\.encoder\.layer\.1"),
    "another vocabulary": (lambda f: configure(f, vocab_size=99), "weights and configuration do not make a model"),
    "not finite": (lambda f: change_weights(f, lambda w: w["classifier.bias"].fill_(torch.nan)), r"classifier\.bias has values"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_whole_model_is_refused(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked whether code may run"))
    folder = shutil.copytree(teacher, tmp_path / "students" / "kd")
    spoil, message = BAD[name]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as error:
        checkpoints.load_model(folder)
    assert str(folder) in str(error.value)
    assert not (tmp_path / "it_ran").exists()


def test_a_path_that_is_no_folder_is_never_looked_up_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    for call in (checkpoints.load_model, checkpoints.all_layers, load_tokenizer, checkpoints.read_weights):
        with pytest.raises(FilbertError, match=r"students/kd2: no "):
            call(Path("students/kd2"))
    with pytest.raises(ModelError, match="students/kd2: no such folder"):
        checkpoints.new_teacher(Path("students/kd2"), SST2)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "no tokenizer; expected"), ("{}", "not a tokenizer that can be used")]
)
def test_a_folder_without_a_tokenizer_is_refused(
    teacher: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    folder = shutil.copytree(teacher, tmp_path / "teacher")
    (folder / "tokenizer.json").unlink()
    if content:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(FilbertError, match=message):
        load_tokenizer(folder)


def test_a_teacher_takes_a_checkpoint_with_another_head_but_not_half_an_encoder(
    checkpoint: Path, tmp_path: Path
) -> None:
    BertForMaskedLM(tiny_config()).save_pretrained(tmp_path / "masked")
    assert checkpoints.new_teacher(tmp_path / "masked", SST2).config.num_labels == 2
    BertForSequenceClassification(tiny_config()).save_pretrained(tmp_path / "two")
    three = replace(SST2, labels=("a", "b", "c"))
    assert checkpoints.new_teacher(tmp_path / "two", three).classifier.weight.shape[0] == 3
    student = checkpoints.new_student(tmp_path / "two", three, checkpoints.StudentConfig((0,)))
    assert student.classifier.weight.shape[0] == 3
    for layers in (1, 3):
        configure(tmp_path / "masked", num_hidden_layers=layers)
        with pytest.raises(
            ModelError, match=r"its weights (lack|have, beyond the configuration,) bert\.encoder\.layer"
        ):
            checkpoints.new_teacher(tmp_path / "masked", SST2)


def test_a_student_is_not_cut_from_weights_that_are_not_finite(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    change_weights(folder, lambda weights: weights["pooler.dense.bias"].fill_(torch.inf))
    with pytest.raises(ModelError, match=r"pooler\.dense\.bias has values that are not finite"):
        checkpoints.new_student(folder, SST2, checkpoints.StudentConfig((0,)))
