"""Ask this model: python predict.py "a text" "another"; a pair is joined by a tab. Needs onnxruntime and tokenizers alone."""
# fmt: off

import json, os, sys  # noqa: E401, I001
from pathlib import Path
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime would report each session
import numpy as np
import onnxruntime
import tokenizers

HERE = Path(__file__).parent
CARD = json.loads((HERE / "config.json").read_text("utf-8"))
TOKENIZER = tokenizers.Tokenizer.from_file(str(HERE / "tokenizer.json"))
TOKENIZER.enable_truncation(CARD["max_length"])
TOKENIZER.enable_padding(pad_id=CARD["pad"])
OPTIONS = onnxruntime.SessionOptions()
OPTIONS.add_session_config_entry("session.x64quantprecision", "1")  # else int8 overflows where x86 has no VNNI
SESSION = onnxruntime.InferenceSession(str(HERE / CARD["model"]), OPTIONS)
FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}

def predict(texts: list[str]):  # type: ignore[no-untyped-def]
    """An answer for each text, as a dict."""
    rows = TOKENIZER.encode_batch([tuple(text.split("\t")) if len(CARD["columns"]) > 1 else text for text in texts])
    inputs = {name: np.array([getattr(row, field) for row in rows], np.int64) for name, field in FIELDS.items()}
    names = {value.name for value in SESSION.get_inputs()}
    if "reference_keys" in names:  # this model reads what its teacher gave for similar texts
        from references import References
        inputs |= References(HERE / "references")([np.array(row.ids)[np.array(row.attention_mask) > 0].tolist() for row in rows])
    logits = SESSION.run(None, {name: value for name, value in inputs.items() if name in names})[0] / CARD["temperature"]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    for text, row, found, share in zip(texts, rows, logits, shares):  # noqa: B905
        if CARD["kind"] == "regression":
            answer = {"score": float(found[0]) * CARD["temperature"]}
        elif CARD["kind"] == "multilabel":
            answer = {"labels": [name for name, logit in zip(CARD["labels"], found) if logit > 0]}  # noqa: B905
        elif CARD["kind"] == "tagging":  # a word has the tag of its first token
            first = {len(text[:b].split()) - 1: t for t, (a, b) in reversed(list(enumerate(row.offsets))) if b > a}
            tag = {word: CARD["labels"][share[t].argmax()] for word, t in first.items()}
            answer = {"tags": [[word, tag.get(number, "O")] for number, word in enumerate(text.split())]}
        else:
            answer = {"label": CARD["labels"][share.argmax()], "probability": float(share.max())}
        yield {"text": text} | answer

if __name__ == "__main__":
    for answer in predict(sys.argv[1:] or sys.exit(__doc__)):
        print(json.dumps(answer, ensure_ascii=False))
