"""Verdicts against scipy and by cases; the table and the files it is made of."""

import csv
import io
import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from result_files import CONFIG, details, figures, write_rows
from tiny import find_task

from filbert import FilbertError
from filbert.evaluation import comparisons, mlflow_export, page, pareto, statistics, tables
from filbert.evaluation import results as figures_of
from filbert.runtime import seals
from filbert.runtime.files import read_json, write_json


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 2.0, "better"),
        (-2.0, -0.1, "worse"),
        (-0.4, 0.4, "equal"),
        (0.1, 0.4, "equal"),  # sure, but too little to matter
        (-0.4, 0.6, "not told apart"),
        (0.0, 0.0, "equal"),  # no variance at all
        (1.0, 1.0, "better"),
    ],
)
def test_verdicts(low: float, high: float, expected: str) -> None:
    draws = np.linspace(low, high, 1001)
    assert statistics.verdict(draws, 0.5, 0.999) == expected
    assert (statistics.p_value(draws, 0.5) < 0.05) == (expected != "not told apart")


def test_an_interval_is_of_quantiles() -> None:
    assert statistics.interval(np.linspace(0, 1, 1001), 0.9) == pytest.approx((0.05, 0.95))


def test_holm_by_his_example_of_four() -> None:
    """By steps: 0.05 / 4, / 3, / 2; the third fails, and the fourth with it."""
    assert statistics.holm([0.010, 0.04, 0.03, 0.005], 0.95) == pytest.approx(
        [1 - 0.05 / 3, 0.975, 0.975, 1 - 0.05 / 4]
    )
    assert statistics.holm([0.2], 0.95) == pytest.approx([0.95])
    assert statistics.holm([], 0.95) == []


def test_the_margin_is_that_of_the_metrics() -> None:
    assert CONFIG.margin_of(["matthews"]) == 3.0
    assert CONFIG.margin_of(["accuracy", "f1"]) == 0.5
    assert CONFIG.margin_of(["accuracy", "matthews"]) == 1.75


@pytest.fixture
def lines(tmp_path: Path) -> list[figures_of.StudentResults]:
    scores = {"teacher": [0.9], "finetune": [0.80, 0.81, 0.805], "kd": [0.85, 0.86, 0.855]}
    for student, values in scores.items():
        for seed, score in enumerate(values, 1):
            write_json(
                tmp_path / "m" / "sst2" / student / f"{seed}.json",
                figures(score, 1_000_000 if score > 0.88 else 500_000),
            )
            write_json(tmp_path / "d" / "sst2" / student / f"{seed}.json", details())
            write_rows(tmp_path / "d" / "sst2" / student / f"{seed}.parquet", score, seed)
    write_json(tmp_path / "m" / "sst2" / "rows.json", {"train": 5})
    return figures_of.load_results(tmp_path / "m", tmp_path / "d")


def test_the_table_says_what_the_files_say(lines: list[figures_of.StudentResults]) -> None:
    assert [line.student for line in lines] == ["teacher", "finetune", "kd"]
    rows = [
        line.split(" | ")
        for line in tables.to_markdown(tables.build_sections(lines, CONFIG, {})).splitlines()
        if line.startswith("| kd")
    ]
    assert rows[0][:8] == ["| kd", "85.5 ± 0.5", "95.0 %", rows[0][3], "0.50 M", "2.00×", "2.00× / 3.00×", "10"]
    assert 92 < float(rows[0][3].removesuffix(" %")) < 95
    assert rows[0][8].startswith("better than `finetune` (+")


def test_a_teacher_that_scores_nothing_has_its_table_and_page(
    lines: list[figures_of.StudentResults], tmp_path: Path
) -> None:
    """As where it predicts one class and the metric is Matthews', or no label of several."""
    file = tmp_path / "m" / "sst2" / "teacher" / "1.json"
    found = read_json(file)
    write_json(file, found | {"test": found["test"] | {"score": 0.0}})
    (tmp_path / "d" / "sst2" / "teacher" / "1.parquet").unlink()
    results = figures_of.load_results(tmp_path / "m", tmp_path / "d")
    sections = tables.build_sections(results, CONFIG, {})
    assert next(row for row in sections[0].rows if row.student == "kd").of_teacher == "–"
    assert "kd" in page.render_page(sections, "")
    shares = {run.name: run.figures["of_teacher"] for run in mlflow_export.aggregates(results, tmp_path / "m", CONFIG)}
    assert math.isnan(shares["sst2/kd"])


def test_a_training_that_ended_too_soon_is_named_under_the_table(
    lines: list[figures_of.StudentResults], tmp_path: Path
) -> None:
    file = tmp_path / "m" / "sst2" / "kd" / "2.json"
    write_json(file, {**read_json(file), "still_rising": True})
    sections = tables.build_sections(figures_of.load_results(tmp_path / "m", tmp_path / "d"), CONFIG, {})
    notes = [note for note in sections[0].notes if "train longer" in note]
    assert notes == [
        "The last validation score was the best, or the only one, of `kd`: train longer (`epochs`, `min_steps`)."
    ]


