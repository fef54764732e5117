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
