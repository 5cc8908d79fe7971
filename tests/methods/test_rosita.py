"""Cutting encoders: importance as defined, the limits, the paper's shape, budgets, and ROSITA's settings end to end."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import find_task, load_without_filbert, student_logits, tiny_tokenizer

from filbert.cache.retrieval import ReferenceSettings
from filbert.cache.shards import ShardFolder
from filbert.data import batches
from filbert.evaluation.mutual_information import InformationConfig
from filbert.methods import refbert, rosita, theseus
from filbert.methods.context import MethodContext
from filbert.methods.rosita import (
    ChainConfig,
    Config,
    IterativeConfig,
    PredictionConfig,
    followed_states,
    prune_further,
)
from filbert.models import checkpoints, pruning, size, width_allocation
from filbert.models.bert import FilbertConfig, FilbertForSequenceClassification
from filbert.models.pruning import ImportanceRecorder, KeptUnits, PruningError, UnitScores, keep_all, prune
from filbert.models.reference_bert import REFERENCE, ReferenceConfig, ReferenceForSequenceClassification
from filbert.models.width_allocation import TargetConfig
from filbert.tracking.history import count_steps, read_history
from filbert.training import loop
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig

FIT = TrainingConfig(1, 8, 1e-3, 0.0, "none", 0.0, 1.0, validations=1, patience=1)
TARGET = TargetConfig(layers=1, rank=4, heads=2, intermediate=8, parameters=None, multiply_adds=None)
PRUNING = IterativeConfig(0.5, None, 0, False, FIT)
PREDICTION = PredictionConfig("former", 1.0, 1.0, "label")


def answers(model: torch.nn.Module, context: MethodContext) -> torch.Tensor:
    with torch.no_grad():
        return checkpoints.forward_batch(model.eval(), context.train.batch(np.arange(8))).logits


def test_keeping_everything_changes_nothing(context: MethodContext) -> None:
    teacher = context.cut_from_teacher([0, 1])
    assert torch.equal(answers(prune(teacher, keep_all(teacher, 2)), context), answers(teacher, context))
    factorised = prune(teacher, keep_all(teacher, 2), rank=16)
    torch.testing.assert_close(answers(factorised, context), answers(teacher, context), atol=1e-4, rtol=1e-4)
    assert factorised.config.embedding_size == 16


def test_what_is_cut_counts_as_what_is_masked(context: MethodContext) -> None:
    """Heads 0 and 3 and neurons 1, 5 and 7 of layer 0: zeroed where they lead on, or gone."""
    model = context.cut_from_teacher([0, 1])
    kept = [
        KeptUnits(torch.tensor([1, 2]), torch.tensor([n for n in range(32) if n not in (1, 5, 7)])),
        keep_all(model, 2)[1],
    ]
    smaller = prune(model, kept)
    with torch.no_grad():
        layer = model.bert.encoder.layer[0]
        for head in (0, 3):
            layer.get_parameter(pruning.OUTPUT)[:, 4 * head : 4 * head + 4] = 0
        layer.get_parameter(pruning.DOWN)[:, [1, 5, 7]] = 0
    torch.testing.assert_close(answers(smaller, context), answers(model, context))
    assert (smaller.config.layer_heads, smaller.config.layer_intermediate) == ([2, 4], [29, 32])


def test_a_student_that_reads_references_is_cut_with_its_gates(context: MethodContext) -> None:
    model = context.new_student_of_class(ReferenceForSequenceClassification, reference_size=16)
    attention = model.bert.encoder.layer[0].attention["self"]
    torch.nn.init.normal_(attention.gate)
    smaller = prune(model, [KeptUnits(torch.tensor([1, 3]), torch.arange(4))])
    assert torch.equal(smaller.bert.encoder.layer[0].attention["self"].gate, attention.gate[[1, 3]])


def test_importance_is_the_weight_times_the_mean_absolute_gradient(context: MethodContext) -> None:
    model = context.cut_from_teacher([0, 1]).eval()
    layer = model.bert.encoder.layer[1]
    with ImportanceRecorder(model) as importance:
        sums = {
            part: torch.zeros_like(layer.get_parameter(part)) for part in (pruning.OUTPUT, pruning.UP, pruning.DOWN)
        }
        for rows in (np.arange(8), np.arange(8, 16)):
            model.zero_grad()
            context.label_loss(model)(context.train.batch(rows)).backward()
            for part, total in sums.items():
                total += layer.get_parameter(part).grad.abs()
        found = importance.scores()[1]
    weights = {part: (layer.get_parameter(part) * total).abs().detach() for part, total in sums.items()}
    heads = [float(weights[pruning.OUTPUT][:, 4 * h : 4 * h + 4].sum()) for h in range(4)]
    assert found.heads.tolist() == pytest.approx(heads)
    assert found.neurons[3] == pytest.approx(float(weights[pruning.UP][3].sum() + weights[pruning.DOWN][:, 3].sum()))


def test_bert_base_is_cut_to_the_papers_shape() -> None:
    """papers.md C.1: 8 layers, 2 heads of 64, 512 neurons, rank 128: 14,474,754 parameters."""
    with torch.device("meta"):
        model = FilbertForSequenceClassification(FilbertConfig(num_labels=2))
        smaller = prune(model, [KeptUnits(torch.arange(2), torch.arange(512))] * 8, 128)
    assert size.count_parameters(smaller) == 14_474_754


def test_a_model_cannot_grow(context: MethodContext) -> None:
    model = context.cut_from_teacher([0, 1])
    with pytest.raises(PruningError, match="expected 1 to 2 layers and a rank up to 16, got 3 and 0"):
        prune(model, [*keep_all(model, 2), keep_all(model, 1)[0]])
    kept = pruning.top_k([UnitScores(torch.ones(4), torch.ones(8)), UnitScores(torch.ones(1), torch.ones(9))], 3, 9)
    assert [(len(layer.heads), len(layer.neurons)) for layer in kept] == [(3, 8), (1, 9)]


@pytest.mark.parametrize("kind", ["parameters", "multiply_adds"])
def test_a_budget_is_kept_and_spent_where_it_matters(context: MethodContext, kind: str) -> None:
    model, batch = context.cut_from_teacher([0, 1]), context.train.batch(np.arange(1))
    count = width_allocation.cost_counter(kind, batch)
    scores = [
        UnitScores(torch.arange(4.0) + 1, torch.arange(32.0) + 1),
        UnitScores(torch.arange(4.0) / 100, torch.arange(32.0) / 100),
    ]
    least = count(prune(model, [KeptUnits(torch.tensor([0]), torch.tensor([0]))] * 2))
    most = (count(model) + least) // 2
    kept = width_allocation.allocate_budget(model, scores, count, most)
    assert 0.97 * most < count(prune(model, kept)) <= most
    assert len(kept[0].neurons) > len(kept[1].neurons)
    assert kept[1].heads.tolist()[-1] == 3
    with pytest.raises(PruningError, match="one head and one neuron in each of 2 layers"):
        width_allocation.allocate_budget(model, scores, count, least - 1)


def test_moments_and_importance_are_those_of_the_weights_that_are_kept(context: MethodContext) -> None:
    """Adam's moments stand in the places of the weights: cut like a model whose weights they are."""
    model = context.cut_from_teacher([0, 1])
    factorised = prune(model, keep_all(model, 2), rank=12)
    state = {name: torch.rand_like(value) for name, value in factorised.named_parameters()}
    kept = [KeptUnits(torch.tensor([1, 3]), torch.tensor([0, 5, 9]))]
    moments = {name: {"step": torch.tensor(7.0), "exp_avg": value} for name, value in state.items()}
    found = pruning.slice_moments(moments, kept, 4, rank=6)
    factorised.load_state_dict(state)
    wanted = dict(prune(factorised, kept, rank=6).named_parameters())
    assert set(found) == set(wanted)
    assert all(
        torch.equal(found[name]["exp_avg"], value) and found[name]["step"] == 7 for name, value in wanted.items()
    )
    whole = {name: {"exp_avg": torch.rand_like(value)} for name, value in model.named_parameters()}
    assert "bert.embeddings.word_embeddings.weight" not in pruning.slice_moments(whole, kept, 4, rank=6)
    with ImportanceRecorder(model, {f"{pruning.LAYER}0.{pruning.UP}": torch.ones(32, 16)}) as importance:
        assert (
            pruning.slice_weights(importance.sums(), kept, 4)[f"{pruning.LAYER}0.{pruning.UP}"].tolist()
            == [[1] * 16] * 3
        )


