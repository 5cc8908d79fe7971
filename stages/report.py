"""The result table with its verdicts, the points and curves for `dvc plots`, and the Pareto picture."""

import statistics
from pathlib import Path

from filbert import config, figures, files, records, tracking
from filbert import report as says
from stages import run, scratch_of

HEAD = """# Results

Written by the `report` stage from `data/metrics` and `data/details`; every figure is of a run, none is typed in.
A verdict is on the difference of mean scores and its {confidence:.0%} Welch interval: TIES if the interval lies within
± {margin} points, else BEATS or LOSES if it excludes 0, else INCONCLUSIVE. Which command made which task, and
what was tried: [runs.md](runs.md).

![score against size and latency](pareto.svg)

"""


def report(metrics: Path, details: Path, table: Path, picture: Path, plots: Path) -> None:
    """Write TABLE, PICTURE and the CSV files in PLOTS from all figures under METRICS and DETAILS."""
    settings = config.section("report", says.ReportConfig)
    lines = figures.gather(metrics, details)
    head = HEAD.format(confidence=settings.confidence, margin=settings.margin)
    with tracking.stage_run(
        "report", params={"report": settings}, tags={}, hashes={}, scratch=scratch_of(table)
    ) as recorder:
        files.write_text(table, head + says.markdown(lines, settings, figures.neighbours(metrics, lines)) + "\n")
        files.write_text(plots / "pareto.csv", figures.as_csv(figures.points(lines)))
        files.write_text(plots / "curves.csv", figures.as_csv(list(figures.curves(lines))))
        with files.whole_file(picture) as making:
            says.draw(lines, making)
        recorder.runs(records.aggregates(lines, metrics, settings))
        recorder.metrics({f"{line.task}/{line.student}": statistics.mean(line.scores) for line in lines})
    files.forget(scratch_of(table))


if __name__ == "__main__":
    run(report)
