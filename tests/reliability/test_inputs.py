"""What users get wrong: each setting of params.yaml in several ways, and drawn damage to raw tables and models. Nothing is accepted
in silence, and nothing comes of it but our own error, which names the key or the file."""

import copy
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from settings import build_everything
from tiny import PARAMS, WORDS, find_task, sentences, write_conll

from filbert import FilbertError
from filbert.data import arrow, batches, row_validation
from filbert.models import checkpoints
from filbert.runtime import config

DOCUMENT = config.read_params(PARAMS)
DRAWN = 60  # damaged copies of each file
Path_ = tuple[str, ...]


def numbers(section: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The paths of all numbers that are in no list."""
    if isinstance(section, dict):
        for name, item in section.items():
            yield from numbers(item, (*path, name))
    elif type(section) in (int, float):
        yield path


NUMBERS = list(numbers(DOCUMENT))
SIGNED = {"gate", "seed"}  # settings that may be negative


def changed(path: Path_, change: Callable[[dict[str, Any], str], None]) -> dict[str, Any]:
    """The shipped settings with the section of a path changed."""
    document = copy.deepcopy(DOCUMENT)
    section = document
    for name in path[:-1]:
        section = section[name]
    change(section, path[-1])
    return document


def put(value: object) -> Callable[[dict[str, Any], str], None]:
    """Set a key to a value."""
    return lambda section, key: section.__setitem__(key, value)


WRONG: dict[str, Callable[[dict[str, Any], str], None]] = {
    "a word": put("many"),
    "not a number": put(float("nan")),
    "infinite": put(float("inf")),
    "a list": put([1]),
    "a section": put({"a": 1}),
    "yes": put(True),
    "far below zero": put(-(10**9)),
    "misspelt": lambda section, key: section.__setitem__(f"{key}s", section.pop(key)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_every_number_of_the_settings_is_refused_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """154 and more numbers in 8 ways; the key is named."""
    accepted, not_named = [], []
    for path in NUMBERS:
        if wrong == "far below zero" and path[-1] in SIGNED:
            continue
        document = changed(path, WRONG[wrong])
        monkeypatch.setattr(config, "read_params", lambda params=PARAMS, document=document: document)
        said = refusal(lambda: build_everything(PARAMS))
        if not said:
            accepted.append(".".join(path))
        elif path[-1] not in said:
            not_named.append((".".join(path), said))
    assert len(NUMBERS) > 120
    assert (accepted, not_named) == ([], [])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.batch_size", -8, "expected a number of at least 1, got -8"),
        ("training.epochs", -1, "expected a number of at least 0, got -1"),
        ("training.patience", 0, "expected a number of at least 1, got 0"),
        ("training.gradient_clip", 0, "expected a number of more than 0, got 0.0"),
        ("training.warmup", 3, "expected a number of at least 0 and at most 1, got 3.0"),
        ("settings.kd.temperature", -2, "expected a number of more than 0, got -2.0"),
        ("settings.kd.teacher_weight", 7, "expected a number of at least 0 and at most 1, got 7.0"),
        ("settings.rosita.setting", True, "expected 1 or 2 or 3 or 4, got True (bool)"),
        ("tokenizer.max_length", 2, "expected a number of at least 4, got 2"),
        ("cache.budget_gb", float("nan"), "expected float, got nan"),
        ("report.confidence", 2, "expected a number of at least 0.5 and at most 0.9999, got 2.0"),
        ("report.margin", -1, "expected a number of at least 0, got -1"),
        ("training.decay", "quadratic", "expected 'linear' or 'cosine' or 'none', got 'quadratic'"),
        ("tokenizer.max_length", None, "expected int, got None"),
    ],
)
def test_a_range_is_told(monkeypatch: pytest.MonkeyPatch, key: str, value: object, said: str) -> None:
    document = changed(tuple(key.split(".")), put(value))
    monkeypatch.setattr(config, "read_params", lambda params=PARAMS: document)
    with pytest.raises(FilbertError) as error:
        build_everything(PARAMS)
    assert f"{key.rsplit('.', 1)[-1]}: {said}" in str(error.value)


def test_drawn_damage_to_the_text_of_the_settings_is_named_or_read(tmp_path: Path) -> None:
    text, draw, refused = PARAMS.read_bytes(), random.Random(1), 0
    for number in range(DRAWN):
        file = tmp_path / f"{number}.yaml"
        file.write_bytes(damaged(text, draw))
        said = refusal(lambda file=file: config.read_params(file))
        refused += bool(said)
        assert not said or (said.startswith(str(file)) and len(said.splitlines()) == 1)
    assert refused > DRAWN / 4


def refusal(call: Callable[[], Any]) -> str:
    """What is said where a call refuses what it is given; empty where it accepts it."""
    try:
        call()
    except FilbertError as error:
        return str(error)
    return ""


def damaged(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, removed, doubled or swapped, or the end cut off."""
    out = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(out)) if out else 0
        kind = draw.choice(("change", "remove", "double", "insert", "cut"))
        if kind == "change" and out:
            out[at] = draw.randrange(256)
        elif kind == "remove":
            del out[at : at + draw.randint(1, 20)]
        elif kind == "double":
            out[at:at] = out[at : at + draw.randint(1, 40)]
        elif kind == "insert":
            out[at:at] = draw.choice((b"\0", b'"', b"\t", b"\n", b",", b"{", b"\xff", b"\r", b"\xef\xbb\xbf"))
        elif kind == "cut" and draw.random() < 0.3:
            del out[at:]
    return bytes(out)


