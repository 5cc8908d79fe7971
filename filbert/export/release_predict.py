"""Ask this model: python predict.py "a text" "another"; a pair is joined by a tab. Needs onnxruntime and tokenizers alone."""
# fmt: off

import json, sys  # noqa: E401, I001
from pathlib import Path
import numpy as np, onnxruntime, tokenizers  # noqa: E401

here, texts = Path(__file__).parent, sys.argv[1:] or sys.exit(__doc__)
card = json.loads((here / "config.json").read_text("utf-8"))
tokenizer = tokenizers.Tokenizer.from_file(str(here / "tokenizer.json"))
tokenizer.enable_truncation(card["max_length"])
tokenizer.enable_padding(pad_id=card["pad"])
session = onnxruntime.InferenceSession(str(here / card["model"]))
rows = tokenizer.encode_batch([tuple(text.split("\t")) if len(card["columns"]) > 1 else text for text in texts])
fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
inputs = {name: np.array([getattr(row, field) for row in rows], np.int64) for name, field in fields.items()}
names = {value.name for value in session.get_inputs()}
if "reference_keys" in names:  # this model reads what its teacher gave for similar texts
    from references import References
    inputs |= References(here / "references")([np.array(row.ids)[np.array(row.attention_mask) > 0].tolist() for row in rows])
logits = session.run(None, {name: value for name, value in inputs.items() if name in names})[0] / card["temperature"]
shares = np.exp(logits - logits.max(-1, keepdims=True)) / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)
for text, row, found, share in zip(texts, rows, logits, shares):  # noqa: B905
    if card["kind"] == "regression":
        answer = {"score": float(found[0]) * card["temperature"]}
    elif card["kind"] == "tagging":  # a word has the tag of its first token
        first = [(t, a) for t, (a, b) in enumerate(row.offsets) if b > a and (not a or text[a - 1].isspace())]
        answer = {"tags": [[text[a:].split()[0], card["labels"][share[t].argmax()]] for t, a in first]}
    else:
        answer = {"label": card["labels"][share.argmax()], "probability": float(share.max())}
    print(json.dumps({"text": text} | answer, ensure_ascii=False))
