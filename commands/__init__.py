"""What a user runs by hand, beside the graph: `filbert predict`, `filbert pick`, … (or `python -m commands.predict`)."""
