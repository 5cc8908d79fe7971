"""A trained or exported model asked about text: an export runs on onnxruntime and tokenizers alone, torch is not imported.

Texts are tokenised together, sorted by length, answered in batches of at most so many padded tokens, and returned in their order.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from filbert import FilbertError
from filbert.export import folder as folders
from filbert.export import references
from filbert.export.folder import FolderError, ModelCard
from filbert.export.session import new_session, processor_flags
from filbert.runtime.files import is_unicode
from filbert.runtime.seals import check_seal

Text = str | tuple[str, str]  # a pair where the task has two columns
Answer = dict[str, Any]
TOKENS = 4096  # padded tokens of a batch: what fits a core's cache
PAIR = 2


class TextError(FilbertError):
    """A text cannot be answered; the message says what was expected and what came."""


class Predictor:
    """One model, opened: texts in, answers out."""

    def __init__(self, card: ModelCard, tokenizer: Tokenizer, run: Callable[[dict[str, np.ndarray]], np.ndarray]):
        self.card, self.tokenizer, self.run = card, tokenizer, run
        self.cut = 0  # texts of the last call that were longer than the maximum length
        tokenizer.enable_truncation(card.max_length, strategy="longest_first")
        tokenizer.no_padding()

    def predict(
        self,
        texts: Sequence[Text],
        every: bool = False,
        abstain: float | None = None,
        tokens: int = TOKENS,
        workers: int = 1,
    ) -> list[Answer]:
        """An answer to each text: `label` and `probability`; the `labels` whose probability is above a half, of a multilabel
        task; the `score` of a regression; or the `tags` of its words.

        Args:
            every: add the `probabilities` of all labels.
            abstain: the wanted precision: the label is None where the probability is below the threshold found for it.
            tokens: the budget of a batch, padding included.
            workers: batches answered at the same time.

        Raises:
            TextError: a text is empty or no text, or is a pair where the task has one column, or the reverse.
        """
        threshold = self.threshold(abstain)
        for number, text in enumerate(texts, 1):
            if problem := self.problem(text):
                raise TextError(f"text {number}: {problem}")
        encodings = self.encode(texts)
        self.cut = sum(bool(encoding.overflowing) for encoding in encodings)
        rows = self.logits(encodings, tokens, workers)
        return [
            self._answer(*row, every=every, threshold=threshold) for row in zip(texts, encodings, rows, strict=True)
        ]

    def problem(self, text: Any) -> str:
        """Why something is not a text of this task; empty where it is one."""
        parts = text if isinstance(text, tuple) else (text,)
        if len(parts) != len(self.card.columns):
            return (
                f"expected {_count(len(self.card.columns))} ({', '.join(self.card.columns)}), got {_count(len(parts))}"
            )
        for name, part in zip(self.card.columns, parts, strict=True):
            if not isinstance(part, str):
                return f"expected text in {name}, got {part!r:.40}"
            if not part.strip():
                return f"expected text in {name}, got an empty one"
            if not is_unicode(part):
                return f"expected valid Unicode in {name}, got a lone surrogate"
        return ""

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """The tokens of texts, cut to the maximum length."""
        tagged = self.card.kind == "tagging"  # needs offsets, which the fast way leaves out
        return (self.tokenizer.encode_batch if tagged else self.tokenizer.encode_batch_fast)(list(texts))

    def logits(self, encodings: Sequence[Encoding], tokens: int = TOKENS, workers: int = 1) -> list[np.ndarray]:
        """The logits of each text, of a tagged one those of each token [T, C]."""
        out: list[np.ndarray] = [np.empty(0)] * len(encodings)
        batches = list(self._batches(encodings, tokens))
        with ThreadPoolExecutor(workers) as pool:
            answers = pool.map if workers > 1 else map
            for at, found in zip(
                batches, answers(lambda at: self._run([encodings[i] for i in at]), batches), strict=True
            ):
                for number, row in zip(at, found, strict=True):
                    out[number] = row
        return out

    def _batches(self, encodings: Sequence[Encoding], tokens: int) -> Iterator[list[int]]:
        """Numbers of texts, shortest first, in batches whose padded size is at most `tokens`, or a single text."""
        lengths = [len(encoding.ids) for encoding in encodings]
        batch: list[int] = []
        for number in sorted(range(len(lengths)), key=lengths.__getitem__):
            if batch and lengths[number] * (len(batch) + 1) > tokens:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def _run(self, encodings: list[Encoding]) -> list[np.ndarray]:
        found = self.run(pad(encodings, self.card.pad))
        if self.card.kind != "tagging":
            return list(found)
        return [row[: len(encoding.ids)] for row, encoding in zip(found, encodings, strict=True)]

    def threshold(self, precision: float | None) -> float:
        """The least probability of an answer with a label, for a wanted precision.

        Raises:
            FilbertError: none was found for it, or the task has no such answers.
        """
        if precision is not None and self.card.kind in ("multilabel", "regression", "tagging"):
            raise FilbertError(f"abstain: expected a task with one class a text, got {self.card.kind}")
        return 0.0 if precision is None else self.card.threshold(precision)

    def _answer(self, text: Text, encoding: Encoding, logits: np.ndarray, every: bool, threshold: float) -> Answer:
        if self.card.kind == "regression":
            return {"score": float(logits[0])}
        if self.card.kind == "multilabel":
            named = [name for name, logit in zip(self.card.labels, logits, strict=True) if logit > 0]
            return {"labels": named} | ({"probabilities": self._by_label(sigmoid(logits))} if every else {})
        share = probabilities(logits / self.card.temperature)
        if self.card.kind == "tagging":
            return {"tags": self._tags(str(text), encoding, share, every)}
        best = int(share.argmax())
        sure = float(share[best])
        answer: Answer = {"label": self.card.labels[best] if sure >= threshold else None, "probability": sure}
        if every:
            answer["probabilities"] = self._by_label(share)
        return answer

    def _tags(self, text: str, encoding: Encoding, share: np.ndarray, every: bool) -> list[list[Any]]:
        """Each word with the tag of its first token; O for words beyond the maximum length."""
        first = {word: at for at, word in reversed(list(enumerate(word_starts(encoding, text)))) if word >= 0}
        out = []
        for number, word in enumerate(text.split()):
            row = share[first[number]] if number in first else np.eye(len(self.card.labels))[0]
            out.append([word, self.card.labels[int(row.argmax())], *([self._by_label(row)] if every else [])])
        return out

    def _by_label(self, share: np.ndarray) -> dict[str, float]:
        return dict(zip(self.card.labels, map(float, share), strict=True))


def open_model(folder: Path | str, threads: int | None = None, file: str = "") -> Predictor:
    """The model in a folder, exported or not, ready to be asked; of an export the file that passed the gate, or `file`.

    Raises:
        FolderError: the folder holds no model, or not all of one.
        SealError: a file in it is not as it was written.
    """
    folder = Path(folder)
    check_seal(folder)
    if not folders.is_exported(folder):
        from filbert.export.torch_model import open_torch  # torch is imported only for its own models

        return open_torch(folder, threads)
    card = folders.read_card(folder)
    file = file or card.model
    if file == folders.INT8 and card.flags != processor_flags():
        warnings.warn(
            f"{folder / file}: its quality was measured on a processor with {card.flags}, this one has {processor_flags()}; int8 "
            f"answers may differ. Measure it here, or run {folders.FLOAT32}",
            stacklevel=2,
        )
    card = dataclasses.replace(card, model=file)
    return Predictor(card, load_tokenizer(folder), onnx_runner(folder, file, threads, outputs=len(card.labels)))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer beside a model.

    Raises:
        FolderError: there is none, or it cannot be read.
    """
    file = folder / folders.TOKENIZER
    if not file.is_file():
        raise FolderError(f"{file}: expected the tokenizer beside the model, found none; export or train it again")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises Exception itself
        raise FolderError(f"{file}: expected a tokenizer, got {error}") from error


