"""What the plan promises of the code's shape: imports point one way, the graph names the code it reaches, and so on."""

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tiny import ROOT

from filbert.methods import pretraining, recipes
from filbert.runtime import config

CODE = sorted(path for room in ("filbert", "stages", "pipelines") for path in (ROOT / room).rglob("*.py"))
GRAPH = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
METHODS = sorted(path.stem for path in (ROOT / "filbert" / "methods").glob("*.py") if path.stem != "__init__")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in CODE}


@cache
def imports(path: Path) -> frozenset[str]:
    """Every module a file imports, anywhere in it; `from package import module` counts as the module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES}
    return frozenset(found)


def reached(module: str) -> set[str]:
    """The files of this repository that importing a module runs, its packages' __init__ and a template beside it included."""
    todo, seen = [module], set()
    while todo:
        name = todo.pop()
        while name and name in MODULES and name not in seen:
            seen.add(name)
            todo += imports(MODULES[name])
            todo.append(name.rpartition(".")[0])
    files = {MODULES[name] for name in seen}
    files |= {template for file in files if (template := file.with_suffix(".html")).exists()}
    return {str(file.relative_to(ROOT)) for file in files}


@pytest.mark.parametrize(
    ("rooms", "forbidden"),
    [
        (("filbert",), {"stages", "pipelines", "dvc", "prefect", "argparse", "typer"}),
        (("stages",), {"pipelines", "dvc", "prefect", "mlflow"}),
        (("pipelines",), {"filbert.methods", "torch", "transformers"}),
    ],
)
def test_imports_point_one_way(rooms: tuple[str, ...], forbidden: set[str]) -> None:
    for path in CODE:
        if path.relative_to(ROOT).parts[0] in rooms:
            found = {name for name in imports(path) if any(name == f or name.startswith(f + ".") for f in forbidden)}
            assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_mlflow_is_imported_by_the_view_and_its_store() -> None:
    tellers = [name_of(path) for path in CODE if any(name.split(".")[0] == "mlflow" for name in imports(path))]
    assert tellers == ["filbert.runs", "filbert.view"]


def test_methods_do_not_know_each_other_and_the_encoder_stands_alone() -> None:
    for method in METHODS:
        others = {name for name in imports(MODULES[f"filbert.methods.{method}"]) if name.startswith("filbert.methods")}
        assert not others, f"{method} imports {others}"
    assert not {name for name in imports(MODULES["filbert.bert"]) if name.startswith("filbert")}  # it travels alone


@pytest.mark.parametrize("stage", GRAPH)
def test_the_deps_of_a_stage_are_exactly_the_code_it_reaches(stage: str) -> None:
    module = GRAPH[stage]["cmd"].split()[2]
    stated = {dep for dep in GRAPH[stage]["deps"] if dep.startswith(("filbert", "stages"))}
    wanted = reached(module)
    by_name = {"cache": "filbert/methods", "distill": "filbert/methods/${item.method}.py",
               "distill_start": "filbert/methods/${item.start.by}.py"}  # fmt: skip
    if method := by_name.get(stage):
        every = [reached(f"filbert.methods.{name}") - {f"filbert/methods/{name}.py"} for name in METHODS]
        wanted = (wanted.union(*every) | {method}) - ({"filbert/methods/__init__.py"} if stage == "cache" else set())
    assert stated == wanted, f"missing {sorted(wanted - stated)}, too many {sorted(stated - wanted)}"


@pytest.mark.parametrize("stage", GRAPH)
def test_the_params_of_a_stage_are_exactly_the_sections_it_reads(stage: str) -> None:
    module = MODULES[GRAPH[stage]["cmd"].split()[2]]
    helpers = [MODULES[name] for name in imports(module) if name.startswith("stages.")]
    text = "".join(path.read_text() for path in [module, *helpers])
    names = re.findall(r'section\(f?"([^"]+)"', text)
    given = {"{method_name}": "${item.method}", "{recipe_name}": "${item.recipe.name}", "{name}": "${item.name}"}
    if stage == "distill_start":
        given["{method_name}"] = "${item.start.name}"
    read = {re.sub(r"{[\w ]+}", lambda found: given[found[0]], name) for name in names}
    if module.stem == "fetch":  # one file, for each of these stages another of the sections it reads
        read = {"fetch": {"datasets"}}.get(stage, {stage})
    assert set(GRAPH[stage]["params"]) == read


