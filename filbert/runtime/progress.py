"""Progress bars with rate and remaining time, updated often in a terminal and rarely in a log file."""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm.auto import tqdm

from filbert.runtime.files import IS_MAIN_PROCESS

T = TypeVar("T")


def bar(title: str, total: int, done: int = 0) -> tqdm:
    """A bar over `total` rows, `done` of which are finished."""
    seconds = 0.5 if sys.stderr.isatty() else 15.0
    return tqdm(
        total=total, initial=done, desc=title, unit="rows", unit_scale=True, mininterval=seconds, maxinterval=seconds,
        file=sys.stderr if IS_MAIN_PROCESS else open(os.devnull, "w"),
    )  # fmt: skip


def track(title: str, items: Iterable[T], total: int) -> Iterator[T]:
    """Yield the items and show a bar over them."""
    with bar(title, total) as shown:
        for item in items:
            yield item
            shown.update()


def log(text: str) -> None:
    """Print a line above the bars."""
    if IS_MAIN_PROCESS:
        tqdm.write(text, file=sys.stderr)


@contextmanager
def logged_warnings() -> Iterator[None]:
    """Print what a command's user is warned of within as lines; other categories than UserWarning are dropped."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in said:
        if issubclass(warning.category, UserWarning):
            log(f"warning: {warning.message}")
