"""Raw tables become validated, deduplicated, split rows in Arrow."""

from pathlib import Path

from filbert import config, rows, tasks
from filbert.files import whole_folder, write_json
from stages import run


def prepare(task_name: str, raw: Path, out: Path, counts: Path) -> None:
    """Prepare the task TASK_NAME from the tables in RAW into the folder OUT; write how many rows went where to COUNTS."""
    task = tasks.find(task_name)
    prepared = rows.prepare(raw, task, config.section("prepare", rows.PrepareConfig))
    with whole_folder(out) as making:
        for name, table in prepared.tables.items():
            rows.write_table(table, making / f"{name}.arrow")
    write_json(counts, prepared.counts)


if __name__ == "__main__":
    run(prepare)
