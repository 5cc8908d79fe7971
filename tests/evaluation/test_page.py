"""The page: one valid file that loads nothing, with the words of the Markdown and the pictures' figures."""

import json
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from result_files import CONFIG, details, figures, write_rows
from tiny import find_task

from filbert.evaluation import page, tables
from filbert.evaluation.results import StudentResults

VOID = {"meta", "input", "br"}
ROWS = tempfile.TemporaryDirectory()


class Reader(HTMLParser):
    """A page as read by a browser without JavaScript: what it loads, its rows of cells, its pictures' figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.rows: list[list[str]] = []
        self.figures: list[dict] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(f"{tag} {dict(attrs).get('type', '')}".strip())

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().split()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script application/json":
            self.figures.append(json.loads(data))
        elif {"td", "th"} & set(self.open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())


def line(
    student: str, scores: list[float], *, task: str = "sst2", size: int = 500_000, **more: object
) -> StudentResults:
    seeds = tuple(range(1, len(scores) + 1))
    said = tuple(figures(score, size) for score in scores)
    files = tuple(
        Path(ROWS.name) / f"{round(1000 * score)}-{seed}.parquet" for score, seed in zip(scores, seeds, strict=True)
    )
    for file, score, seed in zip(files, scores, seeds, strict=True):
        write_rows(file, score, seed)
    return StudentResults(task, student, seeds, said, tuple(details(**more) for _ in seeds), files)


TEACHER = line("teacher", [0.9], size=1_000_000)
LINES = [
    TEACHER,
    line("finetune", [0.80, 0.81, 0.805]),
    line("kd", [0.85, 0.86, 0.855]),
    line("kd<b>", [0.7, 0.71, 0.705]),
]


def read(lines: list[StudentResults]) -> Reader:
    return Reader(page.render_page(tables.build_sections(lines, CONFIG, {}), "A rule."))


def named(figure: dict) -> set[str]:
    return {trace["name"] for trace in figure["data"] if "name" in trace}


def test_the_page_is_whole_and_loads_nothing() -> None:
    text = page.render_page(tables.build_sections(LINES, CONFIG, {}), "A rule.")
    found = Reader(text)
    assert found.open == []
    assert found.loads == ["#", "#sst2"]
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(http" not in text.split("<script")[0]


def test_its_tables_say_what_the_markdown_says() -> None:
    rows = {row[0]: row for row in read(LINES).rows}
    at_least = rows["kd"].pop(4)
    assert 92 < float(at_least.removesuffix(" %")) < 95
    assert rows["kd"][:-1] == ["kd", "3 × 16", "85.5 ± 0.5", "95.0 %", "0.50 M", "2.00×", "2.00×", "3.00×", "10"]
    for said in tables.build_sections(LINES, CONFIG, {})[0].rows:
        for each in said.comparisons:
            assert f"{each.phrase} {each.baseline} ({each.detail})" in rows[said.student][-1]
    assert rows["kd"][-1].startswith("better than finetune (+3.")
    assert rows["kd<b>"][-1].startswith("worse than finetune (-1")


def test_every_picture_shows_every_student_and_escapes_its_name() -> None:
    shown = read(LINES).figures
    assert len(shown) == 5
    for figure in shown:
        assert named(figure) == {"teacher", "finetune", "kd", "kd<b>"}
        told = [str(trace["hovertext"]) for trace in figure["data"] if trace.get("name") == "kd<b>"]
        assert all("<b>kd&lt;b&gt;</b>" in text for text in told)


def test_the_front_leaves_out_what_a_cheaper_student_equals() -> None:
    lines = [TEACHER, line("small", [0.8], size=1000), line("worse", [0.7], size=2000), line("best", [0.95], size=3000)]
    front = read(lines).figures[0]["data"][0]
    assert front["x"] == [0.001, 0.003]
    assert front["y"] == pytest.approx([80, 95])


def test_students_without_curves_are_no_harm() -> None:
    lines = [TEACHER, line("kd", [0.8], curve=[])]
    assert named(read(lines).figures[3]) == {"teacher"}
    bare = [line("teacher", [0.9], curve=[]), line("kd", [0.8], curve=[])]
    assert len(read(bare).figures) == 4


def test_steps_of_a_curve_go_on_from_phase_to_phase() -> None:
    points = [
        ("replace", 2, 0.5),
        ("replace", 4, 0.6),
        ("width", 1, 0.4),
        ("width", 3, 0.7),
    ]  # of 10 steps, 3 not scored
    student = line("kd", [0.8, 0.8], curve=[dict(zip(("phase", "step", "score"), p, strict=True)) for p in points])
    assert page.validation_curve(student) == {
        "replace": {5: [50, 50], 7: [60, 60]},
        "width": {8: [40, 40], 10: [70, 70]},
    }


def test_each_language_has_its_score() -> None:
    languages = {name: {"score": 0.5 + 0.1 * i} for i, name in enumerate(find_task("wikiann").test_files)}
    cost = {name: value for name, value in figures(0.5, 1000).items() if name != "test"}
    lines = [StudentResults("wikiann", "teacher", (0,), (cost | languages,), (details(),))]
    rows = read([*LINES, *lines]).rows
    assert ["student", "en", "de", "fr", "nl", "pt"] in rows
    assert ["teacher", "50.0", "60.0", "70.0", "80.0", "90.0"] in rows


def test_no_two_students_look_alike() -> None:
    students = {
        "teacher",
        "kd",
        "pkd",
        "rosita",
        *(f"rosita_s{n}" for n in range(9)),
        *(f"other{n}" for n in range(10)),
    }
    looks = page.marker_styles(students)
    assert set(looks) == students
    assert len(set(looks.values())) == len(students)
