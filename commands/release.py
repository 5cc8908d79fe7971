"""Put the best exported model under a budget into a folder to hand over: `make release TASK=…`."""

from pathlib import Path
from typing import Annotated

import typer

from filbert.export.folder import NAMES
from filbert.export.pick import Budget, exported_models, load_candidates, pick
from filbert.export.release import write_release
from filbert.runtime.config import read_params
from filbert.tracking.registry import register_release
from stages import OutFolder, run


def release(
    task_name: Annotated[str, typer.Argument(metavar="TASK")],
    metrics: Annotated[Path, typer.Argument(help="the folder of all figures")],
    exported: Annotated[Path, typer.Argument(help="the folder of all exports")],
    out: Annotated[OutFolder, typer.Argument(help="the folder to write")],
    max_mb: Annotated[float | None, typer.Option(min=0)] = None,
    max_ms: Annotated[float | None, typer.Option(min=0)] = None,
    min_share: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    student: Annotated[str, typer.Option(help="this one, rather than the best")] = "",
    register: Annotated[bool, typer.Option(help="as a version in MLflow's registry")] = True,
) -> None:
    """Write the model of TASK that is best on validation rows within the budget to OUT, with all that it takes to ask it."""
    candidates = load_candidates(metrics, exported, task_name, exported_models(read_params(), task_name))
    best = pick(candidates, Budget(max_mb, max_ms, min_share), student)
    file = next(file for file, name in NAMES.items() if name == best.file)
    write_release(best.folders[0], file, out, best.milliseconds)
    print(
        f"{out}: {best.label}, {best.validation:.1f} on validation rows, {best.bytes / 1e6:.1f} MB, {best.milliseconds:.2f} ms"
    )
    if register:
        figures = {n: getattr(best, n) for n in ("validation", "test", "bytes", "milliseconds")}
        found = register_release(out, task_name, figures, {"task": task_name, "student": best.name, "file": best.file})
        champion = (
            ", the champion now"
            if found.is_champion
            else "; the champion before it is at least as good on validation rows"
        )
        print(f"MLflow: version {found.version} of {found.name}{champion}")


if __name__ == "__main__":
    run(release)
