"""A release as MLflow serves it. MLflow runs this file (models from code): nothing is pickled, and filbert is not needed."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import mlflow


class Release(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Answers a column `text` by the release's own predict.py, an answer as JSON a row."""

    def load_context(self, context: Any) -> None:
        folder = Path(context.artifacts["release"])
        sys.path.insert(0, str(folder))  # references.py, of a model that reads references
        spec = importlib.util.spec_from_file_location("release_predict", folder / "predict.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.answers = module.predict

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads types as a schema
        """The answers to the texts of a table's first column."""
        return [json.dumps(answer, ensure_ascii=False) for answer in self.answers(list(model_input.iloc[:, 0]))]


mlflow.models.set_model(Release())
