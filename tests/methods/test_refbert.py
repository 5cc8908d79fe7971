"""References: the nearest other training row, never itself, no labels; the student that reads them, and its store."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import find_task, load_without_filbert, student_logits, tiny_tokenizer

from filbert.cache import retrieval
from filbert.cache.retrieval import ReferenceReader, ReferenceSettings
from filbert.data import batches, splits
from filbert.data.arrow import write_table
from filbert.evaluation.mutual_information import InformationConfig
from filbert.methods import refbert
from filbert.methods.context import MethodContext
from filbert.models import checkpoints, reference_bert
from filbert.models.bert import FilbertConfig, FilbertForSequenceClassification
from filbert.models.reference_store import BM25Index, ReferenceStore
from filbert.training.loop import TrainingConfig

SST2 = find_task("sst2")
FIT = TrainingConfig(2, 8, 1e-3, 0.1, "linear", 0.01, 1.0, validations=0, patience=1)
CONFIG = refbert.Config(
    "nearest",
    ReferenceSettings(2, "float16"),
    "reference",
    -1.0,
    1.0,
    FIT,
    1.0,
    0.7,
    replace(FIT, validations=2),
    InformationConfig(64, 8, 2),
)


def train(
    context: MethodContext, config: refbert.Config = CONFIG, **changes: object
) -> reference_bert.ReferenceForSequenceClassification:
    return refbert.compress(context, replace(config, **changes))


def test_scores_are_those_of_the_formula() -> None:
    """Robertson and Zaragoza 2009 with Lucene's idf, k1 = 1.5, b = 0.75."""
    rows = [[1, 2, 3, 3], [2, 4], [5, 1, 1, 2, 6, 7], [8, 9]]
    mean = sum(map(len, rows)) / len(rows)

    def score(query: list[int], row: list[int]) -> float:
        total = 0.0
        for token in query:
            holding = sum(token in other for other in rows)
            idf = math.log(1 + (len(rows) - holding + 0.5) / (holding + 0.5))
            count = row.count(token)
            total += idf * count / (count + 1.5 * (0.25 + 0.75 * len(row) / mean))
        return total

    found, scores = BM25Index.of(rows).nearest([2, 3, 1, 99], 4)
    wanted = [score([2, 3, 1], row) for row in rows]
    assert found.tolist() == sorted(range(4), key=lambda i: -wanted[i])
    np.testing.assert_allclose(scores, sorted(wanted, reverse=True), rtol=1e-5)


def test_a_row_is_never_its_own_reference_nor_is_its_twin(
    encoded: batches.TokenizedDataset, validation: batches.TokenizedDataset
) -> None:
    twice = encoded.select(np.concatenate([np.arange(len(encoded)), [0, 0]]))  # row 0 three times
    found = retrieval.neighbour_positions(retrieval.find_references(retrieval.build_index(twice), twice, twice, 5))
    assert not (twice.token_hashes[found] == twice.token_hashes[:, None]).any()
    last = len(encoded)
    assert all({0, last, last + 1}.isdisjoint(found[row]) for row in (0, last))


def test_equal_scores_go_in_their_order_however_many_are_asked() -> None:
    rows = [[7, i % 3] for i in range(60)]
    index = BM25Index.of(rows)
    most = index.nearest([7, 1], 40)[0]
    assert most.tolist()[:20] == [i for i in range(60) if i % 3 == 1]
    assert all(index.nearest([7, 1], count)[0].tolist() == most.tolist()[:count] for count in range(1, 40))


def test_too_few_others_are_named(encoded: batches.TokenizedDataset) -> None:
    few = encoded.select(np.arange(3))
    with pytest.raises(retrieval.RetrievalError, match="expected 3 references of each row among 3 training rows"):
        retrieval.find_references(retrieval.build_index(few), few, few, 3)


def test_text_that_was_trained_on_finds_another(context: MethodContext, encoded: batches.TokenizedDataset) -> None:
    """What a row may not do in training, its own text may not do at inference."""
    batch = encoded.batch(np.arange(len(encoded)))
    wanted = retrieval.neighbour_positions(retrieval.read_table(context.references / "train.arrow"))[:, :2]
    assert np.array_equal(train(context).store.find(batch.ids, batch.mask), wanted)


