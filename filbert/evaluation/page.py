"""The results page: the tables, sorted by a click and filtered by a search, and pictures; one file that opens offline."""

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
from filbert.evaluation.statistics import mean_and_deviation, standard_deviation
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
    """The colour and symbol of a student in every picture."""

    color: str
    symbol: str  # a key of SYMBOLS


@dataclass(frozen=True)
class Figure:
    """A figure for plotly.js and its title."""

    title: str
    figure: dict[str, Any]


def render_page(sections: list[TaskSection], rule: str) -> str:
    """The HTML of all tasks; `rule` explains the verdicts."""
    styles = marker_styles({result.student for section in sections for result in section.results})
    jinja = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return jinja.from_string(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).render(
        sections=[(section, list(figures(section, styles))) for section in sections],
        rule=rule, styles=styles, symbols=SYMBOLS, plotly=get_plotlyjs(),
    )  # fmt: skip


def marker_styles(students: set[str]) -> dict[str, MarkerStyle]:
    """A style for each student: a method and its variants, whose names share what comes before `_`, share a hue; the teacher is
    grey."""
    families: dict[str, list[str]] = {}
    for student in sorted(students - {TEACHER}):
        families.setdefault(student.split("_")[0], []).append(student)
    styles, symbols = {TEACHER: MarkerStyle(GREY, "circle")}, list(SYMBOLS)
    for number, members in enumerate(families.values()):
        cycle, hue = divmod(number, len(HUES))
        for place, student in enumerate(members):
            color = f"hsl({HUES[hue]}, 60%, {46 + 28 * place // len(members)}%)"
            styles[student] = MarkerStyle(color, symbols[(place + cycle) % len(symbols)])
    return styles


def figures(section: TaskSection, styles: dict[str, MarkerStyle]) -> Iterator[Figure]:
    """The pictures of a task. Each trace has the name of its student, by which the page filters."""
    costs: tuple[tuple[str, str, Callable[[StudentResults], float]], ...] = (
        ("size", "million parameters", lambda result: result.median("parameters") / 1e6),
        ("latency", "time for one row, % of the teacher's", lambda result: 100 / result.median("faster", "batch_1")),
        ("multiply-adds", "million multiply-adds for one row", lambda result: result.median("multiply_adds") / 1e6),
    )
    for name, axis, cost in costs:
        yield Figure(f"Score against {name}", _pareto(section, styles, axis, cost))
    if any(details["curve"] for result in section.results for details in result.details):
        yield Figure("Validation score while training", _curves(section, styles))
    yield Figure("Test score in percent of the teacher’s", _bars(section, styles))


def _figure(traces: list[Any], **layout: Any) -> dict[str, Any]:
    return go.Figure(traces, LAYOUT).update_layout(**layout).to_plotly_json()


