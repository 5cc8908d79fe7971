"""The page: the tables of the Markdown, sorted and filtered by a click, beside the pictures; one file that opens offline."""

import html
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment
from plotly.offline import get_plotlyjs

from filbert.evaluation.results import TEACHER, StudentResults
from filbert.evaluation.statistics import mean_and_deviation
from filbert.evaluation.tables import TableRow, TaskSection

GREY = "#8b8f94"
HUES = (222, 44, 142, 354, 268, 190, 20, 320, 75)  # degrees
SYMBOLS = {"circle": "●", "diamond": "◆", "square": "■", "triangle-up": "▲", "triangle-down": "▼", "star": "★"}
FONT = {"family": "system-ui, sans-serif", "size": 12}
LAYOUT: dict[str, Any] = {
    "template": "none", "showlegend": False, "height": 320, "margin": {"l": 44, "r": 14, "t": 10, "b": 44},
    "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": FONT, "hoverlabel": {"align": "left", "font": FONT},
    "xaxis": {"zeroline": False}, "yaxis": {"zeroline": False},
}  # fmt: skip


@dataclass(frozen=True)
class MarkerStyle:
    """How a student looks in every picture."""

    color: str
    symbol: str  # a key of SYMBOLS


@dataclass(frozen=True)
class Figure:
    """A figure for plotly.js, and what it shows in a few words."""

    title: str
    figure: dict[str, Any]


def render_page(sections: list[TaskSection], rule: str) -> str:
    """The HTML of all tasks; `rule` says how a verdict is found."""
    look = marker_styles({line.student for section in sections for line in section.lines})
    jinja = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return jinja.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).render(
        sections=[(section, list(figures(section, look))) for section in sections],
        rule=rule, looks=look, symbols=SYMBOLS, plotly=get_plotlyjs(),
    )  # fmt: skip


def marker_styles(students: set[str]) -> dict[str, MarkerStyle]:
    """A look for each student: a method and its controls, whose names go on after `_`, share a hue; the teacher is grey."""
    families: dict[str, list[str]] = {}
    for student in sorted(students - {TEACHER}):
        families.setdefault(student.split("_")[0], []).append(student)
    found, symbols = {TEACHER: MarkerStyle(GREY, "circle")}, list(SYMBOLS)
    for turn, members in enumerate(families.values()):
        again, hue = divmod(turn, len(HUES))
        for place, student in enumerate(members):
            color = f"hsl({HUES[hue]}, 60%, {46 + 28 * place // len(members)}%)"
            found[student] = MarkerStyle(color, symbols[(place + again) % len(symbols)])
    return found


def figures(section: TaskSection, look: dict[str, MarkerStyle]) -> Iterator[Figure]:
    """The pictures of a task. Each trace has the name of its student, which the page filters by."""
    costs: tuple[tuple[str, str, Callable[[StudentResults], float]], ...] = (
        ("size", "million parameters", lambda line: line.median("parameters") / 1e6),
        ("latency", "time for one row, % of the teacher's", lambda line: 100 / line.median("faster", "batch_1")),
        ("multiply-adds", "million multiply-adds for one row", lambda line: line.median("multiply_adds") / 1e6),
    )
    for name, axis, cost in costs:
        yield Figure(f"Score against {name}", _pareto(section, look, axis, cost))
    if any(details["curve"] for line in section.lines for details in line.details):
        yield Figure("Validation score while training", _curves(section, look))
    yield Figure("Test score, share of the teacher’s", _bars(section, look))


def _figure(traces: list[Any], **layout: Any) -> dict[str, Any]:
    return go.Figure(traces, LAYOUT).update_layout(**layout).to_plotly_json()


def _pareto(
    section: TaskSection, look: dict[str, MarkerStyle], axis: str, cost: Callable[[StudentResults], float]
) -> dict[str, Any]:
    """Mean scores against a cost; a line joins the students that no cheaper one equals."""
    points = [(cost(line), statistics.mean(line.scores)) for line in section.lines]
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    traces = [
        go.Scatter(
            x=[x for x, _ in front], y=[y for _, y in front], mode="lines", hoverinfo="skip",
            line={"color": GREY, "width": 1.2, "dash": "dot", "shape": "hv"},
        )
    ]  # fmt: skip
    for (x, y), line, row in zip(points, section.lines, section.rows, strict=True):
        color, symbol = look[line.student].color, look[line.student].symbol
        traces.append(go.Scatter(
            x=[x], y=[y], mode="markers", name=line.student, hovertext=_told(line, row), hoverinfo="text",
            marker={"color": color, "symbol": symbol, "size": 10},
            error_y={"array": [_deviation(line.scores)], "color": color, "thickness": 1, "width": 3},
        ))  # fmt: skip
    return _figure(traces, xaxis={"title": axis, "rangemode": "tozero"})


