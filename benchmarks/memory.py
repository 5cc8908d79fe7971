"""Memory that is no mapped file, while a block runs."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def peak() -> Iterator[list[float]]:
    """The largest growth in megabytes of memory that is no mapped file, in a list of one number, while the block runs."""
    found, done, before = [0.0], threading.Event(), _anonymous()

    def watch() -> None:
        while not done.is_set():
            found[0] = max(found[0], _anonymous() - before)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def _anonymous() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1e3
