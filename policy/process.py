"""Processes that start other processes."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies, however it dies. For Popen's preexec_fn.

    One system call and nothing else, so it is safe between fork and exec of a program with threads.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def killed_with_parent() -> None:
    """Have the kernel kill this process when its parent dies; until then it ends neither by Ctrl-C nor by SIGTERM.

    For a process that has nothing to save and whose parent ends it. For Popen's preexec_fn.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal and a service manager send them to everyone
        signal.signal(number, signal.SIG_IGN)