def _curves(section: TaskSection, look: dict[str, MarkerStyle]) -> dict[str, Any]:
    """Mean validation scores by step; a trace for each phase, its first point open where another phase came before."""
    traces = []
    for line in section.lines:
        color, symbol = look[line.student].color, look[line.student].symbol
        for turn, (phase, points) in enumerate(curve(line).items()):
            said = [
                f"{_bold(line)}, {phase}<br>step {step}: {mean_and_deviation(scores)}"
                for step, scores in points.items()
            ]
            traces.append(go.Scatter(
                x=list(points), y=[statistics.mean(scores) for scores in points.values()], mode="lines+markers",
                name=line.student, hovertext=said, hoverinfo="text", line={"color": color, "width": 1.5},
                marker={"size": 6, "symbol": [symbol + "-open" * (turn > 0 and x == min(points)) for x in points]},
            ))  # fmt: skip
    steps = {"title": "step", "type": "log", "tick0": math.log10(100), "dtick": math.log10(2), "tickformat": "d"}
    return _figure(traces, xaxis=steps, height=_tall(section))


def curve(line: StudentResults) -> dict[str, dict[int, list[float]]]:
    """By phase and step the validation scores of all seeds, in points. Steps are counted over all phases; those that score no
    validation rows come before those that do."""
    ends: dict[str, int] = {}
    for point in (point for details in line.details for point in details["curve"]):
        ends[point["phase"]] = max(point["step"], ends.get(point["phase"], 0))
    found: dict[str, dict[int, list[float]]] = {}
    begin = max(0, max(figures["steps"] for figures in line.figures) - sum(ends.values()))
    for phase, end in ends.items():
        for point in (point for details in line.details for point in details["curve"] if point["phase"] == phase):
            found.setdefault(phase, {}).setdefault(begin + point["step"], []).append(100 * point["score"])
        begin += end
    return found


def _bars(section: TaskSection, look: dict[str, MarkerStyle]) -> dict[str, Any]:
    """Mean scores in percent of the teacher's, the best first, with a line at 100."""
    whole = statistics.mean(next(line.scores for line in section.lines if line.student == TEACHER)) / 100
    shares = {line.student: [score / whole for score in line.scores] for line in section.lines}
    longest = max(statistics.mean(values) + _deviation(values) for values in shares.values())
    traces: list[Any] = []
    for line, row in sorted(
        zip(section.lines, section.rows, strict=True), key=lambda pair: -statistics.mean(pair[0].scores)
    ):
        values, said = shares[line.student], {"name": line.student, "hovertext": _told(line, row), "hoverinfo": "text"}
        y = [html.escape(line.student)]
        traces += [
            go.Bar(
                x=[statistics.mean(values)], y=y, orientation="h", **said,
                marker={"color": look[line.student].color, "opacity": 0.75},
                error_x={"array": [_deviation(values)], "color": GREY, "thickness": 1.2, "width": 3},
            ),
            go.Scatter(
                x=[longest], y=y, mode="text", text=f" {row.of_teacher}", textposition="middle right", cliponaxis=False, **said
            ),
        ]  # fmt: skip
    return _figure(
        traces, height=_tall(section), barmode="overlay", bargap=0.35, margin={"r": 60},
        shapes=[{"x0": 100, "x1": 100, "y0": 0, "y1": 1, "yref": "paper", "type": "line", "line": {"color": GREY, "dash": "dot"}}],
        xaxis={"title": "% of the teacher's score", "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "automargin": True, "ticksuffix": " "},
    )  # fmt: skip


def _tall(section: TaskSection) -> int:
    """The height, in pixels, of pictures with a line for each student."""
    return max(320, 60 + 24 * len(section.lines))


def _told(line: StudentResults, row: TableRow) -> str:
    return (
        f"{_bold(line)}, {row.shape}<br>score {row.score}, {row.of_teacher} of the teacher's<br>"
        f"{row.parameters} parameters, {row.smaller} smaller<br>"
        f"{line.median('milliseconds', 'batch_1'):.1f} ms for one row, {row.faster_1} faster<br>"
        f"{line.median('multiply_adds') / 1e6:.0f} M multiply-adds"
    )


def _bold(line: StudentResults) -> str:
    return f"<b>{html.escape(line.student)}</b>"


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
