"""A study: a question, the claims to test and the settings, in studies/NAME.yaml; run whole, its figures beside it.

It runs in a git worktree of the last commit, .scratch/studies/NAME, with DVC's cache shared. Killed and started again, it
goes on where it was.
"""

import dataclasses
import os
import shlex
import shutil
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from ruamel.yaml import YAML, YAMLError

from filbert import FilbertError
from filbert.runtime import config, files
from filbert.tracking.mlflow_store import STORE
from pipelines import dvc_experiments, repro
from pipelines.dvc_graph import StageError, graph

STUDIES = Path("studies")


@dataclass(frozen=True)
class Claim:
    """That a student is better than a baseline, or equal to it, on some tasks."""

    student: str
    baseline: str
    claim: Literal["better", "equal"]
    task: str = ""
    tasks: tuple[str, ...] = ()
    margin: float | None = None  # points within which scores are equal, where it is not the report's

    def __post_init__(self) -> None:
        if bool(self.task) == bool(self.tasks):
            raise FilbertError("expected either `task` or `tasks`")


@dataclass(frozen=True)
class Study:
    """What studies/NAME.yaml says; `params` are laid over params.yaml."""

    name: str
    question: str
    claims: tuple[Claim, ...]
    params: dict[str, Any]


def read_study(file: Path) -> Study:
    """Read a study strictly.

    Raises:
        FilbertError: there is no such study, or it is not as it should be.
    """
    if not file.exists():
        raise FilbertError(
            f"no study {file}; known are {', '.join(sorted(each.stem for each in file.parent.glob('*.yaml')))}"
        )
    content = config.read_params(file)
    keys = {"question", "claims", "params"}
    if not isinstance(content, dict) or set(content) != keys or not isinstance(content["params"], dict):
        found = ", ".join(content) if isinstance(content, dict) else repr(content)
        raise FilbertError(f"{file}: expected a question, claims and params (a mapping), got {found or 'nothing'}")
    claims = config.section("claims", tuple[Claim, ...], file)
    return Study(file.stem, config.section("question", str, file), claims, content["params"])


def override(text: str) -> dict[str, Any]:
    """`a.b=c` as nested mappings; the value is YAML.

    Raises:
        FilbertError: it is not of that form.
    """
    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".")):
        raise FilbertError(f"expected a setting such as settings.kd.temperature=4, got {text!r}")
    try:
        nested = YAML(typ="safe").load(value)
    except YAMLError as error:
        raise FilbertError(f"the value of {text!r} is not YAML") from error
    for key in reversed(name.split(".")):
        nested = {key: nested}
    return nested


def write_params(file: Path, layers: list[dict[str, Any]], sources: dict[str, Path]) -> None:
    """Lay `layers` over params.yaml, the later over the earlier: mappings are merged, all else is replaced. The sections of
    `sources` are replaced as a whole by a folder. Of `exports` those students are kept that are made."""
    yaml = YAML()
    yaml.width = 1000
    params = yaml.load(file.read_text(encoding="utf-8"))
    for layer in layers:
        lay_over(params, layer)
    for name, folder in sources.items():
        *above, last = name.split(".")
        section = params
        for key in above:
            section = section[key]
        section[last] = {"kind": "folder", "name": os.path.abspath(folder)}
    params["exports"] = [name for name in params["exports"] if name in config.student_names(params)]
    with files.atomic_file(file) as making:
        yaml.dump(params, making)


def lay_over(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Change `below`: mappings are merged, all else is replaced."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            lay_over(below[key], value)
        else:
            below[key] = value


def open_study(name: str, fresh: bool) -> Path:
    """The worktree of a study, as it was left by an earlier run of the same commit.

    Raises:
        StageError: it is of another commit, and not to be discarded.
    """
    root, folder = Path.cwd(), Path.cwd() / files.SCRATCH / "studies" / name
    here, there = dvc_experiments.git(root, "rev-parse", "HEAD"), dvc_experiments.worktree_commit(folder)
    if fresh and there:
        dvc_experiments.git(root, "worktree", "remove", "--force", str(folder))
    elif there not in ("", here):
        raise StageError(
            f"{folder.relative_to(root)} was begun at commit {there[:7]}, this is {here[:7]}: go on there (`git checkout "
            f"{there[:7]}`), or discard what is there with --fresh (`make study STUDY={name} FRESH=1`)"
        )
    dvc_experiments.open_worktree(root, folder)
    if dvc_experiments.git(root, "status", "--porcelain", "--untracked-files=no"):
        print(f"the study runs at commit {here[:7]}: what is not committed takes no part", flush=True)
    return folder


def publish(study: Study, folder: Path, command: str) -> Path:
    """Copy what is in git of the outs of `folder` (figures, tables, pictures) to studies/NAME, without their top folder; above
    the tables stand the question, the command, the commit, and the verdict on each claim. Test rows stay in DVC's cache."""
    commit, to = dvc_experiments.git(folder, "rev-parse", "--short", "HEAD"), STUDIES / study.name
    source = "" if is_committed(to.with_suffix(".yaml")) else f" {to.with_suffix('.yaml')} was not committed."
    with files.atomic_folder(to, sealed=False) as making:
        outs = [out for stage in graph(folder, []) for out in stage.plain]
        for out in outs:
            copy = making.joinpath(*Path(out).parts[1:])
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / out, copy)
        table = making / "results.md"
        _, picture, tables = table.read_text(encoding="utf-8").partition("![")
        head = [
            f"# {study.name}",
            study.question,
            f"```\n{command}\n```",
            f"The figures are of commit {commit}.{source}",
        ]
        claims = check_claims(study, folder, outs) if study.claims else []
        table.write_text("\n\n".join([*head, *claims, picture + tables]), encoding="utf-8")
    return to


