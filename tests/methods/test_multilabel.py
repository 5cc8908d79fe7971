"""Rows with any number of labels through the whole chain: files, batches, losses, scores, students, exports, answers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from export_files import EXPORT, LATENCY
from ruamel.yaml import YAML
from tiny import BAD, CPU, GOOD, WORDS, tiny_tokenizer

import filbert
from filbert import FilbertError
from filbert.cache import build, retrieval, teacher_cache
from filbert.cache.retrieval import ReferenceSettings
from filbert.data import arrow, batches, row_validation, splits, tasks
from filbert.data.tasks import Task, TaskKind
from filbert.evaluation import metrics
from filbert.evaluation.mutual_information import InformationConfig
from filbert.export import release
from filbert.methods import finetune, kd, pkd, refbert, rosita, theseus, tinybert, xtremedistil
from filbert.methods.context import MethodContext
from filbert.methods.xtremedistil import WeightsConfig
from filbert.models import checkpoints
from filbert.models.width_allocation import TargetConfig
from filbert.runtime import config
from filbert.runtime.files import read_json
from filbert.text.transfer import to_rows
from filbert.tracking.run_recorder import RunRecorder
from filbert.training import losses
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig, validate
from stages.augment import augment
from stages.baselines import baselines
from stages.cache import cache
from stages.distill import distill
from stages.evaluate import evaluate
from stages.export import export
from stages.masked_lm import masked_lm
from stages.prepare import prepare
from stages.references import references
from stages.teach import teach
from stages.transfer import transfer

LABELS = ("praise", "blame", "animal")
TASK = Task(name="marks", kind=TaskKind.MULTILABEL, columns=("sentence",), labels=LABELS,
            metrics=("f1_micro", "f1_macro"), source="here")  # fmt: skip
FIT = TrainingConfig(2, 8, 5e-3, 0.0, "cosine", 0.0, 1.0, validations=2, patience=2)
ENCODE = batches.TokenizerConfig(16)
CACHE = teacher_cache.CacheConfig("float16", batch_size=8, shard_mb=1, budget_gb=1, verify_rows=8, tolerance=0.05)
XTREMEDISTIL = xtremedistil.Config(
    xtremedistil.ShapeConfig(8, 6, "last", 0.0, "svd", "siamese", "gelu"), "stages", True, True, True, FIT, FIT, FIT,
    WeightsConfig(1, 1, 1),
)  # fmt: skip
REFBERT = refbert.Config(
    "nearest", ReferenceSettings(1, "float16"), "reference", -1.0, 0.0, FIT, 2.0, 0.5, FIT, InformationConfig(0, 8, 1)
)
PRUNING = rosita.IterativeConfig(0.5, None, 0, True, FIT)
ROSITA = rosita.Config(
    4, True, None, 0.5, rosita.PredictionConfig("teacher", 2.0, 0.7, "label"), TargetConfig(1, 4, 2, 8, None, None), FIT, FIT,
    PRUNING, PRUNING, FIT, FIT,
)  # fmt: skip


def marked(count: int, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Distinct sentences whose words say which labels apply: none, one or several."""
    draw, out = np.random.default_rng(seed), {}
    while len(out) < count:
        words = [str(word) for word in draw.choice(WORDS[:-2], int(draw.integers(4, 9)))]
        kinds = {"praise": GOOD, "blame": BAD, "animal": ("cat", "dog")}
        out[" ".join(words)] = [name for name, said in kinds.items() if {*said} & {*words}]
    return list(out.items())


