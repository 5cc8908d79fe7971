"""What a user runs by hand, beside the graph: `python -m commands.predict`, `commands.track`, `commands.task`."""