def test_references_are_training_rows_and_labels_enter_nowhere(
    context: MethodContext, encoded: batches.TokenizedDataset, validation: batches.TokenizedDataset, tmp_path: Path
) -> None:
    """The store holds the words on the training rows and nothing else, and turning all labels round changes no reference."""
    store = ReferenceStore(train(context).store.folder)
    assert store.index.size == len(encoded) == len(store.offsets) - 1
    assert not [file.name for file in store.folder.rglob("*") if "label" in file.name]
    batch = validation.batch(np.arange(6))
    assert store.find(batch.ids, batch.mask).max() < len(encoded)
    turned = replace(encoded, label=1 - encoded.label)
    for rows in (encoded, validation):
        before, after = (retrieval.find_references(retrieval.build_index(t), t, rows, 3) for t in (encoded, turned))
        assert before.equals(after)


def test_new_text_finds_what_was_looked_up_before(context: MethodContext, validation: batches.TokenizedDataset) -> None:
    """The student meets validation rows in training by table, and text at inference by its store: one reference."""
    student, batch = train(context), validation.batch(np.arange(len(validation)))
    memory = ("hidden.0", "hidden.2")
    table = ReferenceReader(context.references, context.cache, context.train, memory, "nearest", CONFIG.references).of(
        "validation", validation
    )
    assert np.array_equal(student.store.find(batch.ids, batch.mask), table.nearest)
    for ours_, theirs in zip(
        student.store(batch.ids, batch.mask), table.take(np.arange(len(validation))).values(), strict=True
    ):
        torch.testing.assert_close(ours_, theirs.to(ours_.dtype))


@pytest.mark.parametrize("reference", ["nearest", "random", "zero"])
@pytest.mark.parametrize("store", ["float16", "int8"])
def test_a_saved_student_reads_its_store_without_filbert(
    context: MethodContext, tmp_path: Path, python: Path, reference: str, store: str
) -> None:
    student = train(context, reference=reference, references=ReferenceSettings(2, store))  # type: ignore[arg-type]
    checkpoints.save(student, tiny_tokenizer(), tmp_path / "student")
    said = load_without_filbert(python, tmp_path / "student", "trust", tmp_path)
    wanted = torch.tensor(student_logits(student))
    torch.testing.assert_close(torch.tensor(said["logits"]), wanted)
    torch.testing.assert_close(torch.tensor(student_logits(checkpoints.load_model(tmp_path / "student"))), wanted)
    again = checkpoints.load_model(tmp_path / "student")
    again.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(torch.tensor(student_logits(checkpoints.load_model(tmp_path / "again"))), wanted)


def test_a_student_without_its_store_says_so(context: MethodContext, tmp_path: Path) -> None:
    checkpoints.save(train(context), tiny_tokenizer(), tmp_path / "student")
    (tmp_path / "student" / "references" / "store.json").unlink()
    with pytest.raises(FileNotFoundError, match="no reference store; this student reads its teacher's outputs"):
        student_logits(checkpoints.load_model(tmp_path / "student"))


@pytest.mark.parametrize("norm", reference_bert.NORMS)
def test_with_its_reference_masked_it_is_a_plain_bert(norm: str) -> None:
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "vocab_size": 40,
    }
    torch.manual_seed(0)
    config = reference_bert.ReferenceConfig(**shape, reference_size=24, reference_norm=norm)
    student = reference_bert.ReferenceForSequenceClassification(config).eval()
    plain = FilbertForSequenceClassification(FilbertConfig(**shape)).eval()
    plain.load_state_dict(student.state_dict(), strict=False)
    ids, mask = torch.randint(40, (3, 7)), torch.arange(7) < torch.tensor([[7], [4], [5]])
    reference = {"reference_keys": torch.randn(3, 5, 24), "reference_values": torch.randn(3, 5, 24)}
    with torch.inference_mode():
        heard = student(ids, mask, **reference, reference_mask=torch.ones(3, 5, dtype=torch.bool)).logits
        deaf = student(ids, mask, **reference, reference_mask=torch.zeros(3, 5, dtype=torch.bool)).logits
        wanted = plain(ids, mask).logits
    if norm != "joint":  # which normalises the student's own vectors too
        torch.testing.assert_close(deaf, wanted)
    assert (heard - deaf).abs().max() > 1e-5


