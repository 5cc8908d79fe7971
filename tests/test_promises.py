"""The architecture's promises: rooms import downward, stages depend on exactly the code and the settings that they read, and so
on.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import typing
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from settings import build_everything
from tiny import ROOT

from filbert import NO_TELEMETRY
from filbert.data.tasks import find
from filbert.methods import load_method, names
from filbert.runtime import config
from pipelines.study import write_params

ROOMS = (  # each imports only those after it; export and methods stand side by side
    "methods", "export", "text", "cache", "training", "evaluation", "models", "tracking", "data", "runtime",
)  # fmt: skip
FOLDERS = ("filbert", "stages", "commands", "pipelines")
CODE = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PARAMS = ROOT / "params.yaml"
GRAPH = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in CODE}


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module a file imports, anywhere in it; `from package import module` counts as the module alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= modules | ({node.module or ""} if len(modules) < len(node.names) else set())
    return frozenset(found)


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "filbert" and len(parts) > 1 else ""


# ------------------------------------------------------------------------------------------------------- rooms and walls


def test_there_are_at_most_ten_rooms_and_each_says_what_it_is() -> None:
    rooms = {path.name for path in (ROOT / "filbert").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(ROOMS)
    assert len(rooms) <= 10
    assert not [path.name for path in (ROOT / "filbert").glob("*.py") if path.stem != "__init__"]
    for room in rooms:
        assert ast.get_docstring(ast.parse((ROOT / "filbert" / room / "__init__.py").read_text())), room


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    below = set(ROOMS[ROOMS.index(room) :]) | {""}  # "": the package itself, for its error class
    for path in (ROOT / "filbert" / room).rglob("*.py"):
        above = {name for name in imports(path) if name.startswith("filbert") and room_of(name) not in below}
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


@pytest.mark.parametrize(
    ("folders", "forbidden"),
    [
        (("filbert",), {"stages", "commands", "pipelines"}),
        (("stages",), {"commands", "pipelines"}),
        (("commands",), {"pipelines"}),
        (("pipelines",), {"filbert.methods", "torch", "transformers"}),
        (("filbert", "stages", "commands"), {"prefect", "dvc"}),
        (("filbert",), {"typer", "argparse", "click"}),
    ],
)
def test_folders_import_one_way(folders: tuple[str, ...], forbidden: set[str]) -> None:
    for path in CODE:
        if path.relative_to(ROOT).parts[0] in folders:
            found = {name for name in imports(path) if any(name == f or name.startswith(f + ".") for f in forbidden)}
            assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_mlflow_is_imported_in_tracking_alone() -> None:
    found = {name_of(path) for path in CODE if any(name.split(".")[0] == "mlflow" for name in imports(path))}
    assert found
    assert {room_of(name) for name in found} == {"tracking"}


def test_the_command_line_is_read_in_stages_commands_and_pipelines_alone() -> None:
    assert not [
        path
        for path in CODE
        if path.relative_to(ROOT).parts[0] == "filbert"
        and "sys.argv" in path.read_text()
        and path.name != "release_predict.py"  # the script that a release carries
    ]


def test_methods_do_not_import_each_other_and_the_encoder_stands_alone() -> None:
    for method in names():
        found = {name for name in imports(MODULES[f"filbert.methods.{method}"]) if name.startswith("filbert.methods")}
        assert found <= {"filbert.methods.context"}, f"{method} imports {found}"
    encoder = imports(MODULES["filbert.models.bert"])
    assert not {name for name in encoder if name.startswith("filbert")}  # its file travels with students


# ----------------------------------------------------------------------------------------------- dvc.yaml: code and settings

# What only looks on is no dep of a stage: what it writes is in no out. tracking/history.py makes the history.jsonl of students.
LOOKS_ON = tuple(f"filbert.tracking.{name}" for name in ("mlflow_run", "mlflow_store", "run_recorder", "run_fields"))
# The package's __init__ has the error class, and `load` for users; it imports nothing when it is imported.
NEVER_A_DEP = {"filbert"}
BY_NAME = {"distill", "distill_variant"}  # they import the method whose name they are given


def reached(module: str, looks_on: tuple[str, ...] = LOOKS_ON) -> set[str]:
    """The files of this repository that decide what a module computes: all that it imports, and a template beside one."""
    todo, seen = [module, "stages"], set()
    while todo:
        name = todo.pop()
        if name in MODULES and name not in seen and name not in looks_on and name not in NEVER_A_DEP:
            seen.add(name)
            todo += imports(MODULES[name])
    files = {MODULES[name] for name in seen}
    files |= {template for file in files if (template := file.with_suffix(".html")).exists()}
    return {str(file.relative_to(ROOT)) for file in files}


def wanted_code(stage: str) -> set[str]:
    looks_on = () if stage == "report" else LOOKS_ON  # the report writes MLflow's aggregates: that is its work
    wanted = reached(module_of(stage), looks_on)
    if stage in BY_NAME:
        wanted = wanted.union(*(reached(f"filbert.methods.{name}") for name in names()))
        wanted -= {f"filbert/methods/{name}.py" for name in names()}
        wanted.add(f"filbert/methods/${{item.{'method' if stage == 'distill' else 'variant.method'}}}.py")
    if "filbert/training/loop.py" in wanted:  # it trains, and history.jsonl is among its outs
        wanted.add("filbert/tracking/history.py")
    return wanted


def module_of(stage: str) -> str:
    return GRAPH[stage]["cmd"].split()[2]


@pytest.mark.parametrize("stage", GRAPH)
def test_the_deps_of_a_stage_cover_exactly_the_code_it_reaches(stage: str) -> None:
    stated = {dep for dep in GRAPH[stage]["deps"] if dep.startswith(("filbert", "stages"))}
    wanted = wanted_code(stage)
    covered = {dep: {file for file in wanted if file == dep or file.startswith(f"{dep}/")} for dep in stated}
    missing = wanted.difference(*covered.values())
    assert not missing, f"no dep covers {sorted(missing)}"
    assert not [dep for dep, files in covered.items() if not files], f"not reached: {covered}"
    assert len(stated) == len(GRAPH[stage]["deps"]) - len([d for d in GRAPH[stage]["deps"] if d.startswith("data/")])


def test_what_only_looks_on_retrains_nothing() -> None:
    """A change in MLflow's view, the tables, the page, the verdicts, a command, the flows or the docs is no dep of training."""
    lookers = ("filbert/tracking/mlflow", "filbert/tracking/run_recorder", "filbert/evaluation/tables", "filbert/evaluation/page",
               "filbert/evaluation/results", "filbert/evaluation/mlflow_export", "filbert/evaluation/statistics",
               "filbert/evaluation/bootstrap", "commands", "pipelines", "docs",
               "benchmarks", "studies", "tests", "README.md", "Makefile")  # fmt: skip
    for stage in GRAPH.keys() - {"report"}:
        for dep in GRAPH[stage]["deps"]:
            assert not [looker for looker in lookers if looker.startswith(f"{dep}/") or dep.startswith(looker)], (
                stage,
                dep,
            )