def test_a_round_goes_on_with_the_moments_of_the_round_before(
    context: MethodContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict] = []
    fit = loop.fit

    def recorded(*given: Any, **named: Any) -> loop.TrainingResult:
        begun.append(named["moments"])
        return fit(*given, **named)

    monkeypatch.setattr("filbert.methods.context.fit", recorded)
    rosita.compress(context, replace(OURS, setting=3, final=None, recovery=None))
    counts = [{float(state["step"]) for name, state in moments.items() if ".encoder." in name} for moments in begun]
    assert counts == [set(), {2.0}, {4.0}, {6.0}]
    begun.clear()
    rosita.compress(
        context, replace(OURS, setting=3, final=None, recovery=None, width=replace(OURS.width, carry=False))
    )
    assert begun == [{}, {}, {}, {}]


def test_when_pruning_takes_place() -> None:
    """The official code's events are equally spaced; the first may wait for the importance of more batches."""
    assert pruning.event_steps(10, 420, 0.2, 0, "width") == [0, *(round(8.4 * i) for i in range(1, 11))]
    assert pruning.event_steps(4, 420, 0.9, 200, "width") == [0, 200, 259, 319, 378]
    assert pruning.event_steps(1, 420, 0.9, 200, "width") == [0, 200]
    assert pruning.event_steps(3, 40, 0.9, 200, "width") == [0, 24, 30, 36]
    with pytest.raises(PruningError, match="4 pruning events do not fit"):
        pruning.event_steps(4, 4, 0.9, 200, "width")