def test_the_first_layer_is_the_formula(context: MethodContext) -> None:
    """Equations of reference_bert.py, written out for one row and one head."""
    config = reference_bert.ReferenceConfig(hidden_size=8, num_attention_heads=1, reference_size=6, reference_gate=-0.5)
    torch.manual_seed(0)
    layer = reference_bert.ReferenceSelfAttention(config, 1).eval()
    x, keys, values = torch.randn(1, 4, 8), torch.randn(1, 3, 6), torch.randn(1, 3, 6)
    held = torch.tensor([[True, True, False]])
    r_k, r_v = (layer.norm[n](layer.project[n](r)) for n, r in (("key", keys), ("value", values)))
    q = layer.query(x)
    k, v = layer.key(torch.cat([x, r_k], 1)), layer.value(torch.cat([x, r_v], 1))
    gate = -0.5 + math.log(4 / 2)  # the reference as a whole, of two tokens, against four of its own
    scores = (q @ k.transpose(1, 2) / 8**0.5)[..., :6] + torch.tensor([0.0, 0.0, 0.0, 0.0, gate, gate])
    wanted = scores.softmax(-1) @ v[:, :6]
    torch.testing.assert_close(layer(x, torch.ones(1, 1, 1, 4, dtype=torch.bool), keys, values, held), wanted)


def test_the_shape_of_the_paper_on_bert_base() -> None:
    """4 × 312 beside BERT-base's 12 × 768: 14.83 M parameters, 7.38 times smaller (papers: 7.4)."""
    config = reference_bert.ReferenceConfig(
        hidden_size=312,
        num_hidden_layers=4,
        num_attention_heads=12,
        intermediate_size=1200,
        reference_size=768,
        reference_norm="none",
    )
    with torch.device("meta"):
        student = reference_bert.ReferenceForSequenceClassification(config)
    size = sum(parameter.numel() for parameter in student.parameters())
    assert size == 14_350_874 + 2 * (768 * 312 + 312) + 12 == 14_830_742  # TinyBERT's, P_k and P_v, a gate per head
    assert round(109_483_778 / size, 2) == 7.38


def test_the_reference_is_what_the_student_learns_from(context: MethodContext) -> None:
    """The controls train the same parameters from the same start; only what they read differs."""
    kinds = ("nearest", "random", "zero")
    found = [train(replace(context, scratch=context.scratch / kind), reference=kind).state_dict() for kind in kinds]
    assert all(weights.keys() == found[0].keys() for weights in found)
    name = "bert.encoder.layer.0.attention.self.project.value.weight"
    assert not torch.equal(found[0][name], found[1][name])


def test_references_of_other_rows_are_refused(context: MethodContext, prepared: splits.Prepared) -> None:
    table = retrieval.read_table(context.references / "train.arrow")
    write_table(table.slice(1), context.references / "train.arrow")
    with pytest.raises(retrieval.RetrievalError, match=r"train.arrow: references of other rows; run `dvc repro`"):
        train(context)
    write_table(table, context.references / "train.arrow")
    with pytest.raises(
        retrieval.RetrievalError, match=r"expected 9 references of each row, found 3; raise references.max_references"
    ):
        train(context, references=ReferenceSettings(9, "int8"))


def test_the_neighbours_label_is_a_control() -> None:
    labels = np.array([0, 1, 1])
    assert retrieval.nearest_label_score(SST2, np.array([[0, 1], [2, 0]]), labels, np.array([0, 0])) == 0.5
    stsb = find_task("stsb")
    scores = np.array([1.0, 3.0, 5.0], np.float32)
    assert retrieval.nearest_label_score(stsb, np.array([[0], [1], [2]]), scores, scores) == pytest.approx(1.0)


def test_what_the_reference_tells_is_recorded(context: MethodContext) -> None:
    train(context)
    said = next(line for line in context.recorder.history.read_text().splitlines() if '"information"' in line)
    assert all(name in said for name in ("without", "gain_nearest", "gain_random"))


def test_logits_alone_are_the_same(context: MethodContext) -> None:
    student = train(context).eval()
    batch = context.train.batch(np.arange(6))
    with torch.no_grad():
        whole, alone = (checkpoints.forward_batch(student, batch, logits_alone=alone).logits for alone in (False, True))
    torch.testing.assert_close(alone, whole)