def onnx_runner(
    folder: Path,
    file: str,
    threads: int | None,
    watch: Callable[[dict[str, np.ndarray]], object] | None = None,
    outputs: int = 0,
) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """An exported graph as a function of its inputs; references are looked up in the store in `folder`.

    Args:
        watch: is given what the graph is fed.
        outputs: logits that it must have; 0: any number.

    Raises:
        FilbertError: the file cannot be run, has another number of logits, or its store is missing.
    """
    session = new_session(folder / file, threads)
    found = session.get_outputs()[0].shape[-1]
    if outputs and isinstance(found, int) and found != outputs:  # a dimension without a number has a name
        raise FolderError(
            f"{folder / file}: expected {outputs} logits, for labels of {folders.CONFIG}, found {found}: export the model again"
        )
    names = {value.name for value in session.get_inputs()}
    store = _open_store(folder / references.FOLDER) if "reference_keys" in names else None

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        if store:
            padded = zip(inputs["input_ids"], inputs["attention_mask"].astype(bool), strict=True)
            inputs = inputs | store([row[real].tolist() for row, real in padded])
        given = {name: value for name, value in inputs.items() if name in names}
        if watch:
            watch(given)
        return session.run(None, given)[0]

    return run


def _open_store(folder: Path) -> references.References:
    try:
        return references.References(folder)
    except (OSError, ValueError, KeyError) as error:
        raise FolderError(
            f"{folder}: expected the references that this student reads, got {error}; export it again"
        ) from error


def pad(encodings: Sequence[Encoding], padding: int) -> dict[str, np.ndarray]:
    """The inputs of a batch, padded to its longest row: [B, T] int64 each."""
    shape = len(encodings), max(len(encoding.ids) for encoding in encodings)
    ids, mask, types = np.full(shape, padding, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for number, encoding in enumerate(encodings):
        length = len(encoding.ids)
        ids[number, :length], mask[number, :length] = encoding.ids, 1
        types[number, :length] = encoding.type_ids
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """The probability of each label by itself."""
    return 0.5 * (1 + np.tanh(logits / 2))


def word_starts(encoding: Encoding, text: str) -> list[int]:
    """For each token the number of the whitespace-separated word it begins, or -1."""
    number, word = [], -1  # of the word at each character
    for at, character in enumerate(text):
        word += not character.isspace() and (at == 0 or text[at - 1].isspace())
        number.append(word)
    out, last = [], -1
    for sequence, (start, end) in zip(encoding.sequence_ids, encoding.offsets, strict=True):
        begins = sequence is not None and end > start and number[end - 1] > last
        last = number[end - 1] if begins else last
        out.append(last if begins else -1)
    return out


def _count(parts: int) -> str:
    return "a pair of texts" if parts == PAIR else "one text" if parts == 1 else f"{parts} texts"
