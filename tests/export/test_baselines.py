"""Baselines: what they score on rows whose adjective says the label, what they cost, and tasks of other kinds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from tiny import ROOT, find_task, sentences

from filbert.data import arrow, splits
from filbert.data.tasks import Task
from filbert.export import baselines
from filbert.export.baselines import BaselinesConfig, Split, TfidfFeatures
from filbert.export.pick import load_candidates
from filbert.runtime import config
from filbert.runtime.files import read_json, write_json
from stages.baselines import baselines as stage

CONFIG = BaselinesConfig((1.0, 1e4), (1, 2), 1, 16, 1e-3)
PARAMS = {"inverse_regularization": [1.0], "ngrams": [1], "min_rows": 1, "dimensions": 4, "smoothing": 0.001}
SST2, STSB = find_task("sst2"), find_task("stsb")


def split(rows: list[tuple[str, int]]) -> Split:
    return Split([(text,) for text, _ in rows], np.array([label for _, label in rows]))


def fit(task: Task, splits: dict[str, Split], checkpoint: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Figures of the baselines, which answer the same once saved and loaded."""
    fitted = baselines.fit_baselines(task, splits, checkpoint, CONFIG)
    baselines.save(fitted, folder)
    (folder / "again").mkdir()
    for _ in range(5):
        baselines.save(fitted, folder / "again")
        for file in folder.glob("*.safetensors"):
            assert (folder / "again" / file.name).read_bytes() == file.read_bytes()
    loaded = baselines.load(folder)
    assert list(loaded) == list(fitted)
    for name, baseline in fitted.items():
        assert (loaded[name].logits(splits["test"].texts) == baseline.logits(splits["test"].texts)).all()
        assert baselines.measure(task, loaded[name], splits) == baselines.measure(task, baseline, splits)
    return {name: baselines.measure(task, baseline, splits) for name, baseline in loaded.items()}


def test_words_tell_the_label_and_costs_are_counted(checkpoint: Path, tmp_path: Path) -> None:
    rows = sentences(160)
    parts = {"train": split(rows[:100]), "validation": split(rows[100:130]), "test": split(rows[130:])}
    found = fit(SST2, parts, checkpoint, tmp_path)
    assert found["majority"]["test"]["accuracy"] < 0.8 < found["tfidf"]["test"]["accuracy"]
    assert found["static_embeddings"]["test"]["accuracy"] > found["majority"]["test"]["accuracy"]
    assert found["majority"]["bytes"] < found["static_embeddings"]["bytes"]
    assert found["tfidf"]["settings"]["ngrams"] in (1, 2)
    assert all(figures["bytes"] >= 4 * figures["parameters"] for figures in found.values())


def test_pairs_and_numbers(checkpoint: Path, tmp_path: Path) -> None:
    draw, adjectives = np.random.default_rng(0), ("good", "bad", "dull", "warm")
    words = [tuple(map(str, draw.choice(adjectives, 2))) for _ in range(90)]
    numbers = np.array([float(adjectives.index(a)) for a, _ in words])
    splits = {name: Split(words[at], numbers[at]) for name, at in
              {"train": slice(60), "validation": slice(60, 75), "test": slice(75, 90)}.items()}  # fmt: skip
    found = fit(STSB, splits, checkpoint, tmp_path)
    assert found["static_embeddings"]["test"]["pearson"] > 0.9
    assert found["majority"]["test"]["score"] == 0


def test_a_class_that_is_never_seen_is_never_answered(checkpoint: Path) -> None:
    rows = split(sentences(40))
    task = replace(SST2, labels=("negative", "positive", "other"))
    found = baselines.tfidf(task, {"train": rows, "validation": rows}, CONFIG)
    assert found.logits(rows.texts).shape == (40, 3)
    assert found.logits(rows.texts).argmax(-1).max() < 2
    assert baselines.fit_baselines(find_task("wikiann"), {}, checkpoint, CONFIG) == {}


def test_texts_without_spaces_are_told_by_their_characters(checkpoint: Path) -> None:
    rows = split([(f"{first}电影{last}", label) for first in "这那本此" for label, last in enumerate("好坏")])
    found = baselines.tfidf(SST2, {"train": rows, "validation": rows}, replace(CONFIG, min_rows=2))
    assert found.features.vectorizer.analyzer == "char_wb"  # type: ignore[attr-defined]
    assert (found.logits(rows.texts).argmax(-1) == rows.label).all()
    arrays, text = found.features.stored()
    assert (TfidfFeatures.of(arrays, text)(rows.texts) != found.features(rows.texts)).nnz == 0


def test_the_stage_writes_figures_that_pick_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: splits.Prepared, checkpoint: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    YAML(typ="safe").dump(config.read_params(ROOT / "params.yaml") | {"baselines": PARAMS}, tmp_path / "params.yaml")
    (tmp_path / "prepared").mkdir()
    for name, table in prepared.tables.items():
        arrow.write_table(table, tmp_path / "prepared" / f"{name}.arrow")
    stage("sst2", Path("prepared"), checkpoint, Path("instead"), Path("metrics/sst2/baselines.json"))
    names = {"majority", "tfidf", "static_embeddings"}
    assert set(read_json(Path("metrics/sst2/baselines.json"))) == set(baselines.load(Path("instead"))) == names
    write_json(Path("metrics/sst2/latency.json"), {"texts": {"1": {name: {"median": 1.0} for name in names}}})
    found = [candidate.label for candidate in load_candidates(Path("metrics"), Path("exported"), "sst2")]
    assert set(found) == names
