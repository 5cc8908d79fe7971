"""The result tables with their verdicts, the points and curves for `dvc plots`, the Pareto picture, and the page."""

import statistics
from pathlib import Path

from filbert.evaluation import comparisons, mlflow_export, page, pareto, results, tables
from filbert.evaluation.statistics import ReportConfig
from filbert.export import pick
from filbert.runtime import config, files
from filbert.tracking import run_recorder
from stages import OutFile, run, scratch_of

HEAD = """# Results

Written by the `report` stage from the figures of this run (`data/metrics`, `data/details`); none is typed in. Results over several
seeds, with their baselines and intervals, are in [studies](../studies).

![score against size and latency](pareto.svg)

"""


def report(metrics: Path, details: Path, table: OutFile, picture: OutFile, folder: Path) -> None:
    """Write TABLE, PICTURE, and the page, the terminal table and the CSV files in FOLDER from the figures under METRICS and
    DETAILS of the students that params.yaml lists."""
    settings, params = config.section("report", ReportConfig), config.read_params()
    found = results.load_results(metrics, details, results.selected(params))
    results.require_rows(found, details)
    deployable = {
        task: pick.load_candidates(metrics, Path(), task, pick.exported_models(params, task))
        for task in params["tasks"]
    }
    nearest_label = results.nearest_label_scores(metrics, found)
    beside = {
        task: tables.Beside(
            nearest_label.get(task),
            next((c.test for c in candidates if c.name == "tfidf"), None),
            tuple(pick.table_rows(candidates)) if candidates else (),
        )
        for task, candidates in deployable.items()
    }
    sections = tables.build_sections(found, settings, beside)
    rule = comparisons.verdict_rule(settings)
    with run_recorder.stage_run(
        "report", params={"report": settings}, tags={}, hashes={}, scratch=scratch_of(table)
    ) as recorder:
        files.write_text(table, HEAD + tables.to_markdown(sections) + "\n")
        files.write_text(folder / "index.html", page.render_page(sections, rule))
        files.write_text(folder / "table.txt", tables.to_terminal(sections) + "\n")
        files.write_text(folder / "pareto.csv", results.to_csv(results.pareto_points(found)))
        files.write_text(folder / "curves.csv", results.to_csv(list(results.validation_curves(found))))
        with files.atomic_file(picture) as making:
            pareto.draw_pareto(found, making)
        recorder.runs(mlflow_export.aggregates(found, metrics, settings))
        recorder.metrics({f"{result.task}/{result.student}": statistics.mean(result.scores) for result in found})
    files.clear_scratch(scratch_of(table))


if __name__ == "__main__":
    run(report)