def write_table(folder: Path, suffix: str) -> Path:
    """A valid raw table of SST-2, or of WikiANN in English."""
    rows, file = sentences(30), folder / f"train{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"sentence": [text for text, _ in rows], "label": [label for _, label in rows]}), file)
    elif suffix == ".txt":
        write_conll(folder, "en", 20, seed=1)
        shutil.copy(folder / "en" / "train.txt", folder / "train_en.txt")
        return folder / "train_en.txt"
    else:
        line = {".tsv": "{}\t{}\n", ".csv": '"{}",{}\n', ".jsonl": '{{"sentence": "{}", "label": {}}}\n'}[suffix]
        head = "" if suffix == ".jsonl" else line.replace('"', "").format("sentence", "label")
        file.write_text(head + "".join(line.format(text, label) for text, label in rows))
    return file


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet", ".txt"])
def test_drawn_damage_to_a_raw_table_is_named_or_gives_valid_rows(tmp_path: Path, suffix: str) -> None:
    file = write_table(tmp_path, suffix)
    task = find_task("wikiann" if suffix == ".txt" else "sst2")
    whole, draw, refused = file.read_bytes(), random.Random(1), 0
    assert list(row_validation.read_rows(tmp_path, file.stem, task))
    for _ in range(DRAWN):
        file.write_bytes(damaged(whole, draw))
        rows: list[arrow.Row] = []
        said = refusal(lambda rows=rows: rows.extend(row_validation.read_rows(tmp_path, file.stem, task)))
        refused += bool(said)
        assert not said or (str(file) in said and len(said.splitlines()) == 1)
        for row in rows:
            assert row["sentence"].strip()
            assert set(row["label"] if suffix == ".txt" else [row["label"]]) <= set(range(task.outputs))
    assert refused > DRAWN / 4


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_drawn_damage_to_a_model_is_told_in_one_line_or_harms_nothing(teacher: Path, tmp_path: Path, name: str) -> None:
    """Of a folder without a seal, as a user brings it: what cannot be read is our own error that names the folder."""
    folder, draw = shutil.copytree(teacher, tmp_path / "teacher"), random.Random(1)
    whole = (folder / name).read_bytes()
    for _ in range(DRAWN // 2):
        (folder / name).write_bytes(damaged(whole, draw))
        said = refusal(lambda: (checkpoints.load_model(folder), batches.load_tokenizer(folder)(" ".join(WORDS))))
        assert not said or (str(folder) in said and len(said.splitlines()) == 1)
