"""Prefect's temporary server, which a flow starts where none is named, out of reach of Ctrl-C in a terminal.

Ctrl-C interrupts all processes of a terminal. A server that ended at once would leave its flow trying to tell it so for minutes;
one that ignores it is ended by Prefect after its flow.
"""

import signal

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED


def start() -> None:
    """Start the temporary server that this process's flows use, unless they use another one."""
    if PREFECT_API_URL.value() or not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # what is blocked stays so in a child
    try:
        SubprocessASGIServer().start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