@pytest.mark.parametrize("stage", GRAPH)
def test_the_params_of_a_stage_are_exactly_the_sections_it_reads(stage: str) -> None:
    path = MODULES[module_of(stage)]
    wanted = set().union(*(sections(file, stage) for file in (path, *helpers(path))))
    if stage == "report":  # it chooses students by what is listed
        wanted |= {"chains", "exports", "methods", "seeds", "tasks", "variants"}
    if stage == "latency":  # likewise, of one task
        wanted |= {"chains", "exports", "methods", "seeds", "variants"}
    assert set(GRAPH[stage]["params"]) == wanted


def helpers(path: Path) -> list[Path]:
    return [MODULES[name] for name in imports(path) if name.startswith("stages.")]


def sections(path: Path, stage: str) -> set[str]:
    """The sections that the calls of `config.section` and of the task table in a file read, as dvc.yaml has them."""
    item = {"distill": "method", "distill_variant": "variant.method", "prune": "chain.name"}.get(stage, "")
    names = {"{method_name}": f"${{item.{item}}}", "{chain_name}": "${item.chain.name}",
             "{name}": {"distill": "${item.method}", "distill_variant": "${item.variant.name}"}.get(stage, "${item.name}"),
             }  # fmt: skip
    task = "${item.text}" if stage == "texts" else "${item.task}"
    fixed = stage in ("checkpoint", "word_vectors")  # of the stages that share stages/fetch.py
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if called in ("config.section", "section_for"):
            names_at, shape_at = (0, 1) if called == "config.section" else (1, 2)  # section_for has the task first
            read = re.findall(r"f?'([^']+)'", ast.unparse(node.args[names_at]))
            found |= {re.sub(r"{\w+}", lambda match: names[match[0]], name) for name in read}
            found |= {stage} if fixed and not read else set()
            found |= (
                {"training"} if has_phases(ast.unparse(node.args[shape_at]), import_module(name_of(path))) else set()
            )
        elif called == "tasks.find" and not fixed and ast.unparse(node.args[0]) in ("what", "task_name"):
            found.add(f"task_table.{task}")
        elif called == "tasks.source_of" and not fixed:
            found.add("sources")
    return found