def test_paths_under_data_are_in_dvc_yaml_only() -> None:
    for path in CODE:
        literals = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
        docs = {ast.get_docstring(n, clean=False) for n in ast.walk(ast.parse(path.read_text()))
                if isinstance(n, ast.Module | ast.FunctionDef | ast.ClassDef)}  # fmt: skip
        found = [t for t in literals if isinstance(t, str) and t not in docs and re.search(r"(^|[ \"'])data/\w", t)]
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_every_method_has_its_file_its_section_and_its_algorithm() -> None:
    params = config.read_params(ROOT / "params.yaml")
    assert set(params["methods"]) <= set(METHODS)
    assert set(params["distill"]) == {*METHODS, *(start["name"] for start in params["starts"])}
    for method in METHODS:
        module = import_module(f"filbert.methods.{method}")
        assert callable(module.compress)
        config.section(f"distill.{method}", module.Config, ROOT / "params.yaml")


def test_every_recipe_has_its_section_and_its_start() -> None:
    params = config.read_params(ROOT / "params.yaml")
    for recipe in params["recipes"]:
        config.section(f"prune.{recipe['name']}", recipes.Config, ROOT / "params.yaml")
        assert recipe["from"] in [*params["methods"], *(other["name"] for other in params["recipes"])]
        assert recipe["name"] not in METHODS


def test_every_pretrained_student_and_every_start_has_its_section() -> None:
    params = config.read_params(ROOT / "params.yaml")
    for name in params["pretrained"]:
        config.section(f"pretrain.{name}", pretraining.PretrainConfig, ROOT / "params.yaml")
    for start in params["starts"]:
        assert start["from"] in params["pretrained"]
        assert start["by"] in METHODS
        assert start["name"] not in METHODS
        method = import_module(f"filbert.methods.{start['by']}")
        config.section(f"distill.{start['name']}", method.Config, ROOT / "params.yaml")


def test_files_are_short_and_open_with_what_they_are() -> None:
    for path in CODE:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.relative_to(ROOT)} does not say what it is"
        assert len(path.read_text().splitlines()) <= 300, f"{path.relative_to(ROOT)} is too long"


def test_nothing_is_unpickled() -> None:
    for path in CODE:
        assert not re.search(r"torch\.load\(|pickle\.|joblib|weights_only", path.read_text()), path


def test_nothing_phones() -> None:
    assert "analytics = false" in (ROOT / ".dvc" / "config").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for name in ("DVC_NO_ANALYTICS", "MLFLOW_DISABLE_TELEMETRY", "PREFECT_SERVER_ANALYTICS_ENABLED"):
        assert f"export {name}" in makefile


def test_the_readmes_commands_exist() -> None:
    makefile, readme = (ROOT / "Makefile").read_text(), (ROOT / "README.md").read_text()
    said = set(re.findall(r"(?m)(?:`|^)make ([a-z]+)", readme))
    assert {"repro", "test"} <= said <= set(re.findall(r"^([a-z]+):", makefile, re.M))
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_readmes_tree_is_the_tree() -> None:
    """Each room of the README's tree names exactly the files that lie in it."""
    readme = (ROOT / "README.md").read_text()
    said: dict[str, set[str]] = {}
    path = Path()
    for line in readme.split("## The files")[1].split("```")[1].splitlines()[1:]:
        if room := re.match(r"( *)(\w+)/", line):
            path = Path(room[2]) if not room[1] else Path("filbert") / room[2]
        elif found := re.match(r" +((?:\w+\.py *)+)", line):
            back = Path("filbert") if path.parts[:1] == ("filbert",) and not line.startswith("    ") else path
            said.setdefault(str(back), set()).update(found[1].split())
    there: dict[str, set[str]] = {}
    for file in CODE:
        if file.stem != "__init__":
            there.setdefault(str(file.parent.relative_to(ROOT)), set()).add(file.name)
    assert said == there
