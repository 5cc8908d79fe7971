"""The flows over a throwaway DVC graph whose stages are shell commands: parameters, experiments, artifacts, two machines."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
from ruamel.yaml import YAML
from tiny import ROOT

from pipelines import clones, deployments
from pipelines.dvc_graph import StageError, graph
from pipelines.flow import refresh, repro, sweep
from pipelines.run_stage import PREFECT_SERVER, stopping

GRAPH = """
stages:
  fetch:
    matrix:
      task: ${tasks}
    cmd: mkdir -p data && cp source.txt data/${item.task}.raw && echo fetched ${item.task} >> ran.log
    outs:
      - data/${item.task}.raw
  teach:
    matrix:
      task: ${tasks}
    cmd: >-
      printf 'teaching:  45%%|####      |\\rteaching: 100%%|##########|\\n' &&
      cp data/${item.task}.raw data/${item.task}.teacher && echo taught ${item.task} >> ran.log
    deps:
      - data/${item.task}.raw
    outs:
      - data/${item.task}.teacher
  cache:
    matrix:
      task: ${tasks}
      part: [0, 1]
    cmd: mkdir -p data/cache/${item.task}/2 && cp data/${item.task}.teacher data/cache/${item.task}/2/${item.part}
    deps:
      - data/${item.task}.teacher
    outs:
      - data/cache/${item.task}/2/${item.part}:
          persist: true
  distill:
    matrix:
      task: ${tasks}
      method: ${methods}
    meta:
      alone: true
    cmd: >-
      test -z "$DYING" || kill -9 "$DYING" && test ${rate} != 13 && mkdir -p metrics &&
      echo '{"score":${rate}}' | tee metrics/${item.task}-${item.method}.json data/${item.task}-${item.method}
    deps:
      - data/cache/${item.task}/2
    params: [rate]
    outs:
      - data/${item.task}-${item.method}
    metrics:
      - metrics/${item.task}-${item.method}.json:
          cache: false
  report:
    cmd: cat metrics/*.json > results.md
    deps:
      - metrics
    outs:
      - results.md:
          cache: false
"""


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository with that graph, not yet run; the working directory of the tests that use it."""
    folder = tmp_path_factory.mktemp("graph")
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "params.yaml").write_text("tasks: [a]\nmethods: [x, y]\nrate: 0.5\n")
    (folder / "source.txt").write_text("one\n")
    (folder / ".gitignore").write_text("/data/\n/ran.log\n/.scratch/\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{name}_NAME", "t")
            patch.setenv(f"GIT_{name}_EMAIL", "t@t")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("DVC_NO_ANALYTICS", "1")
        for command in ("git init -q", "dvc init -q", "dvc config core.analytics false"):
            shell(command)
        shell("dvc remote add -q -d shared", str(folder.parent / "remote"))
        yield folder


@pytest.fixture(scope="module")
def reproduced(tree: Path, prefect: None) -> Path:
    """The graph, run once by the flow and committed."""
    repro()
    commit()
    return tree


def shell(command: str, *more: str, **options: Path) -> str:
    done = subprocess.run([*command.split(), *more], capture_output=True, text=True, **options)
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def dask(role: str, *words: str, cwd: Path, dying: bool = False) -> subprocess.Popen:
    """A scheduler or a worker; a dying one is killed by the first student that it trains."""
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    own = ["sh", "-c", 'DYING=$$ exec "$@"', "sh"] if dying else []
    return subprocess.Popen([*own, sys.executable, "-m", f"distributed.cli.dask_{role}", *words], cwd=cwd, env=here)


def living(group: int) -> list[psutil.Process]:
    """The processes of a process group but for zombies: some systems' init takes seconds to collect an orphan's exit status."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def commit() -> None:
    shell("git add -A")
    shell("git commit -q -m state")


def lock(folder: Path) -> dict:
    return YAML(typ="safe").load((folder / "dvc.lock").read_text())


def scores() -> dict[str, float]:
    """The score of a-x by experiment."""
    (baseline,) = YAML(typ="safe").load(shell("dvc exp show --json"))[1:]
    return {
        one["name"]: one["revs"][0]["data"]["metrics"]["metrics/a-x.json"]["data"]["score"]
        for one in baseline["experiments"] or ()
    }


def test_the_graph_is_dvcs(tree: Path) -> None:
    stages = {stage.name: stage for stage in graph(tree, [])}
    assert list(stages) == [
        "fetch@a", "teach@a", "cache@a-0", "cache@a-1", "distill@a-x", "distill@a-y", "report"
    ]  # fmt: skip
    assert stages["distill@a-x"].needs == ("cache@a-0", "cache@a-1")  # whose outs lie in the folder it depends on
    assert stages["report"].needs == ("distill@a-x", "distill@a-y")
    assert stages["distill@a-x"].alone
    assert stages["distill@a-x"].plain == ("metrics/a-x.json",)
    assert [stage.name for stage in graph(tree, ["teach"])] == ["fetch@a", "teach@a"]
    with pytest.raises(StageError, match="no stage tech; known are cache, cache@a-0, cache@a-1, distill, distill@a-x"):
        graph(tree, ["tech"])


@pytest.mark.slow
def test_table_and_progress_are_artifacts(reproduced: Path) -> None:
    with get_client(sync_client=True) as client:
        made = client.request("POST", "/artifacts/filter", json={}).json()
    (table,) = [one for one in made if one["key"] == "results"]
    assert table["data"] == '{"score":0.5}\n' * 2
    assert [(one["description"], one["data"]) for one in made if one["type"] == "progress"] == [("teaching", 100)]


@pytest.mark.slow
def test_other_parameters_are_an_experiment_and_nothing_here_changes(reproduced: Path) -> None:
    (reproduced / "ran.log").unlink()
    repro(methods=["x", "z"], params=["rate=0.7"], experiment="other")
    assert not shell("git status --porcelain")
    assert not (reproduced / "ran.log").exists()
    assert scores() == {"other": 0.7}
    assert "metrics/a-z.json" in shell("dvc metrics diff HEAD other")  # a figure that was not there before
    assert not list((reproduced / ".scratch" / "experiments").iterdir())
    with pytest.raises(StageError, match="there is an experiment other"):
        repro(params=["rate=0.8"], experiment="other")
    with pytest.raises(StageError, match="of letters"):
        repro(experiment="no such/name")


@pytest.mark.slow
def test_a_sweep_is_an_experiment_per_point(reproduced: Path) -> None:
    before = scores()
    sweep(grid={"rate": [1, 2]}, methods=["x"], targets=["distill"])
    assert sorted(score for name, score in scores().items() if name not in before) == [1, 2]


@pytest.mark.slow
def test_a_failed_experiment_is_kept_and_gone_on_with(reproduced: Path) -> None:
    state = repro(["distill"], params=["rate=13"], experiment="failing", return_state=True)
    assert state.is_failed()
    assert "failing" not in scores()
    assert (reproduced / ".scratch" / "experiments" / "failing" / "data" / "a.teacher").exists()
    repro(["distill"], params=["rate=3"], experiment="failing")
    assert scores()["failing"] == 3


@pytest.mark.slow
def test_a_refresh_makes_teachers_only_of_new_data(reproduced: Path) -> None:
    ran = reproduced / "ran.log"
    ran.write_text("")
    refresh()
    assert ran.read_text() == "fetched a\n"
    (reproduced / "source.txt").write_text("two\n")
    refresh()
    assert ran.read_text() == "fetched a\nfetched a\ntaught a\n"
    shell("git checkout -q .")
    shell("dvc checkout -q")


def test_what_is_served() -> None:
    served = {one.name: one for one in deployments.deployments("1 2 * * *", "3 4 * * 0")}
    assert set(served) == {"on-demand", "nightly", "sweep", "teachers"}
    assert [served[name].schedules[0].schedule.cron for name in ("nightly", "teachers")] == ["1 2 * * *", "3 4 * * 0"]
    assert {"tasks", "methods", "seeds", "targets", "force", "experiment"} <= set(
        served["on-demand"]._parameter_openapi_schema.properties
    )


def test_a_team_with_work_pools_has_the_same_deployments() -> None:
    pooled = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
    told = [
        (
            each["name"].removeprefix("pool-"),
            each["description"],
            each.get("parameters", {}),
            [said["cron"] for said in each.get("schedules", [])],
        )
        for each in pooled
    ]
    assert told == [
        (one.name, one.description, one.parameters, [said.schedule.cron for said in one.schedules])
        for one in deployments.deployments()
    ]


def test_without_its_package_dask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with pytest.raises(StageError, match=r"pip install -e '\.\[spread\]'"):
        clones.task_runner("dask", 2, None)


def test_what_is_stopped_is_the_stages_and_not_prefects_server() -> None:
    """Without its server an interrupted flow would try to reach it for minutes before it ends."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    stage, server = subprocess.Popen(sleep), subprocess.Popen([*sleep, PREFECT_SERVER])
    try:
        with pytest.raises(KeyboardInterrupt), stopping():
            raise KeyboardInterrupt
        assert stage.wait(10) == -signal.SIGTERM
        assert server.poll() is None
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_a_flow_and_what_it_started(tmp_path: Path) -> None:
    """It reaches all processes of the terminal's job, but not Prefect's server, which the flow tells its end and then stops."""
    (tmp_path / "dvc.yaml").write_text("stages: {slow: {cmd: echo begins && sleep 300 && touch out, outs: [out]}}\n")
    for command in ("git init -q", "dvc init -q"):
        shell(command, cwd=tmp_path)
    env = os.environ | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect"), "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "pipelines.flow"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, start_new_session=True, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as flow:  # fmt: skip
        try:
            assert any("begins" in line for line in flow.stdout or ())
            os.killpg(flow.pid, signal.SIGINT)
            said = flow.communicate(timeout=600)[0]  # 5 s; on a busy machine once more than 60
            psutil.wait_procs(living(flow.pid), timeout=10)
            assert not living(flow.pid)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(flow.pid, signal.SIGKILL)
    assert flow.returncode == 130
    assert "Stopping temporary server" in said


@pytest.mark.slow
@pytest.mark.parametrize("dying", [False, True], ids=["whole", "a worker dies"])
def test_two_clones_with_a_remote_make_what_one_machine_makes(reproduced: Path, tmp_path: Path, dying: bool) -> None:
    one, home = tmp_path / "one", tmp_path / "home"
    for clone in (one, home):
        shell("git clone -q", str(reproduced), str(clone))
        shell("git rm -rq metrics dvc.lock results.md", cwd=clone)
    shell("git commit -q -m start", cwd=home)
    shell("dvc repro -q", cwd=one)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    running = [dask("scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", cwd=home)]
    try:
        for name in ("first", "second"):
            shell("git clone -q", str(home), str(tmp_path / name))
            words = (address, "--nthreads", "1", "--no-dashboard", "--no-nanny")
            running.append(dask("worker", *words, cwd=tmp_path / name, dying=dying and name == "first"))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(home)
            repro(engine="dask", cluster=address)
        assert [process.poll() for process in running] == [None, -9 if dying else None, None]
    finally:
        for process in running:
            process.terminate()
            process.wait()
    assert lock(home) == lock(one)
    assert (home / "results.md").read_text() == (one / "results.md").read_text()
    assert not (home / "data").exists()
    shell("dvc pull -q", cwd=home)
    assert (home / "data" / "a-x").read_text() == (one / "data" / "a-x").read_text()
