"""Exported folders asked about text: the same answers as through transformers and torch, no torch imported, bad input refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_files import MODELS, export_folder, reference_student, saved
from tiny import ROOT, sentences, tiny_tokenizer

import filbert
from commands.predict import predict
from commands.serve import serve
from filbert import FilbertError
from filbert.data import batches
from filbert.export import folder as folders
from filbert.export.inference import TextError, open_model, word_starts
from filbert.export.references import References
from filbert.export.release import write_release
from filbert.models import checkpoints
from filbert.models.reference_store import ReferenceStore
from filbert.runtime.files import read_json, write_json
from filbert.runtime.seals import SealError, seal

TEXTS = [text for text, _ in sentences(20)] + ["bad", "the film " * 30]


def test_answers_are_those_of_transformers(tmp_path: Path, teacher: Path) -> None:
    found = filbert.load(export_folder(teacher, tmp_path / "out")).predict(TEXTS, every=True)
    tokens = tiny_tokenizer()(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.inference_mode():
        wanted = checkpoints.load_model(teacher)(**tokens).logits.softmax(-1).numpy()
    assert np.allclose([list(answer["probabilities"].values()) for answer in found], wanted, atol=1e-4)
    assert [answer["label"] for answer in found] == [("negative", "positive")[row.argmax()] for row in wanted]
    assert np.allclose([answer["probability"] for answer in found], wanted.max(-1), atol=1e-4)


def test_neither_the_budget_nor_workers_change_an_answer(tmp_path: Path, teacher: Path) -> None:
    model = filbert.load(export_folder(teacher, tmp_path / "out"), threads=1)
    wanted = model.predict(TEXTS)
    for found in (model.predict(TEXTS, tokens=1), model.predict(TEXTS, tokens=40, workers=3)):
        assert [answer["label"] for answer in found] == [answer["label"] for answer in wanted]
        assert np.allclose([a["probability"] for a in found], [a["probability"] for a in wanted], atol=1e-5)
    assert model.predict([]) == []


@pytest.mark.parametrize("kind", ["nearest", "random", "zero"])
def test_references_are_found_without_torch(kind: str, tmp_path: Path, encoded: batches.TokenizedDataset) -> None:
    student = reference_student(tmp_path / "model", encoded, kind=kind)
    batch = encoded.batch(np.arange(9))
    wanted = ReferenceStore(student / "references")(batch.ids, batch.mask)
    rows = [row[real].tolist() for row, real in zip(batch.ids, batch.mask, strict=True)]
    found = References(student / "references")(rows).values()
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.array_equal(ours, theirs.numpy())


def test_a_student_with_references_answers_as_its_torch_folder(
    tmp_path: Path, encoded: batches.TokenizedDataset
) -> None:
    torch.manual_seed(0)
    student = reference_student(tmp_path / "model", encoded)
    write_json(student / "provenance.json", {"tokenizer/max_length": 16})
    ours, theirs = filbert.load(export_folder(student, tmp_path / "out")), filbert.load(student)
    for a, b in zip(ours.predict(TEXTS), theirs.predict(TEXTS), strict=True):
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)


@pytest.mark.parametrize("kind", ["bilstm, max", "uneven widths, factorised", "distilbert"])
def test_an_export_answers_as_its_torch_folder(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = saved(MODELS[kind](), tmp_path / "model")
    provenance = {"stage": "distill", "task": "sst2", "method": "kd", "seed": "1", "tokenizer/max_length": 16}
    write_json(student / "provenance.json", provenance)
    ours, theirs = filbert.load(export_folder(student, tmp_path / "out")), filbert.load(student)
    for a, b in zip(ours.predict(TEXTS), theirs.predict(TEXTS), strict=True):
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)


def test_tags_are_those_of_the_words_first_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    labels = tuple("O B-PER I-PER B-ORG I-ORG B-LOC I-LOC".split())
    student = saved(MODELS["bert, tags"](), tmp_path / "model")
    model = filbert.load(export_folder(student, tmp_path / "out", kind="tagging", labels=labels))
    text = "  the dogs\tsleeps  cats unknownword " + "film " * 20
    (answer,) = model.predict([text])
    assert [word for word, _ in answer["tags"]] == text.split()
    assert answer["tags"][-1][1] == "O"
    tokens = tiny_tokenizer()(text, return_offsets_mapping=True)
    assert word_starts(tokens[0], text) == batches._words(tokens[0], (text,)).tolist()
    (more,) = model.predict([text], every=True)
    assert [row[1] for row in more["tags"]] == [max(row[2], key=row[2].get) for row in more["tags"]]


def test_pairs_and_regression(tmp_path: Path, teacher: Path) -> None:
    pairs = filbert.load(export_folder(teacher, tmp_path / "pairs", kind="pair", columns=("question", "answer")))
    assert pairs.predict([("the film", "is good")]) != pairs.predict([("the film is", "good")])
    with pytest.raises(TextError, match=r"text 2: expected a pair of texts \(question, answer\), got one text"):
        pairs.predict([("a", "b"), "c"])
    numbers = filbert.load(export_folder(teacher, tmp_path / "numbers", kind="regression", labels=()))
    assert set(numbers.predict(["the film"])[0]) == {"score"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected text in sentence, got an empty one"),
        (" \n", "got an empty one"),
        (None, "expected text in sentence, got None"),
        (3, "expected text in sentence, got 3"),
        ("a \ud800", "expected valid Unicode in sentence, got a lone surrogate"),
        (("a", "b"), "expected one text .*, got a pair"),
    ],
)
def test_what_is_no_text_is_refused(text: object, problem: str, tmp_path: Path, teacher: Path) -> None:
    model = filbert.load(export_folder(teacher, tmp_path / "out"))
    with pytest.raises(TextError, match=f"text 2: .*{problem}"):
        model.predict(["good", text])  # type: ignore[list-item]


def test_abstaining_needs_a_threshold(tmp_path: Path, teacher: Path) -> None:
    thresholds = {"0.9": {"threshold": 2.0, "coverage": 0.0}, "0.5": {"threshold": 0.5, "coverage": 1.0}}
    model = filbert.load(export_folder(teacher, tmp_path / "out", thresholds=thresholds))
    assert model.predict(["good"], abstain=0.9)[0]["label"] is None
    assert model.predict(["good"], abstain=0.5)[0]["label"]
    with pytest.raises(FilbertError, match=r"abstain: expected a precision .* \(0.9, 0.5\), got 0.7"):
        model.predict(["good"], abstain=0.7)


def test_an_export_runs_without_torch(tmp_path: Path, teacher: Path) -> None:
    code = (
        "import sys, json, filbert\n"
        "answer = filbert.load(sys.argv[1]).predict(['the film was great'])\n"
        "heavy = [name for name in ('torch', 'transformers', 'sklearn', 'mlflow', 'pyarrow') if name in sys.modules]\n"
        "print(json.dumps([answer, heavy]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(export_folder(teacher, tmp_path / "out"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (answer,), heavy = json.loads(done.stdout)
    assert answer["label"] in ("negative", "positive")
    assert not heavy


def test_int8_on_another_processor_warns_as_its_release_does(tmp_path: Path, teacher: Path) -> None:
    folder = export_folder(teacher, tmp_path / "out", model=folders.INT8, flags="avx2 of long ago")
    (folder / folders.FLOAT32).rename(folder / folders.INT8)
    write_release(folder, folders.INT8, tmp_path / "release", 1.0)
    for model in (folder, tmp_path / "release"):
        with pytest.warns(UserWarning, match="was measured on a processor with avx2 of long ago, this one has"):
            filbert.load(model)
    with pytest.raises(FilbertError, match="expected an exported model, found no file"):
        open_model(tmp_path / "release", file=folders.FLOAT32)
    (folder / folders.INT8).rename(folder / folders.FLOAT32)
    assert open_model(folder, file=folders.FLOAT32).card.model == folders.FLOAT32  # not what the folder publishes


def test_a_torch_folder_is_asked_where_params_are_another_projects(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("train: {lr: 1}\n")
    shutil.copytree(teacher, tmp_path / "model")
    write_json(tmp_path / "model" / "provenance.json", {"task": "sst2", "tokenizer/max_length": 16})
    assert "label" in filbert.load(tmp_path / "model").predict(["good"])[0]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "expected the config.json of a trained or exported model"),
        ("config.json", "{", "expected JSON"),
        ("config.json", "[]", "expected a JSON object"),
        ("model.onnx", None, "expected an exported model, found no file"),
        ("model.onnx", "rubbish", "expected an ONNX graph"),
        ("tokenizer.json", None, "expected the tokenizer beside the model"),
        ("tokenizer.json", "{}", "expected a tokenizer"),
    ],
)
def test_a_broken_folder_is_named(file: str, content: str | None, said: str, tmp_path: Path, teacher: Path) -> None:
    folder = export_folder(teacher, tmp_path / "out")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(FilbertError, match=said):
        filbert.load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"more": 1}, "unknown key `more`"),
        ({"columns": "sentence"}, "columns: expected tuple"),
        ({"max_length": "16"}, "max_length: expected int, got '16'"),
        ({"max_length": 0}, "max_length: expected a number of at least 1"),
        ({"temperature": 0.0}, "temperature: expected a number of more than 0"),
        ({"labels": ["negative", 1]}, r"labels\[1\]: expected str, got 1"),
        ({"thresholds": {"0.9": 0.5}}, "thresholds.0.9: expected"),
        (
            {"kind": "tripel"},
            "expected one of single, pair, multilabel, regression, tagging and its columns, got tripel",
        ),
        ({"kind": "pair"}, r"got pair with \('sentence',\)"),
        ({"labels": ["one"]}, "model.onnx: expected 1 logits, for labels of config.json, found 2"),
    ],
)
def test_a_card_that_says_something_else_is_refused(change: dict, said: str, tmp_path: Path, teacher: Path) -> None:
    folder = export_folder(teacher, tmp_path / "out")
    write_json(folder / "config.json", read_json(folder / "config.json") | change)
    with pytest.raises(FilbertError, match=f"{folder}.*{said}.*: export the model again"):
        filbert.load(folder)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(FilbertError, match="found no folder"):
        filbert.load(tmp_path / "nowhere")


def sealed(folder: Path) -> Path:
    """An export as its stage leaves it, with a card."""
    (folder / "README.md").write_text("# kd\n")
    seal(folder)
    return folder


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "config.json"])
def test_one_flipped_bit_is_named(name: str, tmp_path: Path, teacher: Path) -> None:
    folder = sealed(export_folder(teacher, tmp_path / "out"))
    content = (folder / name).read_bytes()
    for at in (8, len(content) // 2, len(content) - 9):
        (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(
            SealError, match=rf"{folder / name}: expected what its stage wrote, XXH3 \w+, found \w+: .* damaged"
        ):
            filbert.load(folder)
    (folder / name).unlink()
    with pytest.raises(SealError, match=f"{folder / name}: missing"):
        filbert.load(folder)


def test_predict_and_serve_name_it_too(tmp_path: Path, teacher: Path) -> None:
    folder = sealed(export_folder(teacher, tmp_path / "out"))
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace('"film"', '"fiim"'))
    for command in (lambda: predict(folder, ["good"]), lambda: serve(folder)):
        with pytest.raises(SealError, match=f"{folder / 'tokenizer.json'}: expected what its stage wrote"):
            command()


def test_an_edited_card_is_no_damage(tmp_path: Path, teacher: Path) -> None:
    folder = sealed(export_folder(teacher, tmp_path / "out"))
    (folder / "README.md").write_text("# ours\n")
    assert filbert.load(folder).predict(["good"])
