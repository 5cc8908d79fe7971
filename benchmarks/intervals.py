"""How often a 95 % interval of a difference holds the truth: of simulated students that do not differ, with and without the
corrections of `evaluation/bootstrap.py` for few seeds.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from filbert.evaluation.bootstrap import DRAWS, resample_seeds
from filbert.evaluation.statistics import interval
from filbert.evaluation.tables import markdown_table
from filbert.runtime.files import write_text

CASES = {  # standard deviations of a model's score in points: by its test rows, and by its seed
    "rows (1.4 points a model, seeds nothing)": (1.4, 0.0),
    "both (1.4 and 1 point)": (1.4, 1.0),
    "seeds (3 points, rows 0.7)": (0.7, 3.0),
}
SEEDS = (3, 5, 10)


def simulate(
    generator: np.random.Generator, counts: np.ndarray, seeds: int, by_rows: float, by_seeds: float
) -> np.ndarray:
    """Differences [S, 1 + DRAWS] in points of two students' scores on the rows as they are, and drawn by `counts` [N, DRAWS]:
    each model deviates by row, half of it as the other seeds of its student do, and by its seed."""
    rows = len(counts)
    shared, own = (generator.normal(0, by_rows * (rows / 2) ** 0.5, (2, size, rows)) for size in (1, seeds))
    models = shared + own + generator.normal(0, by_seeds, (2, seeds, 1))
    values = models[0] - models[1]
    return np.concatenate([values.mean(1, keepdims=True), values @ counts / rows], axis=1)


def uncorrected(generator: np.random.Generator, scores: np.ndarray) -> np.ndarray:
    """The mean [DRAWS] over seeds drawn with replacement, as the Multi-Bootstrap has it."""
    seeds = len(scores)
    weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS).T / seeds
    return (weights * scores[:, 1:]).sum(0)


def main(
    out: Annotated[Path, typer.Argument(help="the Markdown file to write")],
    comparisons: Annotated[int, typer.Option(help="simulated, of each kind")] = 500,
    rows: Annotated[int, typer.Option(help="test rows")] = 1000,
) -> None:
    """Simulate comparisons in which nothing differs and write to OUT how many intervals hold 0."""
    generator = np.random.default_rng(0)
    counts = generator.multinomial(rows, np.full(rows, 1 / rows), DRAWS).T.astype(np.float64)
    lines = [["what varies", *(f"{seeds} seeds" for seeds in SEEDS)]]
    for name, (by_rows, by_seeds) in CASES.items():
        line = [name]
        for seeds in SEEDS:
            held = np.zeros(2)
            for number in range(comparisons):
                scores = simulate(generator, counts, seeds, by_rows, by_seeds)
                for arm, draws in enumerate((uncorrected(generator, scores), resample_seeds(scores, str(number)))):
                    low, high = interval(draws, 0.95)
                    held[arm] += low <= 0 <= high
            line.append(" → ".join(f"{100 * share:.1f}" for share in held / comparisons) + " %")
        lines.append(line)
    head = (
        f"Measured by `python -m benchmarks.intervals`: {comparisons} simulated comparisons of each kind, {rows} test rows, "
        f"{DRAWS} draws, no difference; how many 95 % intervals hold 0, without → with the corrections for few seeds."
    )
    write_text(out, "\n\n".join(["# Intervals: how often they are right", head, markdown_table(lines)]) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    typer.run(main)
