"""The model card of an exported folder: what it is, how good, how large, how fast, what made it, and how to run it."""

import statistics
from typing import Any

from filbert.data.tasks import Source, Task
from filbert.export.folder import ModelCard
from filbert.runtime.device import machine_facts

SHOWN = ("stage", "method", "teacher", "seed", "rows")  # of the provenance; all of it is in export.json


def model_card(card: ModelCard, task: Task, source: Source, record: dict[str, Any]) -> str:
    """The card as Markdown, from what `export.json` records."""
    title = f"# {card.student} on {card.task}, seed {card.seed}"
    parts = (
        _summary(card, task, source),
        _scores(card, record),
        _int8(record),
        _use(card),
        _limits(card, record),
        _origin(record),
    )
    return "\n\n".join([title, *parts]) + "\n"


def _summary(card: ModelCard, task: Task, source: Source) -> str:
    what = {"single": "one text, one of", "pair": "two texts, one of", "tagging": "a tag for each word, out of",
            "multilabel": "one text, each that applies (its probability is above a half) of"}  # fmt: skip
    labels = f"{what[card.kind]} {', '.join(card.labels)}" if card.kind in what else "a number"
    return (
        f"Task `{card.task}` ({card.kind}): {labels}. Text columns: {', '.join(card.columns)}. Data: {source.kind} `{source.name}`"
        f"{f', {source.within}' if source.within else ''}; its licence is that of its publisher and was not examined. Metrics: "
        f"{', '.join(task.metrics)}."
    )


def calibrated(record: dict[str, Any], file: str) -> dict[str, Any]:
    """The temperature and thresholds of a ModelCard that were fitted to the answers of `file`; nothing without classes."""
    found = record["calibration"][file]
    return {name: found[name] for name in ("temperature", "thresholds")} if found else {}


def _scores(card: ModelCard, record: dict[str, Any]) -> str:
    facts, file = machine_facts(), record["files"][card.model]
    splits = {name: found for name, found in file.items() if name.startswith(("test", "validation"))}
    rows = [f"| {name} | {100 * found['score']:.1f} | {_interval(found)} |" for name, found in splits.items()]
    return "\n".join([
        "## How good, how large, how fast", "", "| rows | score | 95 % interval over rows |", "| --- | --- | --- |", *rows, "",
        f"{file['bytes'] / 1e6:.1f} MB ({file['model_bytes'] / 1e6:.1f} MB the model, the rest tokenizer and references). "
        f"Times below: a forward pass, {record['threads']} thread of {facts['processor']}, {facts['flags']}.",
    ])  # fmt: skip


def _interval(scores: dict[str, Any]) -> str:
    low_high = scores.get("interval")
    return f"{100 * low_high[0]:.1f} to {100 * low_high[1]:.1f}" if low_high else "–"


def _int8(record: dict[str, Any]) -> str:
    rows = [
        f"| {v['variant']} | {v['verdict']} | {v['why']} | {'–' if v['score'] is None else format(v['score'], '.2f')} | "
        f"{v['bytes'] / 1e6:.2f} | {' / '.join(format(t['median'], '.2f') for t in v['milliseconds'].values()) or '–'} |"
        for v in record["variants"]
    ]
    check = record["logits"]
    sizes = " / ".join(record["variants"][0]["milliseconds"])
    return "\n".join([
        "## Export", "", f"Logits of the float32 file differ from Torch's by {max(check['mixed'], check['alone']):.1e} at most "
        f"({check['rows']} validation rows in batches of mixed length, {check['rows_alone']} alone).", "",
        f"| file | verdict | why | validation score | MB | ms, batch {sizes} |", "| --- | --- | --- | --- | --- | --- |", *rows,
    ])  # fmt: skip


def _use(card: ModelCard) -> str:
    text = '("first text", "second text")' if len(card.columns) > 1 else '"a text"'
    return f'## Use\n\n```python\nimport filbert\n\nfilbert.load("this folder").predict([{text}])\n```'


def _limits(card: ModelCard, record: dict[str, Any]) -> str:
    found = [f"Texts longer than {card.max_length} tokens are cut."]
    if calibration := record["calibration"][card.model]:
        found.append(
            f"Logits are divided by {card.temperature:.2f}; the expected calibration error on validation rows fell from "
            f"{100 * calibration['error_before']:.1f} to {100 * calibration['error_after']:.1f} points."
        )
        found += [
            f"With probability {t['threshold']:.3f} or more ({t['coverage']:.0%} of validation rows), {float(p):.0%} were right."
            for p, t in card.thresholds.items()
        ]
    if card.flags:
        found.append(f"int8 answers depend on the processor; measured with {card.flags}.")
    found.append("Scores are of the task's own test rows; nothing is known of text of another kind.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in found)


def _origin(record: dict[str, Any]) -> str:
    made = ", ".join(f"{name} {record['provenance'][name]}" for name in SHOWN if name in record["provenance"])
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"## Made by\n\n`make repro` of Filbert: {made}. Versions: {versions}."


def mean_interval(right: list[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over rows, by the normal approximation."""
    half = 1.96 * statistics.pstdev(right) / len(right) ** 0.5
    return statistics.mean(right) - half, statistics.mean(right) + half
