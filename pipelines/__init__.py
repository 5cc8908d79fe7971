"""When, how often, how many at once: DVC's graph as Prefect flows."""
