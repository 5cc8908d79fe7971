"""One paper, one file: `Config`, its settings; `columns`, the teacher's outputs that it needs; `compress`, its algorithm.

A method file has

    Config                                    a frozen dataclass: the keys of `settings.<method>` in params.yaml
    columns(layer_map, config) -> names       what the teacher's cache must hold (models/intermediate_outputs.py)
    compress(context, config) -> a student    the algorithm: one `context.fit(...)` per phase of the paper

A method whose settings have `transfer: true` finds the transfer rows in `context.transfer`.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from filbert import FilbertError

NOT_METHODS = ("__init__", "context", "mixed_vocabulary")  # the last one pretrains a start, for any method


def names() -> list[str]:
    """The methods that have a file here."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if file.stem not in NOT_METHODS)


def load_method(name: str) -> ModuleType:
    """The module of a method.

    Raises:
        FilbertError: there is no such file.
    """
    if name not in names():
        raise FilbertError(
            f"no method `{name}`; known are {', '.join(names())}. A new one is a file in filbert/methods/"
        )
    return import_module(f"filbert.methods.{name}")
