"""Keys typed into the terminal that the program runs in: no display server, no capture of other windows' keys.

One thread reads; whoever wants keys claims them, so that a device and an operator's marks share one keyboard. Ctrl-C
keeps its meaning. The terminal gets its old mode back whatever ends the program, SIGKILL included.
"""

import contextlib
import functools
import logging
import os
import select
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterable

from robot.errors import RobotConfigError, RobotError

_log = logging.getLogger(__name__)

KeyHandler = Callable[[str, float], None]
"""Told a key's name and time.monotonic() of its arrival, in the reader's thread."""

_POLL_S = 0.1
_ESCAPE_S = 0.05  # after this time an ESC was the key, not the beginning of another key's sequence
_SEQUENCES = {
    "A": "up",
    "B": "down",
    "C": "right",
    "D": "left",
    "H": "home",
    "F": "end",
    "5~": "page_up",
    "6~": "page_down",
}
_NAMES = {" ": "space", "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\b": "backspace"}

# Outlives us by one breath: `read` ends when our end of the pipe closes, however we ended.
_RESTORE_SCRIPT = 'trap "" HUP INT QUIT TERM TTOU; read -r _ || stty "$1" <"$2"'


def split_keys(data: bytes, is_complete: bool = False) -> tuple[list[str], bytes]:
    """Return the names of the keys in what a terminal sent, and the rest that may go on.

    Printable keys are named by their character, others as in "up", "page_down", "space", "enter", "escape". With
    is_complete nothing more is coming, and a lone ESC is the key itself. Unknown sequences are dropped.
    """
    keys: list[str] = []
    while data:
        if data[0] == 0x1B:
            taken, key = _split_sequence(data, is_complete)
        else:
            taken, key = _split_character(data, is_complete)
        if not taken:
            break
        keys += [key] if key else []
        data = data[taken:]
    return keys, data


def _split_sequence(data: bytes, is_complete: bool) -> tuple[int, str]:
    """Return the length of the escape sequence that `data` begins with, 0 if it may go on, and its key's name."""
    if len(data) == 1:
        return (1, "escape") if is_complete else (0, "")
    if data[1:2] not in (b"[", b"O"):
        return 1, "escape"
    for end in range(2, len(data)):
        if 0x40 <= data[end] <= 0x7E:  # the final byte of a control sequence
            return end + 1, _SEQUENCES.get(data[2 : end + 1].decode("ascii", "replace"), "")
    return (len(data), "") if is_complete else (0, "")


def _split_character(data: bytes, is_complete: bool) -> tuple[int, str]:
    first = data[0]
    size = 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    if len(data) < size and not is_complete:
        return 0, ""
    text = data[:size].decode("utf-8", "ignore")
    return min(size, len(data)), _NAMES.get(text, text if text.isprintable() else "")