def has_phases(shape: str, module: Any) -> bool:
    """Whether a dataclass has a phase of training, at any depth: what the section `training` completes."""
    if shape == "method.Config":
        return True
    root, *rest = shape.split(".")
    kind = getattr(module, root, None)
    for name in rest:
        kind = getattr(kind, name)
    return phases_in(kind)


def phases_in(kind: Any) -> bool:
    if getattr(kind, "DEFAULTS", "") == "training":
        return True
    inner = typing.get_type_hints(kind).values() if is_dataclass(kind) else typing.get_args(kind)
    return any(phases_in(each) for each in inner)


def test_paths_under_data_are_in_dvc_yaml_only() -> None:
    for path in CODE:
        tree = ast.parse(path.read_text())
        literals = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        docs = {ast.get_docstring(node, clean=False) for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)}  # fmt: skip
        found = [t for t in literals if isinstance(t, str) and t not in docs and re.search(r"(^|[ \"'])data/\w", t)]
        assert not found, f"{path.relative_to(ROOT)}: {found}"


# --------------------------------------------------------------------------------------------------------------- settings


def test_every_section_of_the_shipped_params_builds() -> None:
    """Methods, variants and chains have a file, or one they start from, and settings that build; tasks and texts a row."""
    document, built = config.read_params(PARAMS), build_everything(PARAMS)
    assert set(document["settings"]) <= set(built)
    for method in names():
        assert callable(load_method(method).compress)
        assert callable(load_method(method).columns)
        assert method in built, f"settings.{method} is missing: the method could not be listed"


STUDIES = sorted((ROOT / "studies").glob("*.yaml"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda file: file.stem)
def test_every_study_builds_over_the_shipped_params(study: Path, tmp_path: Path) -> None:
    said = config.read_params(study)
    assert {"question", "claims", "params"} == set(said)
    shutil.copyfile(PARAMS, tmp_path / "params.yaml")
    write_params(tmp_path / "params.yaml", [said["params"]], {})
    build_everything(tmp_path / "params.yaml")
    merged = config.read_params(tmp_path / "params.yaml")
    students = {*merged["methods"], *(entry["name"] for entry in (*merged["variants"], *merged["chains"]))}
    for claim in said["claims"]:
        assert {claim["student"], claim["baseline"]} <= students | {"teacher"}, f"{study.name} does not train these"
        assert claim["claim"] in ("better", "equal")


def test_a_control_is_two_lines(tmp_path: Path) -> None:
    """One under `variants`, one under `settings`: no file, no copy."""
    text = PARAMS.read_text()
    text = text.replace("variants: ", "variants:\n  - {name: theseus_anti, method: theseus, start: checkpoint}\n  #", 1)
    text = re.sub(r"(?m)^settings:$", "settings:\n  theseus_anti: {schedule: anti}", text, count=1)
    (tmp_path / "params.yaml").write_text(text)
    built, shipped = build_everything(tmp_path / "params.yaml"), build_everything(PARAMS)
    assert built["theseus_anti"].schedule == "anti"
    assert built["theseus_anti"].training == shipped["theseus"].training
    assert built["theseus"] == shipped["theseus"]


def test_the_shipped_files_are_short() -> None:
    def lines(name: str) -> int:
        return len((ROOT / name).read_text().splitlines())

    assert lines("params.yaml") <= 300
    assert lines("dvc.yaml") <= 380
    assert (ROOT / "dvc.lock").stat().st_size <= 130_000


# ------------------------------------------------------------------------------------------------------- code and documents


def test_files_are_short_and_open_with_what_they_are() -> None:
    for path in CODE:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} does not say what it is"
        most = 340 if path.parent.name == "methods" else 300
        assert len(path.read_text().splitlines()) <= most, f"{path.relative_to(ROOT)} is too long"


