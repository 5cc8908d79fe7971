"""`pick` and `release`: the best within a budget, who dominates whom, and a folder that runs on its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from export_files import MODELS, export_folder, reference_student, saved
from tiny import sentences

import filbert
from commands import pick as command
from commands.release import release
from filbert import FilbertError
from filbert.data import batches
from filbert.export.pick import Budget, Candidate, dominated_by, exported_models, load_candidates, pareto_front, pick
from filbert.runtime.files import write_json

TEXTS = [text for text, _ in sentences(6)]


def figures(score: float, megabytes: float, **more: object) -> dict:
    return {"validation": {"score": score}, "test": {"score": score - 0.01}, "bytes": 1e6 * megabytes} | more


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """Figures of a teacher, of a student over two seeds, of a small one, and of two baselines."""
    made = {
        ("teacher", 0): {"model.onnx": figures(0.90, 90), "model.int8.onnx": figures(0.895, 23)},
        ("kd", 1): {"model.onnx": figures(0.86, 60)},
        ("kd", 2): {"model.onnx": figures(0.88, 60)},
        ("small", 1): {"model.int8.onnx": figures(0.80, 2)},
    }
    for (name, seed), files in made.items():
        record(tmp_path, name, seed, files)
    files = {"teacher/model.onnx": 10, "teacher/model.int8.onnx": 3, "kd/model.onnx": 6, "small/model.int8.onnx": 0.2}
    timed(tmp_path, files | {"majority": 0.001, "tfidf": 0.1})
    write_json(tmp_path / "sst2" / "baselines.json", {"majority": figures(0.5, 0.0), "tfidf": figures(0.81, 1)})
    return tmp_path


def record(metrics: Path, name: str, seed: int, files: dict) -> None:
    content = {"student": name, "seed": seed, "files": files}
    write_json(metrics / "sst2" / "exported" / name / f"{seed}.json", content)


def timed(metrics: Path, times: dict[str, float]) -> None:
    found = {"1": {name: {"median": ms} for name, ms in times.items()}}
    write_json(metrics / "sst2" / "latency.json", {"texts": found})


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (Budget(), "teacher float32"),
        (Budget(max_mb=30), "teacher int8"),
        (Budget(max_ms=2), "small int8"),
        (Budget(max_mb=70, max_ms=6.5), "teacher int8"),
        (Budget(max_mb=3), "small int8"),
    ],
)
def test_the_best_within_a_budget(budget: Budget, chosen: str, metrics: Path) -> None:
    assert pick(load_candidates(metrics, Path("exported"), "sst2"), budget).label == chosen


def test_seeds_are_averaged_and_the_best_one_is_named(metrics: Path) -> None:
    kd = next(c for c in load_candidates(metrics, Path("exported"), "sst2") if c.name == "kd")
    assert (kd.validation, kd.milliseconds) == (pytest.approx(87), 6)
    assert kd.folders[0].name == "2"


def test_a_file_that_some_seeds_lack_is_no_candidate_and_what_is_no_longer_listed_neither(metrics: Path) -> None:
    record(metrics, "kd", 3, {"model.onnx": figures(0.99, 60), "model.int8.onnx": figures(0.99, 15)})
    assert [c.label for c in load_candidates(metrics, Path("exported"), "sst2") if c.name == "kd"] == ["kd float32"]
    params = {"exports": ["kd"], "seeds": [1, 2], "tasks": ["sst2"]}
    kept = load_candidates(metrics, Path("exported"), "sst2", exported_models(params, "sst2"))
    assert {c.name for c in kept if c.folders} == {"teacher", "kd"}
    assert next(c for c in kept if c.name == "kd").validation == pytest.approx(87)
    assert exported_models(params, "cola") is None


def test_nothing_within_a_budget_is_an_error_that_says_what_there_is(metrics: Path) -> None:
    with pytest.raises(
        FilbertError, match=r"no model is within 1 MB; the smallest is small int8 with 2.0 MB, the fastest small"
    ):
        pick(load_candidates(metrics, Path("exported"), "sst2"), Budget(max_mb=1))
    with pytest.raises(FilbertError, match="expected exported models, found none; list students under `exports`"):
        pick(load_candidates(metrics, Path("exported"), "cola"), Budget())
    students = [c for c in load_candidates(metrics, Path("exported"), "sst2") if c.name != "teacher"]
    with pytest.raises(FilbertError, match="expected an exported teacher"):
        pick(students, Budget(min_share=0.9))
    (metrics / "sst2" / "exported" / "kd" / "1.json").write_text("{")
    with pytest.raises(FilbertError, match="expected JSON as a stage writes it"):
        load_candidates(metrics, Path("exported"), "sst2")


def test_a_file_that_was_not_timed_is_an_error(metrics: Path) -> None:
    record(metrics, "new", 1, {"model.onnx": figures(0.9, 1)})
    with pytest.raises(
        FilbertError, match=r"latency.json: expected times of new/model.onnx, found none; run `make repro`"
    ):
        load_candidates(metrics, Path("exported"), "sst2")


def test_baselines_dominate_and_the_front_is_printed(
    metrics: Path, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    command.pick("sst2", metrics, Path("exported"), min_share=0.99, picture=tmp_path / "front.svg")
    said = capsys.readouterr().out
    assert "dominated by teacher int8" in next(line for line in said.splitlines() if "kd" in line)
    assert "dominated by tfidf" in next(line for line in said.splitlines() if "small int8" in line)
    assert {line.split()[0] for line in said.splitlines() if line.endswith("front")} == {"teacher", "tfidf", "majority"}
    assert "teacher float32: 90.0 on validation rows" in said
    assert (tmp_path / "front.svg").stat().st_size > 1000


def test_one_students_share_is_of_the_teacher(metrics: Path) -> None:
    candidates = load_candidates(metrics, Path("exported"), "sst2")
    assert pick(candidates, Budget(min_share=0.9), "kd").label == "kd float32"
    with pytest.raises(FilbertError, match="no model is within 99%"):
        pick(candidates, Budget(min_share=0.99), "kd")
    with pytest.raises(FilbertError, match="expected exported models of other, found none"):
        pick(candidates, Budget(), "other")


def test_equals_dominate_no_one_and_are_both_on_the_front() -> None:
    one, other = (Candidate(name, "int8", 80, 80, 5, 5, (Path(name),)) for name in "ab")
    assert pareto_front([one, other]) == [one, other]
    assert dominated_by([one, other]) == {}
    assert dominated_by([one, Candidate("tfidf", "", 80, 80, 5, 5)]) == {"a int8": "tfidf"}


def released(student: Path, out: Path, **more: object) -> Path:
    """A release made by the command from one exported model."""
    export_folder(student, out / "exported" / "sst2" / "kd" / "1", **more)
    record(out / "metrics", "kd", 1, {"model.onnx": figures(0.8, 1)})
    timed(out / "metrics", {"kd/model.onnx": 1.25})
    release("sst2", out / "metrics", out / "exported", out / "release", register=False)
    return out / "release"


def ask(folder: Path, texts: list[str]) -> list[dict]:
    """What predict.py prints, in a process that can import neither filbert nor torch."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'filbert', 'bm25s', 'scipy', 'pyarrow')));"
    code = (
        f"{blocked} import runpy; sys.path.insert(0, {str(folder)!r}); "
        f"runpy.run_path({str(folder / 'predict.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code, *texts], cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_release_runs_on_its_own(tmp_path: Path, teacher: Path) -> None:
    folder = released(teacher, tmp_path, temperature=1.7)
    assert {file.name for file in folder.iterdir()} == {
        "HASHES.json",
        "model.onnx",
        "tokenizer.json",
        "config.json",
        "README.md",
        "predict.py",
    }
    wanted = filbert.load(folder).predict(TEXTS)
    for ours, theirs in zip(ask(folder, TEXTS), wanted, strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
    said = (folder / "README.md").read_text()
    assert "pip install onnxruntime tokenizers" in said
    assert "One text takes 1.25 ms" in said
    assert "divided by 1.70" in said
    assert "| test | 80.0 |" in said


def test_a_release_with_references_and_one_that_tags(tmp_path: Path, encoded: batches.TokenizedDataset) -> None:
    torch.manual_seed(0)
    folder = released(reference_student(tmp_path / "model", encoded), tmp_path / "a")
    for ours, theirs in zip(ask(folder, TEXTS), filbert.load(folder).predict(TEXTS), strict=True):
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
    labels = tuple("O B-PER I-PER B-ORG I-ORG B-LOC I-LOC".split())
    folder = released(saved(MODELS["bert, tags"](), tmp_path / "tags"), tmp_path / "b", kind="tagging", labels=labels)
    texts = [*TEXTS, "\u200bgreat film", "a long one " * 20]
    assert [a["tags"] for a in ask(folder, texts)] == [a["tags"] for a in filbert.load(folder).predict(texts)]