def test_of_one_seed_intervals_are_of_rows_alone(lines: list[figures_of.StudentResults], tmp_path: Path) -> None:
    one = {("sst2", "teacher", 1), ("sst2", "finetune", 1), ("sst2", "kd", 1)}
    found = figures_of.load_results(tmp_path / "m", tmp_path / "d", one)
    table = tables.to_markdown(tables.build_sections(found, CONFIG, {}))
    assert re.search(
        r"\| kd \| 85.0 \| 94.4 % \| 9\d\.\d % \| 0.50 M .* better than `finetune` \(\+3\.\d to \+6\.\d, rows alone\) \|",
        table,
    )
    assert "one seed: intervals are of test rows alone, no claim about methods" in table


def test_students_of_other_seeds_or_without_rows_are_not_compared(
    lines: list[figures_of.StudentResults], tmp_path: Path
) -> None:
    """Pairs need both; what an older run left has no rows."""
    one = {("sst2", "teacher", 1), ("sst2", "finetune", 1), *(("sst2", "kd", seed) for seed in (1, 2, 3))}
    uneven = figures_of.load_results(tmp_path / "m", tmp_path / "d", one)
    assert str(comparisons.compare(uneven, CONFIG)["kd"][0]) == "not comparable to `finetune` (seeds differ)"
    (tmp_path / "d" / "sst2" / "finetune" / "2.parquet").unlink()
    old = figures_of.load_results(tmp_path / "m", tmp_path / "d")
    assert "(test rows were not kept)" in tables.to_markdown(tables.build_sections(old, CONFIG, {}))


def test_rows_of_another_run_are_refused(lines: list[figures_of.StudentResults], tmp_path: Path) -> None:
    write_rows(tmp_path / "d" / "sst2" / "kd" / "2.parquet", 0.7, 2)
    found = figures_of.load_results(tmp_path / "m", tmp_path / "d")
    with pytest.raises(FilbertError, match=r"2\.parquet: its rows score 70\.00, the figures say 86\.00"):
        comparisons.compare(found, CONFIG)


def test_damaged_or_missing_rows_are_refused(lines: list[figures_of.StudentResults], tmp_path: Path) -> None:
    """A flipped bit of a logit may leave the score as it was; a report without rows has no intervals."""
    file = lines[1].predictions[0]
    write_json(file.with_suffix(".json"), details(test_rows=seals.xxh3(file)))
    first = figures_of.load_results(tmp_path / "m", tmp_path / "d")[1]
    assert first.resampled[0, 0] == pytest.approx(80.0)
    file.write_bytes(file.read_bytes() + b"\0")
    again = figures_of.load_results(tmp_path / "m", tmp_path / "d")
    with pytest.raises(FilbertError, match=r"finetune/1.parquet: expected the rows that `evaluate` wrote, XXH3 "):
        _ = again[1].resampled
    file.unlink()
    figures_of.require_rows(again[:1], tmp_path / "d")
    with pytest.raises(FilbertError, match=r"sst2/finetune: expected test rows \(.parquet\) of the seeds \(1, 2, 3\)"):
        figures_of.require_rows(figures_of.load_results(tmp_path / "m", tmp_path / "d"), tmp_path / "d")


def test_many_comparisons_are_corrected_and_the_mean_over_tasks_is_one(
    lines: list[figures_of.StudentResults], tmp_path: Path
) -> None:
    """Of two comparisons the surer one has the wider interval; a mean over two tasks that vary alike a narrower one."""
    kd, finetune = lines[2], lines[1]
    of_other_task = comparisons.difference(replace(kd, task="rte"), replace(finetune, task="rte"), CONFIG)
    one, same = comparisons.difference(kd, finetune, CONFIG), replace(kd, student="same")
    corrected = comparisons.judge_all([one, comparisons.difference(same, kd, CONFIG)], 0.95)
    assert [each.verdict for each in corrected] == ["better", "equal"]
    assert width(corrected[0].detail) > width(comparisons.judge(one, 0.95).detail)
    mean = comparisons.mean_difference([one, of_other_task])
    assert mean.draws.std() == pytest.approx(one.draws.std() / 2**0.5, rel=0.05)
    blocked = replace(one, obstacle="steps differ")
    assert comparisons.judge(comparisons.mean_difference([one, blocked]), 0.95).verdict == "not comparable"


def width(detail: str) -> float:
    low, high = detail.split(" to ")
    return float(high) - float(low)


