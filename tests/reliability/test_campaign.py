"""A share of the campaign; `make campaign` runs it whole."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

CAMPAIGN = [sys.executable, "-m", "tests.reliability.campaign"]
SHARE = ("--kills", "6", "--damages", "6", "--others", "1", "--seed", "2")


@pytest.mark.slow
def test_a_share_of_the_campaign_is_survived_and_is_not_tried_twice(tmp_path: Path) -> None:
    command = [*CAMPAIGN, *SHARE, "--folder", str(tmp_path / "campaign"), "--write", str(tmp_path / "page.md")]
    (tmp_path / "page.md").write_text("# A page\n\n## The campaign\n\nof another day\n\n## What else\n\nis there\n")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "page.md").read_text()
    assert "another day" not in page
    assert page.startswith("# A page\n\n## The campaign\n")
    assert page.endswith("\n## What else\n\nis there\n")
    assert page.count("| survived") + page.count(" survived") >= 1
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    assert " s  kill" not in again.stdout
    assert (tmp_path / "page.md").read_text() == page