def is_committed(file: Path) -> bool:
    """Whether `file` is as in the last commit."""
    return not dvc_experiments.git(Path.cwd(), "status", "--porcelain", str(file))


def check_claims(study: Study, folder: Path, outs: list[str]) -> list[str]:
    """The rule, and a Markdown table of the claims with what the figures among the `outs` of `folder` say: of the mean over its
    tasks, a claim's one primary comparison, and of each task, corrected by Holm for all claims together."""
    from filbert.evaluation import comparisons, results, statistics, tables  # only now: this takes a second

    roots = {Path(out).parts[1]: Path(*Path(out).parts[:2]) for out in outs}
    with chdir(folder):
        report = config.section("report", statistics.ReportConfig)
        made = results.selected(config.read_params())
        found = {(r.task, r.student): r for r in results.load_results(roots["metrics"], roots["details"], made)}
        claims = [(claim, _differences(claim, found, report)) for claim in study.claims]
    several = [each for _, by_task in claims for each in by_task if len(by_task) > 1]
    secondary = iter(comparisons.judge_all(several, report.confidence))
    lines = [("claim", "task", "verdict")]
    for claim, by_task in claims:
        said, names = (
            f"{claim.student} {comparisons.PHRASES[claim.claim]} {claim.baseline}",
            claim.tasks or (claim.task,),
        )
        if not by_task:
            lines.append((said, ", ".join(names), "not tested: a student was not made, or of one seed"))
            continue
        primary = comparisons.judge(comparisons.mean_difference(by_task), report.confidence)
        lines.append((said, f"mean of {len(names)}" if len(names) > 1 else names[0], _outcome(claim, primary)))
        lines += [("", name, _outcome(claim, next(secondary))) for name in names if len(names) > 1]
    how = "The verdict on a claim is that on the mean over its tasks; those on single tasks are corrected by Holm for all claims."
    return [f"{comparisons.verdict_rule(report)} {how}", tables.markdown_table(lines)]


def _differences(claim: Claim, found: dict[tuple[str, str], Any], report: Any) -> list[Any]:
    """The difference that a claim is of, task by task; none where a student is missing or has one seed."""
    from filbert.evaluation import comparisons

    rule = report if claim.margin is None else dataclasses.replace(report, margin=claim.margin, margins={})
    sides = [
        [found.get((task, name)) for name in (claim.student, claim.baseline)] for task in claim.tasks or (claim.task,)
    ]
    pairs = [(ours, other) for ours, other in sides if ours and other and min(len(ours.seeds), len(other.seeds)) > 1]
    return [comparisons.difference(*pair, rule) for pair in pairs] if len(pairs) == len(sides) else []


def _outcome(claim: Claim, comparison: Any) -> str:
    return f"{'shown' if comparison.verdict == claim.claim else 'not shown'}: {comparison}"


def main(
    name: Annotated[str, typer.Argument(help="of studies/NAME.yaml")],
    seeds: Annotated[str, typer.Option(help="in place of the study's, such as 1,2,3")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="stages at once; each gets its share of the cores")] = 2,
    settings: Annotated[list[str] | None, typer.Option("--set", help="another setting, such as a.b=c")] = None,
    glue: Annotated[Path | None, typer.Option(help="folder with GLUE's TSV files, in place of the hub")] = None,
    wikiann: Annotated[Path | None, typer.Option(help="folder with WikiANN, in place of the hub")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="folder with the checkpoint, in place of the study's")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="discard what an earlier run has left")] = False,
) -> None:
    """Run a study, or go on with it, and copy its figures and its table to studies/NAME."""
    with repro.ending_in_one_line("study"):
        study = read_study(STUDIES / f"{name}.yaml")
        layers = [study.params, *map(override, [*([f"seeds=[{seeds}]"] if seeds else []), *(settings or [])])]
        named = {"sources.glue": glue, "sources.wikiann": wikiann, "checkpoint": checkpoint}
        sources = {section: folder for section, folder in named.items() if folder}
        if missing := [str(folder) for folder in sources.values() if not folder.is_dir()]:
            raise FilbertError(f"no folder {', '.join(missing)}")
        print(study.question, flush=True)
        folder = open_study(name, fresh)
        write_params(folder / "params.yaml", layers, sources)
        env = {"MLFLOW_TRACKING_URI": f"sqlite:///{STORE.resolve()}", "DVC_EXP_NAME": f"study-{name}"}
        if not repro.run(folder, [], jobs, env):
            raise StageError(f"not finished; the same command goes on with it in {files.SCRATCH / 'studies' / name}")
        folders = [section.split(".")[-1] for section in sources]
        command = command_of(name, seeds, jobs, settings or [], folders)
        print(f"\nfigures and tables: {publish(study, folder, command)}; all else: {os.path.relpath(folder)}")


def command_of(name: str, seeds: str, jobs: int, settings: list[str], sources: list[str]) -> str:
    """The command that repeats a study; `sources` are those that were folders. Make cannot pass a setting that has a space."""
    if any(" " in setting for setting in settings):
        words = ["python", "-m", "pipelines.study", name, "--jobs", str(jobs), *(["--seeds", seeds] if seeds else [])]
        words += [word for source in sources for word in (f"--{source}", "folder")]
        return shlex.join([*words, *(word for setting in settings for word in ("--set", setting))])
    options = {"STUDY": name, "SEEDS": seeds, "JOBS": str(jobs), "SET": f"'{' '.join(settings)}'" * bool(settings)}
    options |= {source.upper(): "folder" for source in sources}
    return " ".join(["make study", *(f"{key}={value}" for key, value in options.items() if value)])


if __name__ == "__main__":
    typer.run(main)
