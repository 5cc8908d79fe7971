"""The result table with its verdicts, the points and curves for `dvc plots`, and the Pareto picture."""

from pathlib import Path

from filbert import config
from filbert import report as figures
from filbert.files import whole_file, write_text
from stages import run

HEAD = """# Results

Written by the `report` stage from `data/metrics` and `data/details`; every figure is of a run, none is typed in.
`against …` is the verdict on the difference of mean scores and its {confidence:.0%} Welch interval: BEATS or LOSES if the
interval excludes 0, TIES if it lies within ± {margin} points, else INCONCLUSIVE. Which command made which task, and what
was tried: [runs.md](runs.md).

![score against size and latency](pareto.svg)

"""


def report(metrics: Path, details: Path, table: Path, picture: Path, plots: Path) -> None:
    """Write TABLE, PICTURE and the CSV files in PLOTS from all figures under METRICS and DETAILS."""
    settings = config.section("report", figures.ReportConfig)
    lines = figures.gather(metrics, details)
    head = HEAD.format(confidence=settings.confidence, margin=settings.margin)
    write_text(table, head + figures.markdown(lines, settings) + "\n")
    write_text(plots / "pareto.csv", figures.as_csv(figures.points(lines)))
    write_text(plots / "curves.csv", figures.as_csv(list(figures.curves(lines))))
    with whole_file(picture) as making:
        figures.draw(lines, making)


if __name__ == "__main__":
    run(report)
