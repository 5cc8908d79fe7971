"""The best exported model under a budget, and the Pareto front: `make pick TASK=… ARGS='--max-mb 5 --max-ms 2'`."""

from pathlib import Path
from typing import Annotated

import typer

from filbert.evaluation.tables import terminal_table
from filbert.export.pick import Budget, draw_front, exported_models, load_candidates, table_rows
from filbert.export.pick import pick as best_within
from filbert.runtime.config import read_params
from stages import run


def pick(
    task_name: Annotated[str, typer.Argument(metavar="TASK")],
    metrics: Annotated[Path, typer.Argument(help="the folder of all figures")],
    exported: Annotated[Path, typer.Argument(help="the folder of all exports")],
    max_mb: Annotated[float | None, typer.Option(min=0, help="size of all that is deployed")] = None,
    max_ms: Annotated[float | None, typer.Option(min=0, help="from text to answer, one text, one thread")] = None,
    min_share: Annotated[float | None, typer.Option(min=0, max=2, help="of the teacher's score: 0.98")] = None,
    picture: Annotated[Path | None, typer.Option(help="draw the front: .svg or .png")] = None,
) -> None:
    """Print all files exported for TASK with the front marked, and the one that is best on validation rows within the budget."""
    candidates = load_candidates(metrics, exported, task_name, exported_models(read_params(), task_name))
    print(terminal_table(table_rows(candidates)))
    if picture:
        draw_front(candidates, picture)
    best = best_within(candidates, Budget(max_mb, max_ms, min_share))
    print(
        f"\n{best.label}: {best.validation:.1f} on validation rows, {best.bytes / 1e6:.1f} MB, {best.milliseconds:.2f} ms"
    )
    print(best.folders[0])


if __name__ == "__main__":
    run(pick)
