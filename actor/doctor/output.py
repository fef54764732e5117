"""How the doctor tells what it found: lines for people as they come, or one JSON object for programs."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from actor.doctor.check import Finding, Result, Status, short
from policy.text import clean

SCHEMA_VERSION = 1

_STYLES = {Status.OK: "green", Status.WARNING: "yellow", Status.FAILED: "bold red", Status.SKIPPED: "dim"}
_NAME_WIDTH = 18
_INDENT = " " * 11
_PLAIN_WIDTH = 100_000  # a file or a pipe: each check stays on its line


class Page:
    """Lines for people: a group's name, a line for each check, and below those that fail how to mend it."""

    def __init__(self, stream: TextIO) -> None:
        is_terminal = stream.isatty()
        self._console = Console(
            file=stream,
            force_terminal=is_terminal,
            width=None if is_terminal else _PLAIN_WIDTH,
            highlight=False,
            soft_wrap=True,
        )
        self._group = ""

    def begin(self, role: str, host: str, revision: str) -> None:
        self._console.print(Text(f"{role} on {host}, {short(revision)}"))

    def show(self, finding: Finding) -> None:
        result = _printable(finding.result)
        if finding.group != self._group:
            self._group = finding.group
            self._console.print(Text(f"\n{finding.group}", style="bold"))
        line = Text("  ")
        name = "FAILED" if result.status is Status.FAILED else str(result.status)
        line.append(f"{name:8} ", style=_STYLES[result.status])
        line.append(f"{finding.name:{_NAME_WIDTH}} ")
        line.append(result.measured or result.detail, style=_STYLES[Status.SKIPPED] if not result.measured else "")
        if result.limit:
            line.append(f"  (limit: {result.limit})", style="dim")
        self._console.print(line)
        if result.status in (Status.WARNING, Status.FAILED):
            for text in result.detail.splitlines():
                self._console.print(Text(f"{_INDENT}{text}", style="dim"))
            self._console.print(Text(f"{_INDENT}fix: {result.fix}", style="cyan"))

    def end(self, findings: list[Finding]) -> None:
        counts = Counter(finding.result.status for finding in findings)
        warnings = f"{counts[Status.WARNING]} warning{'s' if counts[Status.WARNING] != 1 else ''}"
        self._console.print(f"\n{counts[Status.OK]} ok, {warnings}, {counts[Status.SKIPPED]} skipped")
        names = ", ".join(
            f"{finding.group}: {finding.name}" for finding in findings if finding.result.status is Status.FAILED
        )
        style = _STYLES[Status.FAILED if names else Status.OK]
        self._console.print(Text(f"{counts[Status.FAILED]} failed{f' ({names})' if names else ''}", style=style))


def _printable(result: Result) -> Result:
    """Some of it are the learner's words."""
    measured, fix, detail = (clean(text, keep="\n") for text in (result.measured, result.fix, result.detail))
    return replace(result, measured=measured, fix=fix, detail=detail)


def to_json(role: str, host: str, revision: str, protocol_version: int, findings: list[Finding]) -> str:
    """Return the object that docs/doctor.md describes. Fields are added under the same version, never changed."""
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "role": role,
            "host": host,
            "commit": revision,
            "protocol_version": protocol_version,
            "failed": sum(finding.result.status is Status.FAILED for finding in findings),
            "checks": [_as_object(finding) for finding in findings],
        },
        indent=2,
    )


def _as_object(finding: Finding) -> dict[str, Any]:
    result = finding.result
    return {
        "group": finding.group,
        "name": finding.name,
        "status": str(result.status),
        "measured": result.measured,
        "limit": result.limit,
        "detail": result.detail,
        "fix": result.fix,
    }