def test_nothing_is_unpickled() -> None:
    for path in CODE:
        assert not re.search(r"torch\.load\(|pickle\.|joblib|weights_only *=", path.read_text()), path


def test_the_makefile_turns_reports_off() -> None:
    assert "analytics = false" in (ROOT / ".dvc" / "config").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for name in ("DVC_NO_ANALYTICS", "MLFLOW_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED"):
        assert f"export {name} := {NO_TELEMETRY[name]}" in makefile


LIBRARIES_REPORTS = {  # of each library, what is true while it would report
    "datasets": "datasets.config.HF_UPDATE_DOWNLOAD_COUNTS",
    "huggingface_hub": "not huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY",
    "mlflow.telemetry.utils": "not mlflow.environment_variables.MLFLOW_DISABLE_TELEMETRY.get()",
    "dvc.analytics": "dvc.analytics.is_enabled()",
    "prefect.settings": "prefect.settings.get_current_settings().server.analytics_enabled",
}


def test_a_library_that_is_imported_after_filbert_reports_nothing(tmp_path: Path) -> None:
    """Libraries read their settings when they are imported; not every process has them from outside."""
    bare = {name: value for name, value in os.environ.items() if name not in NO_TELEMETRY} | {"PYTHONPATH": str(ROOT)}
    code = f"import filbert, {', '.join(LIBRARIES_REPORTS)}; print({', '.join(LIBRARIES_REPORTS.values())})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=bare, capture_output=True, text=True)
    assert done.stdout.split() == ["False"] * len(LIBRARIES_REPORTS), done.stderr


def test_filbert_is_imported_before_the_libraries() -> None:
    """`python -m PACKAGE.…` imports the package first."""
    for package in ("stages", "pipelines", "benchmarks"):
        assert "filbert" in imports(ROOT / package / "__init__.py"), package


def test_the_readmes_commands_exist() -> None:
    makefile, readme = (ROOT / "Makefile").read_text(), (ROOT / "README.md").read_text()
    said = set(re.findall(r"(?m)(?:`|^)make ([a-z-]+)", readme))
    assert {"repro", "test"} <= said <= set(re.findall(r"^([a-z-]+):", makefile, re.M))
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_readmes_rooms_are_the_rooms() -> None:
    """The README's table of rooms names each room once, in the order of imports."""
    table = (ROOT / "README.md").read_text().split("## The rooms")[1].split("\n## ")[0]
    assert sorted(re.findall(r"(?m)^\| `(\w+)` \|", table)) == sorted(ROOMS)


def test_the_task_table_is_whole() -> None:
    """GLUE's nine tasks are rows like any others."""
    table = config.read_params(PARAMS)["task_table"]
    glue = {name for name, row in table.items() if row["source"] == "glue"}
    assert glue == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
    for name in table:
        assert find(name, PARAMS).outputs == (len(table[name].get("labels", [])) or 1)
