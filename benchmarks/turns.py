"""Arms run in turn, so that what disturbs one disturbs all; ratios of medians, and beside them of minima."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from filbert.evaluation.tables import markdown_table
from filbert.runtime import device

Times = dict[str, list[float]]


def machine(on: torch.device) -> str:
    """Threads, precision, processor and version, as a benchmark must state them."""
    facts = device.machine_facts()
    here = f"{torch.get_num_threads()} threads, {device.precision(on)}"
    return f"{here}. {facts['processor']}, {facts['flags']}, torch {facts['torch']}"


def in_turn(arms: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """Seconds of each arm, one after the other, after a round that does not count."""
    times: Times = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def ratios(times: Times, work: float, unit: str) -> str:
    """Each arm beside the first."""
    first = next(iter(times.values()))
    lines = [
        [name, f"{work / float(np.median(found)):.3g}", "" if found is first else ratio(found, first)]
        for name, found in times.items()
    ]
    return markdown_table([["", unit, f"time, against {next(iter(times))}"], *lines])


def ratio(ours: list[float], theirs: list[float]) -> str:
    return f"{np.median(ours) / np.median(theirs):.3f} (of minima {min(ours) / min(theirs):.3f})"
