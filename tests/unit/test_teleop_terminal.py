"""Keys from a terminal: what the bytes mean, who gets them, and that the terminal is given back whatever happens."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot.errors import RobotConfigError, RobotError
from robot.teleop.terminal import Terminal, split_keys
from tests.teleop_fakes import TypedTerminal

HANG_LIMIT_S = 30.0
KEYS = {
    b"\x1b[A": "up",
    b"\x1bOB": "down",
    b"\x1b[C": "right",
    b"\x1b[D": "left",
    b"\x1b[5~": "page_up",
    b"\x1b[6~": "page_down",
    b" ": "space",
    b"\r": "enter",
    b"s": "s",
    b"S": "S",
    "é".encode(): "é",
}


@given(st.lists(st.sampled_from(sorted(KEYS)), max_size=8), st.data())
def test_keys_are_the_same_however_their_bytes_arrive(typed: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(typed)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    keys, rest = [], b""
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        new, rest = split_keys(rest + stream[begin:end])
        keys += new
    assert (keys, rest) == ([KEYS[key] for key in typed], b"")


@pytest.mark.parametrize(
    ("data", "keys"),
    [(b"\x1b", ["escape"]), (b"\x1b\x1b[A", ["escape", "up"]), (b"\x1b[1;5Px", ["x"]), (b"\x01q", ["q"])],
    ids=["the escape key", "escape, then an arrow", "an unknown sequence", "a control character"],
)
def test_what_is_no_plain_key(data: bytes, keys: list[str]) -> None:
    assert split_keys(data, is_complete=True)[0] == keys


def test_an_escape_that_may_go_on_waits() -> None:
    assert split_keys(b"a\x1b[") == (["a"], b"\x1b[")


def test_each_key_goes_to_its_claimant_and_the_rest_to_whoever_wants_it() -> None:
    terminal, got = TypedTerminal(), []

    def first(key: str, now_s: float) -> None:
        got.append(("first", key))

    def second(key: str, now_s: float) -> None:
        got.append(("second", key))

    def others(key: str, now_s: float) -> None:
        got.append(("others", key))

    terminal.claim(["s"], first)
    terminal.claim(["S", "d"], second)
    terminal.press("s", "S", "D", "x")
    terminal.claim_others(others)
    terminal.press("x")
    terminal.release(first)
    terminal.press("s")
    assert got == [("first", "s"), ("second", "S"), ("second", "d"), ("others", "x"), ("others", "s")]
    with pytest.raises(RobotConfigError, match="'d' is claimed twice"):
        terminal.claim(["d"], first)


def test_what_is_no_terminal_is_refused_with_the_remedy() -> None:
    read_end, write_end = os.pipe()
    terminal = Terminal(read_end)
    assert not terminal.is_usable
    with pytest.raises(RobotError, match="Start the program in a terminal of its own"):
        terminal.open()
    terminal.close()
    os.close(read_end)
    os.close(write_end)


PROGRAM = """
import fcntl, os, signal, sys, termios, time
from robot.teleop.terminal import standard_terminal
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests themselves may run in the background
if sys.argv[1] == "gone":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # our terminal from now on, and we are in its foreground
terminal = standard_terminal()
terminal.claim(["up", "s", "é"], lambda key, now_s: print("key", key, flush=True))
terminal.open()
print("open", flush=True)
if sys.argv[1] == "close":
    terminal.close()
    print("closed", flush=True)
if sys.argv[1] == "_exit":
    os._exit(0)
if sys.argv[1] == "gone":
    while terminal.is_alive:
        time.sleep(0.01)
    print("gone", flush=True)
while True:
    time.sleep(1)
"""


class Session:
    """A program with a terminal of its own, of which this test holds the other end."""

    def __init__(self, argument: str) -> None:
        self.master, slave = pty.openpty()
        self.mode_before = self.mode()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, argument],
            stdin=slave,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        os.close(slave)
        assert self.line() == "open"

    def mode(self) -> list[object]:
        return list(termios.tcgetattr(self.master))

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        with contextlib.suppress(OSError):
            os.close(self.master)


@pytest.fixture
def start() -> Iterator[Callable[[str], Session]]:
    sessions: list[Session] = []

    def begin(argument: str = "stay") -> Session:
        sessions.append(Session(argument))
        return sessions[-1]

    yield begin
    for session in sessions:
        session.end()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + HANG_LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "hangs"
        time.sleep(0.01)


def test_single_keys_arrive_without_enter_and_without_echo(start: Callable[[str], Session]) -> None:
    session = start("stay")
    os.write(session.master, b"\x1b[Axs" + "é".encode())
    assert [session.line() for _ in range(3)] == ["key up", "key s", "key é"]
    assert not session.mode()[3] & (termios.ECHO | termios.ICANON)  # type: ignore[operator]
    assert session.mode()[3] & termios.ISIG  # type: ignore[operator]  # Ctrl-C still interrupts


def test_closing_gives_the_terminal_its_mode_back(start: Callable[[str], Session]) -> None:
    session = start("close")
    assert session.line() == "closed"
    assert session.mode() == session.mode_before


@pytest.mark.parametrize("end", ["_exit", "SIGKILL", "SIGINT"])
def test_so_does_an_end_that_nobody_could_handle(start: Callable[[str], Session], end: str) -> None:
    session = start(end)
    if end != "_exit":
        assert session.mode() != session.mode_before
        os.killpg(session.process.pid, signal.Signals[end])
    session.process.wait(HANG_LIMIT_S)
    wait_until(lambda: session.mode() == session.mode_before)


def test_a_terminal_that_is_closed_is_noticed(start: Callable[[str], Session]) -> None:
    session = start("gone")
    os.close(session.master)
    assert session.line() == "gone"
