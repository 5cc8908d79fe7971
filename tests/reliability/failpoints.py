"""What a stage does to itself, as FAILPOINTS in its environment tells: it is killed, or saves each step.

FAILPOINTS is a JSON object: `stage`, the stage that it is for (DVC_STAGE; empty: the process that runs the stages), and some of
`point` and `after` (a signal before or after the so many-th rename, replacement, manifest or line of a history), `seconds` (a
signal then), `signal`, `count` (points are counted and told at the end).
"""

import atexit
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

PASSED = "failpoints passed:"


def install(module: str) -> None:
    """Do what FAILPOINTS says, if it is for this process, which is about to run `module`."""
    told = json.loads(os.environ["FAILPOINTS"])
    is_stage = module.startswith("stages.")
    if is_stage:
        save_each_step()
    if (os.environ.get("DVC_STAGE", "") if is_stage else "") != told["stage"] or (not is_stage and "point" in told):
        return
    if "seconds" in told:
        timer = threading.Timer(told["seconds"], _kill, [told["signal"]])
        timer.daemon = True
        timer.start()
    if "point" in told:
        _count_points(told)
    if told.get("count"):
        reached = _count_points({"point": 0})
        atexit.register(lambda: print(f"{PASSED} {next(reached) - 1}", flush=True))


def save_each_step() -> None:
    """State is saved after each step of a training, so that each can be gone on from."""
    from filbert.training import loop

    (loop.fit.__kwdefaults__ or {})["checkpoint_seconds"] = 0.0


def _kill(number: int) -> None:
    """As from outside: the main thread answers, where the signal can be answered."""
    if number == signal.SIGKILL:
        os.kill(os.getpid(), number)
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def _count_points(told: dict[str, Any]) -> "itertools.count[int]":
    """Count the points that this process passes; at the one that is told it gets its signal."""
    from filbert.cache.shards import ShardFolder
    from filbert.tracking.run_recorder import RunRecorder

    reached = itertools.count(1)

    def watched(call: Callable) -> Callable:
        def with_failpoint(*words: object, **named: object) -> object:
            here = next(reached) == told["point"]
            if here and not told["after"]:
                os.kill(os.getpid(), told["signal"])
            result = call(*words, **named)
            if here and told["after"]:
                os.kill(os.getpid(), told["signal"])
            return result

        return with_failpoint

    points: tuple[tuple[Any, str], ...] = (
        (os, "replace"),
        (os, "rename"),
        (ShardFolder, "write"),
        (RunRecorder, "log"),
    )
    for owner, name in points:
        setattr(owner, name, watched(getattr(owner, name)))
    return reached
