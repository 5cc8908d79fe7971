"""The command `filbert`: `filbert NAME …` runs the module `commands.NAME`; `filbert` alone lists them."""

import ast
import runpy
import sys
from pathlib import Path


def names() -> dict[str, Path]:
    """The commands, as they are typed, and their files."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return {file.stem.replace("_", "-"): file for file in files}


def overview() -> str:
    """A line for each command, read from its file without importing it: that would take seconds."""
    lines = {name: ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "" for name, file in names().items()}
    width = max(map(len, lines))
    told = [f"  {name:{width}}  {text.splitlines()[0]}" for name, text in lines.items()]
    return "\n".join(["usage: filbert COMMAND …; filbert COMMAND --help says more", "", *told])


def main() -> None:
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(overview())
        return
    if name not in names():
        sys.exit(f"filbert: expected one of {', '.join(names())}, got {name}")
    sys.argv = [f"filbert {name}", *arguments]
    runpy.run_module(f"commands.{names()[name].stem}", run_name="__main__")


if __name__ == "__main__":
    main()
