"""The record of a training (history.jsonl) and its view in MLflow, which may be lost and is rebuilt from files."""