def test_a_table_fits_a_terminal(lines: list[figures_of.StudentResults]) -> None:
    wide = figures_of.StudentResults("sst2", "m" * 50, lines[1].seeds, lines[1].figures, lines[1].details)
    text = tables.to_terminal(tables.build_sections([*lines, wide], CONFIG, {}))
    assert max(map(len, text.splitlines())) <= 110
    title, head, _, _, kd, long = text.splitlines()
    assert title == "sst2: accuracy, mean ± standard deviation over seeds 1, 2, 3"
    assert head.split() == "student score of teacher at least parameters smaller faster 1 / 32 steps".split()
    assert " ".join(kd.split()).startswith("kd 85.5 ± 0.5 95.0 % 9")
    assert kd.split()[7:] == "% 0.50 M 2.00× 2.00× / 3.00× 10".split()
    assert long.startswith("m" * 31 + "… ")


def test_only_what_the_params_make_is_loaded(lines: list[figures_of.StudentResults], tmp_path: Path) -> None:
    params = {
        "tasks": ["sst2"],
        "methods": ["kd"],
        "seeds": [1, 3],
        "variants": [],
        "chains": [{"name": "kd_small", "from": "kd"}],
    }
    only = figures_of.selected(params)
    assert only == {("sst2", "teacher", 0), *(("sst2", name, seed) for name in ("kd", "kd_small") for seed in (1, 3))}
    for folder in ("m", "d"):
        (tmp_path / folder / "sst2" / "teacher" / "1.json").rename(tmp_path / folder / "sst2" / "teacher" / "0.json")
    found = figures_of.load_results(tmp_path / "m", tmp_path / "d", only)
    assert [(each.student, each.seeds) for each in found] == [("teacher", (0,)), ("kd", (1, 3))]


def test_a_student_that_reads_references_says_what_that_takes(
    lines: list[figures_of.StudentResults], tmp_path: Path
) -> None:
    times = {"teacher": {"median": 9.0}, "student": {"median": 5.5}, "reference at hand": {"median": 5.0}}
    told = {"without": 2.0, "gain_nearest": 0.25, "gain_random": 0.0}
    for seed in (1, 2, 3):
        own = figures(0.85 + seed / 1000, 510_000) | {"store_bytes": 3e6}
        write_rows(tmp_path / "d" / "sst2" / "refbert" / f"{seed}.parquet", 0.85 + seed / 1000, seed)
        write_json(tmp_path / "m" / "sst2" / "refbert" / f"{seed}.json", own)
        write_json(
            tmp_path / "d" / "sst2" / "refbert" / f"{seed}.json", details(latency={"1": times}, information=told)
        )
    write_json(
        tmp_path / "m" / "sst2" / "references.json", {"rows": "r1", "neighbours": {"validation": 0.1, "test": 0.625}}
    )
    gathered = figures_of.load_results(tmp_path / "m", tmp_path / "d")
    nearest = figures_of.nearest_label_scores(tmp_path / "m", gathered)["sst2"]
    files = (("model", "test", "remark"), ("kd int8", "80.0", "dominated by tfidf"))
    best = max(fmean(each.scores) for each in gathered)
    beside = {"sst2": tables.Beside(nearest, best - 0.01, files)}
    said = tables.to_markdown(tables.build_sections(gathered, CONFIG, beside))
    assert "| kd int8 | 80.0 | dominated by tfidf |" in said
    below = next(line for line in said.splitlines() if line.startswith("Below TF-IDF"))
    assert below.count("`") == 2 * sum(fmean(each.scores) < best - 0.01 for each in gathered) > 0
    row = next(line for line in said.splitlines() if line.startswith("| refbert"))
    assert "better than `finetune` (" in row  # 2 % more parameters are one size
    assert "`kd` (" in row
    assert (
        "a store of 3 MB beside 2 MB of weights; at batch 1 it takes 5.50 ms, 5.00 ms with its reference given" in said
    )
    assert "the nearest reference adds 0.25 ± 0.00, a random one 0.00 ± 0.00" in said
    write_json(tmp_path / "m" / "sst2" / "references.json", {"rows": "r0", "neighbours": {"test": 0.625}})
    with pytest.raises(FilbertError, match="made with rows = r0"):
        figures_of.nearest_label_scores(tmp_path / "m", gathered)
    assert "The label of the nearest training row alone would score 62.5." in said


@pytest.mark.parametrize(("name", "value"), [("parameters", 400_000), ("step_budget", 99)])
def test_a_verdict_needs_equal_size_and_steps(
    lines: list[figures_of.StudentResults], tmp_path: Path, name: str, value: int
) -> None:
    for seed in (1, 2, 3):
        score = lines[2].scores[seed - 1] / 100
        write_json(tmp_path / "m" / "sst2" / "kd" / f"{seed}.json", figures(score, 500_000) | {name: value})
    table = tables.to_markdown(
        tables.build_sections(figures_of.load_results(tmp_path / "m", tmp_path / "d"), CONFIG, {})
    )
    assert f"not comparable to `finetune` ({'steps' if 'step' in name else name} differ)" in table
    assert "better" not in table


