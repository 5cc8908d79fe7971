"""The result table with its verdicts, the points and curves for `dvc plots`, the Pareto picture, and the page."""

import statistics
from pathlib import Path

from filbert.evaluation import mlflow_records, page, results
from filbert.evaluation import tables as says
from filbert.evaluation.statistics import ReportConfig
from filbert.runtime import config, files
from filbert.tracking import recording
from stages import run, scratch_of

RULE = """A verdict is on the difference of mean scores and its {confidence:.0%} Welch interval: TIES if the interval lies within
± {margin} points, else BEATS or LOSES if it excludes 0, else INCONCLUSIVE."""

HEAD = """# Results

Written by the `report` stage from `data/metrics` and `data/details`; every figure is of a run, none is typed in.
{rule} Which command made which task, and
what was tried: [runs.md](runs.md).

![score against size and latency](pareto.svg)

"""


def report(metrics: Path, details: Path, table: Path, picture: Path, folder: Path) -> None:
    """Write TABLE, PICTURE, and the page and CSV files in FOLDER from all figures under METRICS and DETAILS."""
    settings = config.section("report", ReportConfig)
    lines = results.load_results(metrics, details)
    sections = says.build_sections(lines, settings, results.nearest_label_scores(metrics, lines))
    rule = RULE.format(confidence=settings.confidence, margin=settings.margin)
    with recording.stage_run(
        "report", params={"report": settings}, tags={}, hashes={}, scratch=scratch_of(table)
    ) as recorder:
        files.write_text(table, HEAD.format(rule=rule) + says.to_markdown(sections) + "\n")
        files.write_text(folder / "index.html", page.render_page(sections, rule))
        files.write_text(folder / "pareto.csv", results.to_csv(results.pareto_points(lines)))
        files.write_text(folder / "curves.csv", results.to_csv(list(results.validation_curves(lines))))
        with files.atomic_file(picture) as making:
            says.draw_pareto(lines, making)
        recorder.runs(mlflow_records.aggregates(lines, metrics, settings))
        recorder.metrics({f"{line.task}/{line.student}": statistics.mean(line.scores) for line in lines})
    files.clear_scratch(scratch_of(table))


if __name__ == "__main__":
    run(report)
