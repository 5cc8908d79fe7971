"""A tiny world: a 2-layer BERT of width 16 with real classes, thirty words, small tables in the layouts of real data sets."""

import json
import subprocess
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

from filbert.data import tasks
from filbert.data.tasks import Task

WORDS = (
    "the a film movie plot is was good bad great awful fine dull and but very not so long short warm cold cat dog "
    "runs sleeps here there ##s ##ly"
).split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROOT = Path(__file__).parent.parent
PARAMS = ROOT / "params.yaml"
CPU = torch.device("cpu")
GOOD, BAD = ("good", "great", "fine", "warm"), ("bad", "awful", "dull", "cold")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tiny_config(**more: object) -> BertConfig:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    return BertConfig(**shape | more, vocab_size=len(SPECIAL) + len(WORDS), max_position_embeddings=64)


def sentences(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Distinct sentences whose adjective says the label."""
    draw, out = np.random.default_rng(seed), {}
    while len(out) < count:
        label = int(draw.integers(2))
        adjective = draw.choice(GOOD if label else BAD)
        noun, verb, end = draw.choice(["film", "movie", "plot"]), draw.choice(["is", "was"]), draw.choice(WORDS[:-2], 3)
        out[f"the {noun} {verb} {adjective} and {' '.join(end)}"] = label
    return list(out.items())


def find_task(name: str) -> Task:
    """A task of the real table."""
    return tasks.find(name, PARAMS)


def write_sst2(folder: Path, train: int = 96, dev: int = 24) -> Path:
    """GLUE's SST-2 layout."""
    found = sentences(train + dev)
    (folder / "SST-2").mkdir(parents=True)
    for name, part in (("train", found[:train]), ("dev", found[train:])):
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in part)]
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


ENTITIES = {"dog": "B-PER", "cat": "B-PER", "movie": "B-LOC", "plot": "B-LOC"}


def write_conll(folder: Path, language: str, count: int, seed: int) -> None:
    """Sentences in which some words are names; a name may go on with `long`, and `dogs` and `cats` are two tokens."""
    draw, seen = np.random.default_rng(seed), set()
    (folder / language).mkdir(parents=True, exist_ok=True)
    while len(seen) < count:
        words = [str(word) for word in draw.choice(WORDS[:-2], int(draw.integers(3, 9)))]
        seen.add(" ".join(words))
    sentences = [text.split() for text in sorted(seen)]
    for name, part in (("train", sentences[8:]), ("dev", sentences[:8])):
        blocks = [
            "\n".join(f"{language}:{word}\t{tag}" for word, tag in zip(words, word_tags(words), strict=True))
            for words in part
        ]
        (folder / language / f"{name}.txt").write_text("\n\n".join(blocks) + "\n")


def word_tags(words: list[str]) -> list[str]:
    out: list[str] = []
    for word in words:
        goes_on = word == "long" and out and out[-1] != "O"
        out.append(f"I-{out[-1][2:]}" if goes_on else ENTITIES.get(word, "O"))
    return out


def sentence_piece(order: int = 1) -> PreTrainedTokenizerFast:
    """A tokenizer that marks where words begin, as SentencePiece does; in order 1 most words have `tiny_tokenizer`'s numbers, in
    order -1 others."""
    known = [f"▁{word}" for word in WORDS[::order] if word.isalpha()]
    words = ["<pad>", "<unk>", "<s>", "</s>", "▁", *known, "s", "cat", "dog"]
    tokenizer = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


FRESH_PROCESS = """
import sys, json, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
trust = {"trust_remote_code": True} if sys.argv[2] == "trust" else {}
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], **trust).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **trust)
with torch.inference_mode():
    logits = model(**tokenizer(["the film was great", "dull"], padding=True, return_tensors="pt")).logits
answer = pipeline("text-classification", model=model, tokenizer=tokenizer, **trust)("the film was great")
assert not [name for name in sys.modules if name.split(".")[0] == "filbert"], "filbert was imported"
print(json.dumps({"logits": logits.tolist(), "label": answer[0]["label"]}))
"""


def load_without_filbert(python: Path, folder: Path, trust: str, tmp_path: Path) -> dict:
    """What a process outside this repository that has not imported filbert makes of the folder; `python` is the fixture."""
    script = tmp_path / "load.py"
    script.write_text(FRESH_PROCESS)
    env = {"PATH": "", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [str(python), str(script), str(folder), trust]
    done = subprocess.run(command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def student_logits(model: torch.nn.Module) -> list:
    inputs = tiny_tokenizer()(["the film was great", "dull"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model.eval()(inputs["input_ids"], inputs["attention_mask"]).logits.tolist()