def write_csv(file: Path, rows: list[tuple[str, list[str]]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(["sentence,label", *(f"{text},{'|'.join(named)}" for text, named in rows)]) + "\n")


def read(folder: Path, task: Task = TASK) -> list[Any]:
    return [row["label"] for row in row_validation.read_rows(folder, "train", task)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> splits.Prepared:
    folder = tmp_path_factory.mktemp("marks")
    write_csv(folder / "train.csv", marked(160))
    return splits.prepare(folder, TASK, splits.PrepareConfig(0.2, 0.2, 1000, 0))


@pytest.fixture
def context(tmp_path: Path, prepared: splits.Prepared, checkpoint: Path, recorder: RunRecorder) -> MethodContext:
    def tokenize(table: pa.Table) -> batches.TokenizedDataset:
        return batches.tokenize(table, TASK, tiny_tokenizer(), ENCODE)

    split = {name: tokenize(table) for name, table in prepared.tables.items()}
    torch.manual_seed(1)
    teacher = checkpoints.new_teacher(checkpoint, TASK)
    checkpoints.save(teacher, tiny_tokenizer(), tmp_path / "teacher")
    texts = [(text,) for text, _ in marked(30, seed=9)]
    table = pa.Table.from_pylist(list(to_rows(texts, TASK)), schema=arrow.row_schema(TASK))
    columns = ("pooled", *LayerMap(1, 2).columns(attention=False), "hidden.1")
    key = teacher_cache.cache_fingerprint(tmp_path / "teacher", ENCODE, CACHE, CPU)
    model = checkpoints.load_model(tmp_path / "teacher")
    for rows in (prepared.tables["train"], table):
        build.build_cache(tmp_path / "cache", model, rows, tokenize, columns, key, CACHE, CPU)
    index = retrieval.build_index(split["train"])
    found = {name: retrieval.find_references(index, split["train"], split[name], 1) for name in ("train", "validation")}
    retrieval.save_references(tmp_path / "references", index, found)
    return MethodContext(
        TASK, split["train"], split["validation"], tokenize(table), checkpoint, tmp_path / "teacher",
        checkpoints.StudentConfig((0,)), LayerMap(1, 2), teacher_cache.TeacherCache([tmp_path / "cache"], key), CACHE,
        tmp_path / "references", None, 1, CPU, tmp_path / ".scratch" / "study", recorder,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- files and batches


def test_labels_are_read_from_text_and_from_lists(tmp_path: Path) -> None:
    wanted = [(1, 0, 1), (0, 0, 0), (0, 1, 0), (1, 0, 1)]
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "train.csv").write_text("sentence,label\na,praise|animal\nb,\nc,1\nd,animal | praise\n")
    lists = [["praise", "animal"], [], [1], ["animal", 0]]
    lines = [json.dumps({"sentence": text, "label": given}) for text, given in zip("abcd", lists, strict=True)]
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "parquet").mkdir()
    named = [["praise", "animal"], [], ["blame"], ["animal", "praise"]]
    pq.write_table(pa.table({"sentence": list("abcd"), "label": named}), tmp_path / "parquet" / "train.parquet")
    assert read(tmp_path / "csv") == read(tmp_path / "json") == read(tmp_path / "parquet") == wanted
    (tmp_path / "csv" / "train.csv").write_text("sentence,label\na,praise;animal\n")
    assert read(tmp_path / "csv", replace(TASK, separator=";")) == [(1, 0, 1)]


def test_a_row_without_labels_is_not_one_to_which_none_applies(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("sentence,label\na,\nb,[]\nc,blame\n")
    assert read(tmp_path) == [(0, 0, 0), (0, 0, 0), (0, 1, 0)]
    assert read(tmp_path, replace(TASK, allow_unlabelled=True)) == [None, (0, 0, 0), (0, 1, 0)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"sentence": "a", "label": null}', "line 2: expected a list of labels, or text with '|' between them, got None"),
        ('{"sentence": "a", "label": 1}', "line 2: expected a list of labels, .*, got 1"),
        ('{"sentence": "a", "label": ["praise", "joy"]}', "line 2: expected a label out of praise, .* or 0 to 2, got 'joy'"),
        ('{"sentence": "a", "label": [3]}', "line 2: expected a label out of .*, got 3"),
        ('{"sentence": "a", "label": [["praise"]]}', "line 2: expected a label out of"),
        ('{"sentence": "a", "label": ["praise", 0]}', "line 2: expected each label once"),
        ('{"sentence": "a", "label": "praise|"}', "line 2: expected a label out of .*, got ''"),
        ('{"sentence": "a"}', "line 2: no column label"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_read_are_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "train.jsonl").write_text('{"sentence": "x", "label": []}\n' + line)
    with pytest.raises(row_validation.RowError, match=said):
        read(tmp_path)


def test_the_same_labels_in_all_rows_are_refused(tmp_path: Path) -> None:
    for named, said in ((["blame", "praise"], "praise and blame"), ([], "no label")):
        write_csv(tmp_path / "train.csv", [(text, named) for text, _ in marked(20)])
        with pytest.raises(
            FilbertError, match=f"expected training rows of several classes for task marks, got {said} in all"
        ):
            splits.prepare(tmp_path, TASK, splits.PrepareConfig(0.2, 0.2, 1000, 0))


def test_batches_hold_the_labels_of_their_rows_and_nan_where_there_are_none(prepared: splits.Prepared) -> None:
    table = prepared.tables["train"]
    rows = batches.tokenize(table, TASK, tiny_tokenizer(), ENCODE)
    order = np.array([7, 2, 11])
    batch = rows.select(order).batch(np.array([2, 0, 1]))
    assert batch.label.dtype is torch.float32
    assert batch.label.tolist() == [table["label"][i].as_py() for i in (11, 7, 2)]
    texts = to_rows([("the cat",), ("the dog",)], TASK)
    none = batches.tokenize(
        pa.Table.from_pylist(list(texts), schema=arrow.row_schema(TASK)), TASK, tiny_tokenizer(), ENCODE
    )
    both = batches.concatenate(rows, none).batch(np.array([0, len(rows)]))
    assert losses.has_label(both.label).tolist() == [True, False]
    part = pa.array([[1, 0, 1], None, [0, 0, 1], None], arrow.row_schema(TASK).field("label").type).slice(1)
    np.testing.assert_array_equal(arrow.fixed_lists(part), [[np.nan] * 3, [0, 0, 1], [np.nan] * 3])


def test_the_digest_changes_when_a_label_moves_to_another_row(prepared: splits.Prepared) -> None:
    two = prepared.tables["train"].slice(0, 2)
    labels = [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]
    kind = two.schema.field("label").type
    digests = {arrow.rows_digest(two.set_column(2, "label", pa.array(given, kind))) for given in labels}
    assert len(digests) == 2


def test_a_row_of_the_task_table_is_checked(tmp_path: Path) -> None:
    for more, said in (
        ({"labels": ("one",)}, r"labels: expected the names of at least two labels"),
        ({"labels": ("a|b", "c")}, r"separator: expected a text that is part of no label's name, got '\|'"),
        ({"separator": ""}, "separator: expected a text"),
        ({"columns": ("a", "b")}, "columns: expected 1 of a task of kind multilabel"),
        ({"metrics": ("accuracy",)}, r"metrics: expected metrics of kind multilabel \(f1_micro, f1_macro\)"),
        ({"labels_per_class": 3}, "labels_per_class: expected"),
        (
            {"kind": TaskKind.SINGLE, "metrics": ("f1",), "separator": ";"},
            "separator: expected none, as this is no multi",
        ),
    ):
        with pytest.raises(FilbertError, match=said):
            tasks.check(replace(TASK, **more), "row")
    tasks.check(TASK, "row")


# ------------------------------------------------------------------------------------------------------- scores and losses


def test_f1_by_its_definition() -> None:
    draw = np.random.default_rng(0)
    label, logits = draw.integers(0, 2, (50, 3)).astype(np.float32), draw.normal(size=(50, 3))
    label[:, 2] = 0
    hit, said, true = (x.sum(0) for x in ((logits > 0) * label, logits > 0, label))
    found = metrics.scores(TASK, logits, label)
    assert found["f1_micro"] == pytest.approx(2 * hit.sum() / (said.sum() + true.sum()))
    assert found["f1_macro"] == pytest.approx((2 * hit / (said + true)).mean())
    assert found["score"] == pytest.approx((found["f1_micro"] + found["f1_macro"]) / 2)
    assert metrics.scores(TASK, np.full((50, 3), -1.0), label)["score"] == 0


def test_the_loss_of_labels_is_over_labelled_rows() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    label = torch.tensor([[1.0, 0.0], [float("nan")] * 2])
    wanted = -(torch.tensor(0.5).log() + (1 - torch.tensor(2.0).sigmoid()).log()) / 2
    torch.testing.assert_close(losses.task_loss(TaskKind.MULTILABEL, logits, label), wanted)
    assert losses.task_loss(TaskKind.MULTILABEL, logits, label * float("nan")) == 0


def test_the_soft_loss_is_hintons_for_two_classes_label_by_label() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    ours = losses.softened_binary_cross_entropy(student, teacher, 3.0)
    two = [torch.stack([z, torch.zeros_like(z)], -1).reshape(-1, 2) for z in (student, teacher)]
    (mine,), (theirs,) = (torch.autograd.grad(loss, student) for loss in (ours, losses.softened_kl(*two, 3.0)))
    torch.testing.assert_close(mine, theirs)


# ------------------------------------------------------------------------------------------------------------------ students


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (finetune, finetune.Config(FIT)),
        (kd, kd.Config(2.0, 0.5, 1.0, True, 0.5, FIT)),
        (pkd, pkd.Config(2.0, 0.5, 1.0, FIT)),
        (tinybert, tinybert.Config(0.0, FIT, 2.0, 0.5, FIT)),
        (refbert, REFBERT),
        (theseus, theseus.Config("curriculum", 0.5, 0.5, "bottom", False, FIT)),
        (rosita, ROSITA),
        (xtremedistil, XTREMEDISTIL),
        (xtremedistil, replace(XTREMEDISTIL, objective="hard")),
        (xtremedistil, replace(XTREMEDISTIL, objective="joint")),
    ],
)
def test_every_method_makes_a_student(context: MethodContext, tmp_path: Path, method: Any, settings: Any) -> None:
    student = method.compress(context, settings)
    checkpoints.save(student, tiny_tokenizer(), tmp_path / "student")
    again = checkpoints.load_model(tmp_path / "student")
    assert (again.config.problem_type, again.config.id2label[1]) == ("multi_label_classification", "blame")
    batch = context.train.batch(np.arange(3))
    with torch.no_grad():
        ours, theirs = (checkpoints.forward_batch(model.eval(), batch).logits for model in (student, again))
    assert ours.shape == (3, 3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_student_learns_the_labels(context: MethodContext) -> None:
    student = finetune.compress(context, finetune.Config(replace(FIT, epochs=30, learning_rate=1e-2)))
    assert (
        validate(student, TASK, context.validation, CPU)["f1_micro"] > 0.7
    )  # before training 0.53; 0.78 to 0.90 by seed


def test_rows_without_labels_learn_what_the_teacher_predicts(context: MethodContext) -> None:
    """The objective `hard`: its loss on a row without labels is that on the same row with the teacher's answer as label."""
    rows = context.with_transfer().with_targets(["logits"])
    batch = rows.batch(np.arange(len(rows) - 4, len(rows)))
    assert not losses.has_label(batch.label).any()
    student = context.new_student().eval()
    labelled = replace(batch, label=(batch.targets["logits"] > 0).float())
    found = xtremedistil.hard_loss(student, context)(batch)
    torch.testing.assert_close(found, context.label_loss(student)(labelled))


# ----------------------------------------------------------------------------------------------------------- from end to end


def test_from_a_file_to_answers(tmp_path: Path, store: Path, checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    """The stages one after the other on a CSV file, and the exported student asked in every way."""
    write_csv(tmp_path / "raw" / "train.csv", marked(160))
    write_settings(tmp_path / "params.yaml")
    words = tmp_path / "words"
    words.mkdir()
    (words / "SOURCE.json").write_text("{}")
    p = Path
    prepare("marks", p("raw"), p("prepared"), p("rows.json"))
    teach("marks", p("prepared"), checkpoint, p("teacher"))
    masked_lm("marks", p("prepared"), checkpoint, p("lm"))
    augment("marks", 0, p("prepared"), p("lm"), words, p("augmented/0"))
    transfer("marks", p("prepared"), p("texts"), p("augmented"), p("transfer"), p("transfer.json"))
    cache("marks", 0, p("prepared"), p("transfer"), p("teacher"), p("cache/0"))
    references("marks", p("prepared"), checkpoint, p("references"), p("control.json"))
    assert 0 <= read_json(p("control.json"))["neighbours"]["test"] <= 1
    given = (p("prepared"), p("transfer"), p("cache"), p("references"), p("teacher"), checkpoint, words)
    distill("marks", "kd", 1, *given, p("students/kd"))
    outs = p("kd.json"), p("details.json"), p("rows.parquet")
    evaluate("marks", "kd", 1, p("prepared"), p("students/kd"), p("teacher"), *outs)
    assert read_json(p("kd.json"))["test"]["f1_micro"] > 0.6
    baselines("marks", p("prepared"), checkpoint, p("instead"), p("baselines.json"))
    found = read_json(p("baselines.json"))
    assert found["tfidf"]["test"]["f1_micro"] > max(0.8, found["majority"]["test"]["f1_micro"])
    assert found["majority"]["test"]["f1_micro"] > 0
    export("marks", "kd", 1, p("prepared"), p("students/kd"), p("exported"), p("exported.json"))
    assert read_json(p("exported.json"))["calibration"]["model.onnx"] is None
    assert (
        "each that applies (its probability is above a half) of praise, blame, animal"
        in p("exported/README.md").read_text()
    )
    texts = ["the film was great", "the dog is bad", "the plot"]
    model, folder = filbert.load("exported"), filbert.load("students/kd")
    assert (model.card.kind, folder.card.kind) == ("multilabel", "multilabel")
    answers = model.predict(texts, every=True)
    for answer, short in zip(answers, model.predict(texts), strict=True):
        assert set(answer["probabilities"]) == {*LABELS}
        assert answer["labels"] == short["labels"] == [n for n, share in answer["probabilities"].items() if share > 0.5]
    with pytest.raises(FilbertError, match="abstain: expected a task with one class a text, got multilabel"):
        model.predict(texts, abstain=0.9)
    release.write_release(p("exported"), model.card.model, p("release"), 1.0)
    assert release_answers(p("release"), texts) == [answer["labels"] for answer in answers]


def release_answers(folder: Path, texts: list[str]) -> list[list[str]]:
    """What the release's own predict.py answers."""
    import runpy

    return [answer["labels"] for answer in runpy.run_path(str(folder / "predict.py"))["predict"](texts)]


def write_settings(file: Path) -> None:
    """The project's settings with this task and tiny trainings."""
    params = config.read_params(Path(tasks.__file__).parents[2] / "params.yaml")
    row = {"kind": "multilabel", "columns": ["sentence"], "labels": [*LABELS], "metrics": ["f1_micro"],
           "source": {"kind": "folder", "name": "raw"}}  # fmt: skip
    params["task_table"]["marks"] = row
    params |= {"export": EXPORT | {"variants": ["per_channel"]}, "latency": LATENCY, "student": {"layers": [0]}}
    long = {"epochs": 30, "batch_size": 8, "learning_rate": 1e-2, "min_steps": 0}
    params["teacher"] = {"seeds": [0], "training": long}
    params["settings"]["kd"]["training"] = long
    params["prepare"] |= {"validation": 0.2, "test": 0.2}
    params["augment"] |= {"variants": 0}
    params["baselines"] |= {"inverse_regularization": [10.0], "ngrams": [1], "dimensions": 4, "min_rows": 1}
    YAML(typ="safe").dump(params, file)