def test_the_final_shape_learns_the_first_teachers_logits_and_transfer_rows(
    context: MethodContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, batches.TokenizedDataset] = {}
    unlabelled = replace(context.train.select(np.arange(40)), label=np.full(40, -1))
    given = replace(context, train=context.train.select(np.arange(16)), transfer=unlabelled)
    fit = MethodContext.fit

    def recorded(*given: Any, **named: Any) -> loop.TrainingResult:
        seen[given[5]] = given[3]
        return fit(*given, **named)

    monkeypatch.setattr(MethodContext, "fit", recorded)
    rosita.compress(given, replace(OURS, setting=3, width=replace(OURS.width, rounds=1, gather=1)))
    assert {name: len(rows) for name, rows in seen.items()} == {"width": 16, "distill": 16, "recovery": 3 * 16 + 40}
    assert (seen["recovery"].label >= 0).mean() >= 0.5
    stored = context.with_targets(["logits"]).batch(np.arange(40)).targets["logits"]
    for rows in (seen["width"].batch(np.arange(16)), seen["recovery"].batch(np.arange(16))):
        assert torch.equal(rows.targets["logits"], stored[:16])
    assert torch.equal(seen["recovery"].batch(np.arange(48, 88)).targets["logits"], stored)


def test_a_regression_learns_labels_or_the_teachers_number(context: MethodContext) -> None:
    stsb = replace(context, task=find_task("stsb"))
    batch = replace(
        context.train.batch(np.arange(4)),
        label=torch.tensor([1.0, 2.0, 3.0, 4.0]),
        targets={"logits": torch.zeros(4, 1)},
    )
    logits = torch.ones(4, 1)
    loss = rosita._prediction
    assert loss(stsb, logits, batch, PREDICTION) == pytest.approx((0 + 1 + 4 + 9) / 4)
    assert loss(stsb, logits, batch, replace(PREDICTION, regression="teacher")) == pytest.approx(1.0)


def test_the_states_that_fewer_layers_follow() -> None:
    assert followed_states(8, 12) == [f"hidden.{i}" for i in (0, 1, 3, 4, 6, 7, 9, 10, 12)]  # papers.md C.3
    assert followed_states(2, 2) == ["hidden.0", "hidden.1", "hidden.2"]


