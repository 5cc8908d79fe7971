"""The Pareto picture of docs/: score against size and against latency, one row of panels per task."""

import statistics
from pathlib import Path
from typing import Any

from filbert.data.tasks import find
from filbert.evaluation.results import StudentResults

AXES = (
    (("parameters",), "million parameters", 1e-6),
    (("milliseconds", "batch_1"), "ms for one row, 1 thread", 1.0),
)
MARKERS = "o*sD^vPX"


def draw_pareto(results: list[StudentResults], file: Path) -> None:
    """Write the picture, the same bytes for the same results, in the format that the name of `file` says."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "filbert"
    tasks = list(dict.fromkeys(result.task for result in results))
    students = list(dict.fromkeys(result.student for result in results))
    markers = {student: MARKERS[number % len(MARKERS)] for number, student in enumerate(students)}
    figure, grid = plt.subplots(len(tasks), 2, figsize=(9, 3.2 * len(tasks)), squeeze=False, sharey="row")
    for panels, task in zip(grid, tasks, strict=True):
        for panel, (path, label, scale) in zip(panels, AXES, strict=True):
            for result in (result for result in results if result.task == task):
                _draw_point(panel, result, result.median(*path) * scale, markers[result.student])
            panel.set_xlabel(label)
            panel.set_xlim(left=0)
            panel.grid(alpha=0.3)
        panels[0].set_ylabel(f"{task}: {' + '.join(find(task).metrics)}")
        panels[1].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)


def _draw_point(panel: Any, result: StudentResults, x: float, marker: str) -> None:
    deviation = statistics.stdev(result.scores) if len(result.scores) > 1 else None
    panel.errorbar(x, statistics.mean(result.scores), yerr=deviation, fmt=marker, capsize=3, label=result.student)
