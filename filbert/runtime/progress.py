"""The progress bar of everything that takes long: rate and time left, often in a terminal, rarely in a log file."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

from filbert.runtime.files import IS_MAIN_PROCESS

T = TypeVar("T")


def bar(what: str, total: int, done: int = 0) -> tqdm:
    """A bar over `total` rows of which `done` are done."""
    every = 0.5 if sys.stderr.isatty() else 15.0
    return tqdm(
        total=total, initial=done, desc=what, unit="rows", unit_scale=True, mininterval=every, maxinterval=every,
        file=sys.stderr if IS_MAIN_PROCESS else open(os.devnull, "w"),
    )  # fmt: skip


def track(what: str, items: Iterable[T], total: int) -> Iterator[T]:
    """The items, one by one, and a bar over them."""
    with bar(what, total) as shown:
        for item in items:
            yield item
            shown.update()


def log(text: str) -> None:
    """A line that does not tear the bar."""
    if IS_MAIN_PROCESS:
        tqdm.write(text, file=sys.stderr)
