"""Studies: read strictly, laid over params.yaml, run in a worktree of their own; and the runner of the graph, on shell commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from result_files import details, figures, write_rows
from ruamel.yaml import YAML
from tiny import ROOT

from filbert import FilbertError
from filbert.runtime.files import write_json
from pipelines import repro, study
from pipelines.dvc_graph import Stage, find_changed
from pipelines.run_stage import cores

GRAPH = """
stages:
  start:
    cmd: cat source.txt > data/start && echo start >> ran.log
    deps: [source.txt]
    outs: [data/start]
  train:
    matrix: {name: "${names}", seed: "${seeds}"}
    cmd: test ${item.name} != ${failing} && echo '{"score":1}' > data/metrics/${item.name}-${item.seed}.json
    deps: [data/start]
    params: ["settings.${item.name}"]
    metrics:
      - data/metrics/${item.name}-${item.seed}.json: {cache: false}
  report:
    cmd: >-
      echo $(ls data/metrics) with $OMP_NUM_THREADS > data/table.txt &&
      echo 'Head ![picture](x.svg) tables' > docs/results.md
    deps: [data/metrics]
    meta: {alone: true}
    outs:
      - data/table.txt
      - docs/results.md: {cache: false}
"""

PARAMS = """
names: [a, b]  # students
seeds: [1]
methods: []
variants: []
chains: []
exports: []
failing: none
settings:
  a: {rate: 1}
  b: {}
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with that graph and a study, not yet run; the working directory."""
    for folder in ("data/metrics", "docs", "studies"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / ".keep").touch()
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "studies" / "two.yaml").write_text("question: Which?\nclaims: []\nparams: {names: [a]}\n")
    (tmp_path / "source.txt").write_text("one\n")
    (tmp_path / ".gitignore").write_text("/data/start\n/data/table.txt\n/ran.log\n/.scratch/\n")
    monkeypatch.chdir(tmp_path)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "t")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "t@t")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    git("init", "-q")
    Repo.init()
    git("add", "-A")
    git("commit", "-qm", "state")
    return tmp_path


def git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout


def stage(name: str, *needs: str, alone: bool = False) -> Stage:
    return Stage(name, needs, alone, False, (), ())


def test_longest_chains_start_first_and_what_measures_time_starts_alone() -> None:
    stages = [stage("one"), stage("two"), stage("after", "two"), stage("time", "one", alone=True)]
    depth = repro.depths(stages)
    assert depth == {"one": 0, "two": 1, "after": 0, "time": 0}
    ready = [stages[0], stages[1], stages[3]]
    assert [s.name for s in repro.startable(ready, [], 1, depth)] == ["two"]
    assert [s.name for s in repro.startable(ready, [], 9, depth)] == ["two", "one"]
    assert repro.startable([stages[3]], [stages[0]], 9, depth) == []
    assert repro.startable([stages[3]], [], 9, depth) == [stages[3]]
    assert repro.startable([stages[0]], [stages[3]], 9, depth) == []


def test_the_longest_chain_bounds_the_time() -> None:
    stages = [stage("a"), stage("b"), stage("c", "a", "b"), stage("d", "b")]
    assert repro.critical_path(stages, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}) == ["b", "d"]


def test_bars_are_shown_now_and_then_and_lines_once(capsys: pytest.CaptureFixture[str]) -> None:
    show = repro.Printer().output(stage("train@a"))
    for line in ("train:  10%|#  |", "loss 1", "loss 1", "train:  20%|## |"):
        show(line)
    assert re.findall(r"train@a: (.*)", capsys.readouterr().out) == ["loss 1"]
    show.shown -= repro.BAR_SECONDS
    show("train:  30%|###|")
    assert "train@a: train:  30%|###|" in capsys.readouterr().out


def test_a_run_does_what_has_changed_and_shows_the_table(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert repro.run(tree, [], 2, {})
    said = capsys.readouterr().out
    assert "4 of 4 stages to check or run, 2 at once" in said
    assert re.search(r"longest chain +[\d.]+\n\(start > train@[ab]-1 > report\)", said)
    assert said.endswith(f"\n\na-1.json b-1.json with {cores()}\n")
    assert repro.run(tree, [], 2, {})
    assert "nothing has changed: 4 stages" in capsys.readouterr().out
    (tree / "params.yaml").write_text(PARAMS.replace("rate: 1", "rate: 2"))
    assert repro.run(tree, [], 2, {})
    assert "2 of 4 stages to check or run" in capsys.readouterr().out  # its student, and the report below it
    assert (tree / "ran.log").read_text() == "start\n"
    assert find_changed(tree, [])[1] == []


def test_a_failed_stage_stops_what_needs_it(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "params.yaml").write_text(PARAMS.replace("none", "a"))
    assert not repro.run(tree, [], 2, {})
    said = capsys.readouterr().out
    assert re.search(r"train@a-1: FAILED", said)
    assert re.search(r"train@b-1: done", said)
    assert "report: not run, for it needs what failed" in said
    assert said.endswith("train@a-1 failed with exit status 1\n")


def test_a_study_runs_in_a_tree_of_its_own_and_can_be_gone_on_with(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = git("status", "--porcelain")
    study.main("two", seeds="1,2", settings=["settings.a.rate=3"])
    folder = tree / ".scratch" / "studies" / "two"
    params = YAML(typ="safe").load(folder / "params.yaml")
    assert (params["names"], params["seeds"], params["settings"]) == (["a"], [1, 2], {"a": {"rate": 3}, "b": {}})
    assert "# students" in (folder / "params.yaml").read_text()
    made = tree / "studies" / "two"
    assert sorted(str(p.relative_to(made)) for p in made.rglob("*.*")) == [
        "metrics/a-1.json",
        "metrics/a-2.json",
        "results.md",
    ]
    table = (made / "results.md").read_text()
    commit = git("rev-parse", "--short", "HEAD").strip()
    assert table.startswith(
        "# two\n\nWhich?\n\n```\nmake study STUDY=two SEEDS=1,2 JOBS=2 SET='settings.a.rate=3'\n```\n"
    )
    assert f"The figures are of commit {commit}.\n\n![picture](x.svg) tables\n" in table
    assert not (tree / "ran.log").exists()
    assert before + "?? studies/two/\n" == git("status", "--porcelain")
    capsys.readouterr()
    study.main("two", seeds="1,2", settings=["settings.a.rate=3"])
    assert "nothing has changed" in capsys.readouterr().out
    git("commit", "-q", "--allow-empty", "-m", "more")
    with pytest.raises(SystemExit, match=rf"was begun at commit {commit}.*--fresh"):
        study.main("two")
    study.main("two", fresh=True)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("question: Why?\nparams: {}\n", "expected a question, claims and params"),
        ("question: Why?\nclaims: []\nparams: {}\nseeds: [1]\n", "got question, claims, params, seeds"),
        ("question: [\n", "why.yaml, line 2"),
        (
            "question: Why?\nclaims: [{student: kd, baseline: finetune, claim: best, task: a}]\nparams: {}\n",
            "'better' or 'equal'",
        ),
        (
            "question: Why?\nclaims: [{student: kd, baseline: finetune, claim: equal}]\nparams: {}\n",
            "either `task` or `tasks`",
        ),
        ("question: 3\nclaims: []\nparams: {}\n", "expected str, got 3"),
        ("question: Why?\nclaims: []\nparams: [a]\n", r"params \(a mapping\)"),
    ],
)
def test_a_study_is_read_strictly(tmp_path: Path, content: str, error: str) -> None:
    (tmp_path / "why.yaml").write_text(content)
    with pytest.raises(FilbertError, match=error):
        study.read_study(tmp_path / "why.yaml")


def test_an_unknown_study_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "glue.yaml").touch()
    with pytest.raises(FilbertError, match="known are glue"):
        study.read_study(tmp_path / "gleu.yaml")


@pytest.mark.parametrize("file", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_study_lays_over_params(file: Path, tmp_path: Path) -> None:
    """A misspelt section would be new; the mapping's own sections have names of the user's."""
    asked = study.read_study(file)
    params = tmp_path / "params.yaml"
    params.write_text((ROOT / "params.yaml").read_text())
    before = YAML(typ="safe").load(params)
    study.write_params(
        params, [asked.params, study.override("settings.kd.temperature=4")], {"sources.glue": Path("here")}
    )
    after = YAML(typ="safe").load(params)
    assert set(after) == set(before)
    assert after["settings"]["kd"]["temperature"] == 4
    assert after["sources"]["glue"] == {"kind": "folder", "name": str(Path.cwd() / "here")}
    assert after["methods"] == asked.params["methods"]


@pytest.mark.parametrize("text", ["rate", "=3", "a..b=1", "a=[1"])
def test_a_setting_needs_a_name_and_a_value(text: str) -> None:
    with pytest.raises(FilbertError):
        study.override(text)


def test_settings_are_nested() -> None:
    assert study.override("a.b.c=[1, x]") == {"a": {"b": {"c": [1, "x"]}}}


@pytest.fixture
def figures_of_two_tasks(tmp_path: Path) -> list[str]:
    """Figures and test rows of two students on two tasks, under `data`, with their outs; one is better by 5 points, and by 0.5."""
    lay = {
        "tasks": ["sst2", "rte"],
        "methods": ["finetune", "kd"],
        "variants": [],
        "chains": [],
        "exports": [],
        "seeds": [1, 2, 3],
    }
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    study.write_params(tmp_path / "params.yaml", [lay], {})
    outs = []
    for task, gain in (("sst2", 0.05), ("rte", 0.005)):
        for student, score in (("teacher", 0.9), ("finetune", 0.8), ("kd", 0.8 + gain)):
            for seed in (0,) if student == "teacher" else (1, 2, 3):
                file = f"{task}/{student}/{seed}.json"
                write_json(tmp_path / "data/metrics" / file, figures(score, 1000))
                write_json(tmp_path / "data/details" / file, details())
                write_rows(tmp_path / f"data/details/{task}/{student}/{seed}.parquet", score, seed)
                outs += [f"data/metrics/{file}", f"data/details/{file}"]
    return outs


def test_a_claim_is_that_of_the_mean_over_its_tasks(figures_of_two_tasks: list[str], tmp_path: Path) -> None:
    """Shown on the mean and on one task, not on the other; of one seed, or of students that are not there, nothing is tested."""
    claims = [
        study.Claim("kd", "finetune", "better", tasks=("sst2", "rte")),
        study.Claim("kd", "finetune", "equal", task="rte", margin=2.0),
        study.Claim("pkd", "finetune", "better", task="rte"),
    ]
    rule, table = study.check_claims(study.Study("s", "?", tuple(claims), {}), tmp_path, figures_of_two_tasks)
    assert "by a joint bootstrap over test rows and seeds" in rule
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [line[:2] for line in lines] == [
        ["kd better than finetune", "mean of 2"], ["", "sst2"], ["", "rte"], ["kd equal to finetune", "rte"],
        ["pkd better than finetune", "rte"]]  # fmt: skip
    assert [line[2].partition(" `")[0] for line in lines] == [
        "shown: better than", "shown: better than", lines[2][2].partition(" `")[0], "shown: equal to",
        "not tested: a student was not made, or of one seed"]  # fmt: skip
    assert lines[2][2].startswith("not shown: ")


def test_the_command_of_a_setting_with_a_space_is_not_makes() -> None:
    command = study.command_of("two", "", 4, ["a.b={c: d}"], ["glue"])
    assert command == "python -m pipelines.study two --jobs 4 --glue folder --set 'a.b={c: d}'"
