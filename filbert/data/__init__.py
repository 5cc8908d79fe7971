"""From a file to a batch: the task table, sources, readers of raw tables, splits, Arrow files, tokenised batches."""
