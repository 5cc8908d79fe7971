"""What each Python process of a campaign does first: it notes its connections, and a stage has the failpoint of FAILPOINTS."""

import os
import runpy
import sys
from pathlib import Path
from typing import Any

TESTS = str(Path(__file__).parents[2])
run_module = runpy.run_module


def run_with_failpoint(module: str, *words: Any, **named: Any) -> Any:
    """As runpy's: what runs a stage in a fork."""
    from reliability import failpoints

    failpoints.install(module)
    return run_module(module, *words, **named)


if log := os.environ.get("NETWORK_LOG"):
    sys.path.append(TESTS)
    from reliability import network

    network.note_sockets(Path(log))
    sys.path.remove(TESTS)
if "FAILPOINTS" in os.environ:
    sys.path.append(TESTS)
    runpy.run_module = run_with_failpoint  # type: ignore[assignment]