class Terminal:
    """The keys of one terminal. Opened as often as it is closed; the first opening starts the reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._handlers: dict[str, KeyHandler] = {}
        self._other: KeyHandler | None = None
        self._openings = 0
        self._lock = threading.Lock()  # guards the openings
        self._stop = threading.Event()
        self._is_alive = False

    @property
    def is_usable(self) -> bool:
        """Whether somebody can type into it: a terminal, with this program in its foreground."""
        return _is_foreground(self._fd)

    @property
    def is_alive(self) -> bool:
        """Whether the reader runs; False once the terminal is gone."""
        return self._is_alive

    def claim(self, keys: Iterable[str], handler: KeyHandler) -> None:
        """Send these keys to `handler`. Raises RobotConfigError when one of them is claimed already."""
        wanted = list(keys)
        taken = sorted(set(wanted) & set(self._handlers))
        if taken:
            raise RobotConfigError(
                f"key {taken[0]!r} is claimed twice: an input device and an operator's mark both use it. Give the mark "
                "another key (actor.keys), for example its capital letter, or choose another keyboard layout."
            )
        self._handlers |= dict.fromkeys(wanted, handler)

    def claim_others(self, handler: KeyHandler) -> None:
        """Send keys that nobody claimed to `handler`."""
        self._other = handler

    def release(self, handler: KeyHandler) -> None:
        """Send nothing more to `handler`."""
        self._handlers = {key: owner for key, owner in self._handlers.items() if owner != handler}
        if self._other == handler:
            self._other = None

    def open(self) -> None:
        """Switch the terminal to single keys and read them. Raises RobotError where there is no usable terminal."""
        with self._lock:
            self._openings += 1
            if self._openings > 1:
                return
            if not self.is_usable:
                self._openings = 0
                raise RobotError(
                    "the standard input is no terminal in the foreground, so nobody can press keys. Start the program "
                    "in a terminal of its own, without & and without redirecting its input."
                )
            self._saved = termios.tcgetattr(self._fd)
            self._watchdog = _start_watchdog(self._fd)
            tty.setcbreak(self._fd, termios.TCSANOW)
            self._stop.clear()
            self._is_alive = True
            self._thread = threading.Thread(target=self._read, name="terminal", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Give the terminal its mode back, once closed as often as opened. Safe to call more often."""
        with self._lock:
            self._openings = max(0, self._openings - 1)
            if self._openings or not hasattr(self, "_saved"):
                return
            self._stop.set()
            if threading.current_thread() is not self._thread:
                self._thread.join()
            self._is_alive = False
            if _is_foreground(self._fd):  # from the background it would stop the process; the watchdog does it then
                with contextlib.suppress(termios.error):
                    termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
                self._dismiss_watchdog()
            del self._saved

    def _dismiss_watchdog(self) -> None:
        assert self._watchdog.stdin is not None
        with contextlib.suppress(OSError):
            self._watchdog.stdin.write(b"done\n")
            self._watchdog.stdin.close()
        self._watchdog.wait()

    def _read(self) -> None:
        rest, was_foreground = b"", True
        while not self._stop.is_set():
            try:
                is_foreground = os.tcgetpgrp(self._fd) == os.getpgrp()
                if is_foreground and not was_foreground:  # the shell gave it another mode meanwhile
                    tty.setcbreak(self._fd, termios.TCSANOW)
                was_foreground = is_foreground
                if not is_foreground:  # reading would stop the process, and with it the control loop
                    self._stop.wait(_POLL_S)
                    continue
                timeout_s = _ESCAPE_S if rest else _POLL_S
                is_readable = bool(select.select([self._fd], [], [], timeout_s)[0])
                data = os.read(self._fd, 1024) if is_readable else b""
            except (OSError, termios.error):
                is_readable, data = True, b""
            if is_readable and not data:
                self._is_alive = False
                _log.warning("the terminal is gone: no keys from now on")
                return
            keys, rest = split_keys(rest + data, is_complete=not is_readable)
            now_s = time.monotonic()
            for key in keys:
                self._dispatch(key, now_s)

    def _dispatch(self, key: str, now_s: float) -> None:
        # The small letter too: caps lock must not silence the operator.
        handler = self._handlers.get(key) or self._handlers.get(key.lower()) or self._other
        if handler is None:
            return
        try:
            handler(key if key in self._handlers else key.lower(), now_s)
        except Exception:  # the reader serves others too
            _log.exception("key %r was not handled", key)


@functools.cache
def standard_terminal() -> Terminal:
    """Return the one reader of this process's standard input."""
    try:
        return Terminal(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError):  # closed or replaced
        return Terminal(-1)


def _is_foreground(fd: int) -> bool:
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


def _start_watchdog(fd: int) -> "subprocess.Popen[bytes]":
    """Start what restores the terminal's present mode when this process ends without having done so."""
    mode = subprocess.run(["stty", "-g"], stdin=fd, capture_output=True, text=True, check=True).stdout.strip()
    return subprocess.Popen(
        ["sh", "-c", _RESTORE_SCRIPT, "sh", mode, os.ttyname(fd)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # neither Ctrl-C nor the end of our process group is meant for it
    )
