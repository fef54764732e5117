"""Places in the code where a test may end, fail or delay the process, to prove what a crash there leaves behind.

Off unless the environment says otherwise: CGPO_FAILPOINTS=checkpoint.before_rename:exit,spool.after_commit:sleep(2)@3
ends the process without any clean-up at the first place, and sleeps 2 s at the second when it is passed for the third
time (without @N: each time).
"""

import os
import re
import time

EXIT_CODE = 99

_FORM = re.compile(r"(?P<name>[\w.]+):(?P<action>exit|raise|sleep\((?P<seconds>[\d.]+)\))(@(?P<nth>\d+))?")


class FailpointError(RuntimeError):
    """What a failpoint raises: nothing expects it."""


def _read(text: str) -> dict[str, re.Match[str]]:
    armed = {}
    for entry in filter(None, text.split(",")):
        match = _FORM.fullmatch(entry.strip())
        if match is None:
            raise FailpointError(f"CGPO_FAILPOINTS: {entry!r} is not NAME:exit, NAME:raise or NAME:sleep(SECONDS), @N")
        armed[match["name"]] = match
    return armed


_armed = _read(os.environ.get("CGPO_FAILPOINTS", ""))
_passed: dict[str, int] = {}


def failpoint(name: str) -> None:
    """Do what the environment asks for at this place: nothing, unless a test has armed it."""
    armed = _armed.get(name)
    if armed is None:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if armed["nth"] and _passed[name] != int(armed["nth"]):
        return
    if armed["seconds"]:
        time.sleep(float(armed["seconds"]))
    elif armed["action"] == "exit":
        os._exit(EXIT_CODE)
    else:
        raise FailpointError(f"failpoint {name}")