def _pareto(
    section: TaskSection, styles: dict[str, MarkerStyle], axis: str, cost: Callable[[StudentResults], float]
) -> dict[str, Any]:
    """Mean scores against a cost; a line joins the students that no cheaper one equals."""
    points = [(cost(result), statistics.mean(result.scores)) for result in section.results]
    front = pareto_front(points)
    traces = [
        go.Scatter(
            x=[x for x, _ in front], y=[y for _, y in front], mode="lines", hoverinfo="skip",
            line={"color": GREY, "width": 1.2, "dash": "dot", "shape": "hv"},
        )
    ]  # fmt: skip
    for (x, y), result, row in zip(points, section.results, section.rows, strict=True):
        color, symbol = styles[result.student].color, styles[result.student].symbol
        traces.append(go.Scatter(
            x=[x], y=[y], mode="markers", name=result.student, hovertext=_hover_text(result, row), hoverinfo="text",
            marker={"color": color, "symbol": symbol, "size": 10},
            error_y={"array": [standard_deviation(result.scores)], "color": color, "thickness": 1, "width": 3},
        ))  # fmt: skip
    return _figure(traces, xaxis={"title": axis, "rangemode": "tozero"})


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, score) whose score no cheaper point equals, by cost."""
    front: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def _curves(section: TaskSection, styles: dict[str, MarkerStyle]) -> dict[str, Any]:
    """Mean validation scores by step; a trace for each phase, its first point open where another phase came before."""
    traces = []
    for result in section.results:
        color, symbol = styles[result.student].color, styles[result.student].symbol
        for number, (phase, points) in enumerate(validation_curve(result).items()):
            texts = [
                f"{_bold(result)}, {phase}<br>step {step}: {mean_and_deviation(scores)}"
                for step, scores in points.items()
            ]
            traces.append(go.Scatter(
                x=list(points), y=[statistics.mean(scores) for scores in points.values()], mode="lines+markers",
                name=result.student, hovertext=texts, hoverinfo="text", line={"color": color, "width": 1.5},
                marker={"size": 6, "symbol": [symbol + "-open" * (number > 0 and x == min(points)) for x in points]},
            ))  # fmt: skip
    steps = {"title": "step", "type": "log", "tick0": math.log10(100), "dtick": math.log10(2), "tickformat": "d"}
    return _figure(traces, xaxis=steps, height=_height(section))


def validation_curve(result: StudentResults) -> dict[str, dict[int, list[float]]]:
    """By phase and step the validation scores of all seeds, in points. Steps are counted over all phases; phases that score no
    validation rows come before those that do."""
    points = [point for details in result.details for point in details["curve"]]
    ends: dict[str, int] = {}
    for point in points:
        ends[point["phase"]] = max(point["step"], ends.get(point["phase"], 0))
    curve: dict[str, dict[int, list[float]]] = {}
    begin = max(0, max(figures["steps"] for figures in result.figures) - sum(ends.values()))
    for phase, end in ends.items():
        for point in (point for point in points if point["phase"] == phase):
            curve.setdefault(phase, {}).setdefault(begin + point["step"], []).append(100 * point["score"])
        begin += end
    return curve


def _bars(section: TaskSection, styles: dict[str, MarkerStyle]) -> dict[str, Any]:
    """Mean scores in percent of the teacher's, the best first, with a line at 100."""
    teacher = (
        statistics.mean(next(result.scores for result in section.results if result.student == TEACHER)) / 100 or 1.0
    )
    shares = {result.student: [score / teacher for score in result.scores] for result in section.results}
    longest = max(statistics.mean(values) + standard_deviation(values) for values in shares.values())
    traces: list[Any] = []
    for result, row in sorted(
        zip(section.results, section.rows, strict=True), key=lambda pair: -statistics.mean(pair[0].scores)
    ):
        values = shares[result.student]
        hover = {"name": result.student, "hovertext": _hover_text(result, row), "hoverinfo": "text"}
        y = [html.escape(result.student)]
        traces += [
            go.Bar(
                x=[statistics.mean(values)], y=y, orientation="h", **hover,
                marker={"color": styles[result.student].color, "opacity": 0.75},
                error_x={"array": [standard_deviation(values)], "color": GREY, "thickness": 1.2, "width": 3},
            ),
            go.Scatter(
                x=[longest], y=y, mode="text", text=f" {row.of_teacher}", textposition="middle right", cliponaxis=False, **hover
            ),
        ]  # fmt: skip
    return _figure(
        traces, height=_height(section), barmode="overlay", bargap=0.35, margin={"r": 60},
        shapes=[{"x0": 100, "x1": 100, "y0": 0, "y1": 1, "yref": "paper", "type": "line", "line": {"color": GREY, "dash": "dot"}}],
        xaxis={"title": "% of the teacher's score", "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "automargin": True, "ticksuffix": " "},
    )  # fmt: skip


def _height(section: TaskSection) -> int:
    """The height, in pixels, of a picture with a line for each student."""
    return max(320, 60 + 24 * len(section.results))


def _hover_text(result: StudentResults, row: TableRow) -> str:
    return (
        f"{_bold(result)}, {row.shape}<br>score {row.score}, {row.of_teacher} of the teacher's<br>"
        f"{row.parameters} parameters, {row.smaller} smaller<br>"
        f"{result.median('milliseconds', 'batch_1'):.1f} ms for one row, {row.faster_1} faster<br>"
        f"{result.median('multiply_adds') / 1e6:.0f} M multiply-adds"
    )


def _bold(result: StudentResults) -> str:
    return f"<b>{html.escape(result.student)}</b>"
