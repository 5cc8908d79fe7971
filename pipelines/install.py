"""Install this project into the environment of the Python that runs this, at the versions of constraints.txt: what `make` calls.

uv takes 14 to 21 s where pip 23 takes 75 and pip 26 36. It reads none of pip's settings, so they are handed on; where one of them
has no counterpart here, or uv cannot be had or fails, pip installs. Nothing is installed yet: the standard library has to do.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

LEVELS = ("global", "install", ":env:")  # of pip's settings, the later over the earlier
HANDED = {
    "index-url": "UV_INDEX_URL",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
}
WITHOUT_EFFECT = set(
    "cache-dir default-timeout disable-pip-version-check no-cache-dir no-compile no-input no-python-version-warning "
    "no-warn-script-location progress-bar quiet require-virtualenv retries root-user-action timeout verbose".split()
)
QUIET = ("-qq", "--disable-pip-version-check", "--no-compile", "--no-warn-script-location")
PINNED = ("-c", "constraints.txt")


def uv_environment(settings: str) -> dict[str, str] | None:
    """What `pip config list` says as environment variables of uv; None where a setting has no counterpart."""
    found = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # the best of all indexes, as pip takes it
    lines = [line.partition("=") for line in settings.splitlines()]
    for level in LEVELS:
        for name, _, value in lines:
            at, _, key = name.rpartition(".")
            if at != level or key in WITHOUT_EFFECT:
                continue
            if key not in HANDED:
                return None
            separator = "," if key == "find-links" else " "
            found[HANDED[key]] = separator.join(ast.literal_eval(value).split())
    return found


def install(what: str) -> int:
    """Install `.` or `.[extra]`; the exit status."""
    pip = (sys.executable, "-m", "pip")
    listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=True).stdout
    more = uv_environment(listed)
    if more is not None and not subprocess.call([*pip, "install", *QUIET, *PINNED, "uv"]):
        uv = Path(sys.executable).with_name("uv")
        command = [str(uv), "pip", "install", "--quiet", "--python", sys.executable, *PINNED, "-e", what]
        if not subprocess.call(command, env=os.environ | more):
            return 0
    print("pip installs, which takes longer than uv", flush=True)
    return subprocess.call([*pip, "install", *QUIET, *PINNED, "-e", what])


if __name__ == "__main__":
    sys.exit(install(sys.argv[1]))