CONFIG = Config(
    4, True, None, 0.5, PREDICTION, TARGET, second_teacher=FIT, importance=FIT, final=None,
    depth=replace(PRUNING, training=replace(FIT, epochs=2)), width=PRUNING, recovery=None,
)  # fmt: skip
OURS = replace(
    CONFIG, transfer="recovery", prediction=PredictionConfig("teacher", 2.0, 0.7, "label"), second_teacher=None,
    depth=replace(CONFIG.depth, carry=True), width=IterativeConfig(0.7, 3, 2, True, FIT), final=FIT, recovery=FIT,
)  # fmt: skip
SETTINGS = {
    "setting 4": CONFIG,
    "ours": OURS,
    "setting 3": replace(CONFIG, setting=3),
    "setting 2": replace(CONFIG, setting=2, final=FIT),
    "setting 1": replace(CONFIG, setting=1, final=FIT),
    "labels alone": replace(CONFIG, setting=1, distill=False, final=FIT),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_ends_in_the_target_shape_and_loads_anywhere(
    setting: str, context: MethodContext, tmp_path: Path, python: Path
) -> None:
    student = rosita.compress(context, SETTINGS[setting])
    shape = student.config
    assert (shape.num_hidden_layers, shape.layer_heads, shape.layer_intermediate, shape.embedding_size) == (
        1,
        [2],
        [8],
        4,
    )
    checkpoints.save(student, tiny_tokenizer(), tmp_path / "student")
    if setting == "setting 4":  # the others save the same kind
        said = load_without_filbert(python, tmp_path / "student", "trust", tmp_path)
        torch.testing.assert_close(torch.tensor(said["logits"]), torch.tensor(student_logits(student)))


def test_a_budget_holds_for_layers_of_several_kinds(context: MethodContext) -> None:
    """The first layer of a student that reads references costs more; a layer may be down to one of something."""
    shape = {"reference_size": 16, "num_hidden_layers": 3, "layer_heads": [4, 1, 4], "layer_intermediate": [32, 32, 1]}
    model = ReferenceForSequenceClassification(
        ReferenceConfig(**context.cut_from_teacher([0]).config.to_dict() | shape)
    )
    batch = context.train.batch(np.arange(1))
    beside = dict(
        zip(
            REFERENCE,
            (torch.randn(1, 40, 16), torch.randn(1, 40, 16), torch.ones(1, 40, dtype=torch.bool)),
            strict=True,
        )
    )
    count = width_allocation.cost_counter("multiply_adds", batches.replace(batch, targets=beside))
    scores = [UnitScores(torch.rand(h), torch.rand(n)) for h, n in ((4, 32), (1, 32), (4, 1))]
    for share in (0.95, 0.8, 0.7):
        assert count(
            prune(model, width_allocation.allocate_budget(model, scores, count, share * count(model)))
        ) <= share * count(model)


def test_a_target_with_more_than_the_start_is_refused_before_training(context: MethodContext) -> None:
    for name, value, there in (("layers", 3, 2), ("rank", 17, 16), ("heads", 5, 4), ("intermediate", 33, 32)):
        with pytest.raises(PruningError, match=f"target.{name}: expected at most {there}"):
            rosita.compress(context, replace(CONFIG, target=replace(TARGET, **{name: value})))
    assert not context.recorder.history.exists()


def test_widths_may_follow_a_budget_in_rounds(context: MethodContext) -> None:
    whole = size.count_parameters(context.cut_from_teacher([0]))
    target = TargetConfig(1, 0, None, None, parameters=whole - 600, multiply_adds=None)
    student = rosita.compress(context, replace(CONFIG, target=target))
    assert whole - 700 < size.count_parameters(student) <= whole - 600


def test_rounds_that_do_not_fit_are_refused(context: MethodContext) -> None:
    with pytest.raises(PruningError, match="width: 40 pruning events do not fit in"):
        rosita.compress(context, replace(CONFIG, setting=3, width=replace(PRUNING, rounds=40)))
    with pytest.raises(PruningError, match=r"heads and intermediate, or parameters"):
        replace(TARGET, parameters=1)


REFBERT = refbert.Config(
    "nearest", ReferenceSettings(2, "float16"), "reference", -1.0, 1.0, FIT, 1.0, 0.7, FIT, InformationConfig(64, 8, 2)
)
CHAIN = ChainConfig(None, 0.5, PREDICTION, replace(TARGET, layers=None), None, PRUNING, None, None)


@pytest.mark.parametrize("start", ["theseus", "refbert", "rosita"])
def test_any_student_can_be_cut_further(context: MethodContext, tmp_path: Path, start: str) -> None:
    begun = {
        "theseus": lambda: theseus.compress(context, theseus.Config("curriculum", 0.3, 0.5, "bottom", False, FIT)),
        "refbert": lambda: refbert.compress(context, REFBERT),
        "rosita": lambda: rosita.compress(context, replace(CONFIG, target=replace(TARGET, heads=3, rank=8))),
    }[start]()
    checkpoints.save(begun, tiny_tokenizer(), tmp_path / "start")
    further = replace(context, scratch=tmp_path / ".scratch" / "further")
    if start == "refbert":
        with pytest.raises(PruningError, match="has none for transfer rows"):
            prune_further(further, tmp_path / "start", replace(CHAIN, transfer="all"))
    student = prune_further(further, tmp_path / "start", CHAIN)
    assert (student.config.layer_heads, student.config.layer_intermediate, student.config.embedding_size) == (
        [2],
        [8],
        4,
    )
    assert type(student) is (type(begun) if start != "theseus" else FilbertForSequenceClassification)
    checkpoints.save(student, tiny_tokenizer(), tmp_path / "end")
    assert student_logits(checkpoints.load_model(tmp_path / "end")) == pytest.approx(
        np.array(student_logits(student)), abs=1e-5
    )
    assert (tmp_path / "end" / "references").exists() == (start == "refbert")


def test_the_final_shape_of_a_chain_is_trained_as_rositas_is(context: MethodContext, tmp_path: Path) -> None:
    ours = ChainConfig("recovery", 0.5, OURS.prediction, CHAIN.target, None, OURS.width, FIT, FIT)
    given = replace(context, transfer=replace(context.train.select(np.arange(16)), label=np.full(16, -1)))
    checkpoints.save(context.cut_from_teacher([0]), tiny_tokenizer(), tmp_path / "start")
    (tmp_path / "start" / checkpoints.HISTORY).touch()
    student = prune_further(replace(given, scratch=tmp_path / ".scratch" / "further"), tmp_path / "start", ours)
    assert student.config.layer_heads == [2]
    assert {line["phase"] for line in read_history(context.recorder.history)} == {"width", "distill", "recovery"}
    assert rosita.chain_columns(tmp_path / "start", context.layer_map, ours) == ("logits",)
    assert rosita.chain_columns(tmp_path / "start", context.layer_map, CHAIN) == ()


def test_a_recipes_steps_count_with_those_of_its_start_which_is_its_teacher(
    context: MethodContext, tmp_path: Path
) -> None:
    """Layers that go at once leave the whole start as the teacher of what is left."""
    deep = replace(context, layer_map=LayerMap(2, 2), shape=checkpoints.StudentConfig((0, 1)))
    begun = theseus.compress(deep, theseus.Config("constant", 0.5, 0.5, "bottom", False, FIT))
    with torch.no_grad():
        begun.classifier.bias.add_(1)  # so short a training may keep the teacher's weights
    checkpoints.save(begun, tiny_tokenizer(), tmp_path / "start")
    shutil.copyfile(context.recorder.history, tmp_path / "start" / checkpoints.HISTORY)
    context.recorder.history.unlink()
    further = replace(deep, scratch=tmp_path / ".scratch" / "further")
    student = prune_further(further, tmp_path / "start", replace(CHAIN, target=TARGET))
    assert student.config.num_hidden_layers == 1
    assert count_steps(context.recorder.history) == 9 + 9
    (predictions,) = further.scratch.glob("predictions-*")
    assert set(ShardFolder(predictions).entries["shard-00000.arrow"].columns) == {"logits", "hidden.0", "hidden.2"}


def test_the_teachers_states_are_read_from_its_cache_where_it_has_them(context: MethodContext) -> None:
    whole = context.cut_from_teacher([0, 1])
    assert context.cache_predictions(whole, ["logits", "hidden.2"]) is context.cache
    assert context.cache_predictions(whole, ["hidden.1"]) is not context.cache
    with torch.no_grad():
        whole.classifier.bias.add_(1)
    assert context.cache_predictions(whole, ["hidden.2"]) is not context.cache


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("method", ["rosita", "carried", "theseus"])
def test_a_killed_run_ends_as_if_it_had_not_been(
    context: MethodContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = {
        "rosita": CONFIG,
        "carried": OURS,
        "theseus": theseus.Config("curriculum", 0.3, 0.5, "bottom", False, replace(FIT, epochs=5)),
    }[method]
    compress = theseus.compress if method == "theseus" else rosita.compress
    whole = compress(context, config).state_dict()
    history = [(line["phase"], line["step"], line.get("loss")) for line in read_history(context.recorder.history)]
    step, done = loop._step, []
    monkeypatch.setitem(loop.fit.__kwdefaults__, "checkpoint_seconds", 0.0)
    for die_at in (3, 14, 22, 30, 35):
        context.recorder.history.unlink()
        done.clear()

        def dying(*given: object, last: int = die_at) -> torch.Tensor:
            done.append(1)
            if len(done) == last:
                raise Killed
            return step(*given)

        again = replace(context, scratch=tmp_path / ".scratch" / f"killed-{die_at}")
        monkeypatch.setattr(loop, "_step", dying)
        with pytest.raises(Killed):
            compress(again, config)
        resumed = compress(again, config).state_dict()
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items()), die_at
        assert [
            (line["phase"], line["step"], line.get("loss")) for line in read_history(context.recorder.history)
        ] == history
        assert len(done) < 2 * die_at + 45
