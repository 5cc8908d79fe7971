"""What a user runs by hand, beside the graph: `python -m commands.predict`, `commands.restore_mlflow`, `commands.add_task`."""
