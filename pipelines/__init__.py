"""When, how often, how many at once: DVC's graph as Prefect flows."""

import filbert  # noqa: F401  # before DVC and Prefect: turns off what they report
