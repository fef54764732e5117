"""What a check of the doctor is, and how all of them run: bounded in time, and never a traceback."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

TIMEOUT_S = 10.0
CONSENT_S = 60.0
_STOP_S = 5.0

Consent = Callable[[str], bool]
"""Asks a person a question and returns whether they said yes; waits for CONSENT_S at most."""


class Status(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a check found. Texts carry their units."""

    status: Status
    measured: str = ""
    limit: str = ""
    detail: str = ""
    fix: str = ""  # the command, or what to do with the hands

    def __post_init__(self) -> None:
        if self.status in (Status.WARNING, Status.FAILED) and not self.fix:
            raise ValueError(f"a {self.status} result needs its fix: {self.measured or self.detail}")


def ok(measured: str, *, limit: str = "", detail: str = "") -> Result:
    return Result(status=Status.OK, measured=measured, limit=limit, detail=detail)


def warning(measured: str, *, fix: str, limit: str = "", detail: str = "") -> Result:
    return Result(status=Status.WARNING, measured=measured, limit=limit, detail=detail, fix=fix)


def failed(measured: str, *, fix: str, limit: str = "", detail: str = "") -> Result:
    return Result(status=Status.FAILED, measured=measured, limit=limit, detail=detail, fix=fix)


def skipped(why: str) -> Result:
    return Result(status=Status.SKIPPED, detail=why)


def unasked(what: str) -> Result:
    """Return the line of a check that would have moved `what` and was not allowed to."""
    return skipped(f"moves the {what}: run it in a terminal and answer y, or give --yes")


def judged(
    value: float,
    measured: str,
    *,
    warn: float,
    fail: float,
    limit: str,
    fix: str,
    is_low_bad: bool = False,
    detail: str = "",
) -> Result:
    """Return ok, warning or failed for a value that should not exceed `warn` and `fail`, or not fall below them."""
    sign = -1.0 if is_low_bad else 1.0
    if not math.isfinite(value) or sign * value > sign * fail:
        return failed(measured, limit=limit, fix=fix, detail=detail)
    if sign * value > sign * warn:
        return warning(measured, limit=limit, fix=fix, detail=detail)
    return ok(measured, limit=limit, detail=detail)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the doctor's."""

    group: str
    name: str
    run: Callable[[], Result]
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A check and what it found."""

    group: str
    name: str
    result: Result


@dataclass(frozen=True)
class Percentiles:
    """Of durations or ages, in ms."""

    p50: float
    p99: float
    highest: float

    @classmethod
    def of(cls, values_s: Sequence[float]) -> "Percentiles":
        """values_s: in s, at least one. The quantile is the smallest value that so many do not exceed."""
        ordered = sorted(1e3 * value for value in values_s)
        p50, p99 = (ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.99))
        return cls(p50, p99, ordered[-1])

    def __str__(self) -> str:
        return f"p50 {self.p50:.3g} ms, p99 {self.p99:.3g} ms"


class Runner:
    """Runs checks one after another, each in a thread of its own that is given up when it takes too long."""

    def __init__(self) -> None:
        self.hung = 0  # checks whose thread never came back
        self._log = _Collector()
        # Not the thread's join: one that Ctrl-C interrupts takes the thread for ended ever after (CPython 3.11).
        self._is_done = threading.Event()
        self._stopping = threading.Event()

    @property
    def is_stopping(self) -> bool:
        """A person has asked for the end: what moves has to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Let the check that runs come to its end, for some seconds at most."""
        self._stopping.set()
        self._is_done.wait(_STOP_S)

    def run(self, checks: Iterable[Check]) -> Iterator[Finding]:
        """Yield what each check found, as soon as it did. Drivers' warnings become details of their check."""
        root = logging.getLogger()
        handlers, root.handlers = root.handlers, [self._log]
        try:
            for check in checks:
                result = self._run_one(check)
                said = [line for line in self._log.take() if line not in result.detail]
                if said and result.status is not Status.SKIPPED:
                    result = replace(result, detail="\n".join([*([result.detail] if result.detail else []), *said]))
                yield Finding(group=check.group, name=check.name, result=result)
        finally:
            root.handlers = handlers

    def _run_one(self, check: Check) -> Result:
        outcome: list[Result] = []
        is_done = self._is_done = threading.Event()

        def work() -> None:
            try:
                outcome.append(check.run())
            except BaseException as error:  # whatever a driver raises: it is a failed line
                outcome.append(crashed(error))
            is_done.set()

        threading.Thread(target=work, name=f"check-{check.name}", daemon=True).start()
        if is_done.wait(check.timeout_s):
            return outcome[0]
        self.hung += 1
        return failed(
            "no answer",
            limit=f"{check.timeout_s:.0f} s",
            detail="The driver or the operating system hangs.",
            fix="unplug the device and plug it in again, or restart its driver; then run the doctor again",
        )


_REPEAT = "python -m actor.doctor --json, and report its output as a bug of the doctor"


def crashed(error: BaseException) -> Result:
    """Return the line of a check that raised what it should not have."""
    return failed(f"{type(error).__name__}: {error}", fix=_REPEAT, detail="The check itself failed.")


def refused(error: Exception, *, fix: str = "") -> Result:
    """Return the line for an error whose message already says the cause and the remedy, in that order."""
    cause, separator, remedy = str(error).partition(". ")
    remedy = fix or remedy.strip()
    return failed(cause + separator.strip(), fix=remedy or _REPEAT)


def short(revision: str) -> str:
    """Return a commit as people read it."""
    commit, dirty, _ = revision.partition("-dirty")
    return f"{commit[:12]}{' with changes' if dirty else ''}" if commit else "an unknown commit"


class _Collector(logging.Handler):
    """Keeps warnings until they are taken."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


def wait_for(condition: Callable[[], bool], timeout_s: float, poll_s: float = 0.005) -> bool:
    """Return whether the condition came true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(poll_s)
    return True