def test_points_and_curves_are_tables(lines: list[figures_of.StudentResults]) -> None:
    points = list(csv.DictReader(io.StringIO(figures_of.to_csv(figures_of.pareto_points(lines)))))
    assert len(points) == 7
    assert points[-1] == {"task": "sst2", "student": "kd", "seed": "3", "score": "85.5", "parameters": "500000",
                          "multiply_adds": "1000000", "milliseconds": "5.0"}  # fmt: skip
    assert {row["run"] for row in figures_of.validation_curves(lines)} >= {"sst2/teacher/1", "sst2/kd/3"}


def test_the_picture_is_the_same_each_time(lines: list[figures_of.StudentResults], tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        pareto.draw_pareto(lines, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.parametrize(
    ("stale", "said"),
    [
        (
            {"provenance": {"fit/epochs": 3, "rows": "r1"}},
            "sst2/kd, seed 2: made with fit/epochs = 3, seed 1 with 2",
        ),
        ({"provenance": {"fit/epochs": 2, "rows": "r0"}}, "made with rows = r0"),
        ({"teacher": "old"}, "made with teacher = old"),
    ],
)
def test_figures_that_do_not_belong_together_are_refused(
    lines: list[figures_of.StudentResults], tmp_path: Path, stale: dict, said: str
) -> None:
    write_json(tmp_path / "d" / "sst2" / "kd" / "2.json", details(**stale))
    with pytest.raises(FilbertError) as error:
        figures_of.load_results(tmp_path / "m", tmp_path / "d")
    assert said in str(error.value)


def test_seeds_of_a_recipe_have_each_their_start_and_the_shape_is_told(
    lines: list[figures_of.StudentResults], tmp_path: Path
) -> None:
    shape = {"layers": 2, "hidden": 16, "heads": [2, 1], "intermediate": [8, 8], "rank": 4}
    for seed in (1, 2, 3):
        made = {"fit/epochs": 2, "rows": "r1", "seed": str(seed), "start": f"s{seed}"}
        write_json(tmp_path / "d" / "sst2" / "kd" / f"{seed}.json", details(provenance=made, shape=shape))
        score = lines[2].scores[seed - 1] / 100
        write_json(tmp_path / "m" / "sst2" / "kd" / f"{seed}.json", figures(score, 500_000) | {"smaller_prunable": 7.5})
    said = tables.to_markdown(
        tables.build_sections(figures_of.load_results(tmp_path / "m", tmp_path / "d"), CONFIG, {})
    )
    assert "`kd`: heads 2 1, neurons 8, rank 4, 7.50× fewer parameters in what can be pruned" in said
    assert "`finetune`: heads" not in said


def test_each_language_has_its_score(tmp_path: Path) -> None:
    shape = {"embedding": 50, "lstm": 200, "hidden": 384}
    cost = {name: value for name, value in figures(0.5, 1000).items() if name != "test"}
    for student, more in (("teacher", {}), ("bilstm", {"shape": shape})):
        for seed in (0,) if student == "teacher" else (1, 2, 3):
            of_languages = {name: {"score": 0.5 + 0.1 * i} for i, name in enumerate(find_task("wikiann").test_files)}
            write_json(tmp_path / "m" / "wikiann" / student / f"{seed}.json", cost | of_languages)
            write_json(tmp_path / "d" / "wikiann" / student / f"{seed}.json", details(**more))
    said = tables.to_markdown(
        tables.build_sections(figures_of.load_results(tmp_path / "m", tmp_path / "d"), CONFIG, {})
    )
    assert "| student | en | de | fr | nl | pt |" in said
    assert "| bilstm | 50.0 ± 0.0 | 60.0 ± 0.0 | 70.0 ± 0.0 | 80.0 ± 0.0 | 90.0 ± 0.0 |" in said
    assert "| bilstm | 70.0 ± 0.0 |" in said  # the mean over languages


@pytest.mark.parametrize("stale", [{"teacher": "old"}, {"provenance": {"fit/epochs": 2, "rows": "r0"}}])
def test_a_line_of_another_teacher_or_other_rows_is_left_out_and_named(
    lines: list[figures_of.StudentResults], tmp_path: Path, stale: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2, 3):
        write_json(tmp_path / "d" / "sst2" / "kd" / f"{seed}.json", details(**stale))
    assert {line.student for line in figures_of.load_results(tmp_path / "m", tmp_path / "d")} == {"teacher", "finetune"}
    assert "sst2/kd is left out of the table: made with another" in capsys.readouterr().err
