"""Who listens on a TCP port of this machine, as far as the kernel tells us."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

_LISTEN = "0A"  # net/tcp_states.h


def is_port_free(port: int, host: str = "") -> bool:
    """Whether a server could bind it now. Raises OSError for an address that is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
            server.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def port_holder(port: int, proc: Path = Path("/proc")) -> str:
    """Return "NAME (pid N)" of who listens there; empty when that is another user's business."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening_inodes(proc / "net" / table, port)}
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in proc.iterdir():
        if process.name.isdecimal() and any(link in wanted for link in _open_files(process / "fd")):
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:  # it has ended
                continue
            return f"{command[:80]} (pid {process.name})"
    return ""


def _open_files(descriptors: Path) -> Iterator[str]:
    """Yield what a process has open; nothing of one that has ended or is another user's."""
    with contextlib.suppress(OSError):
        for descriptor in descriptors.iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                yield os.readlink(descriptor)


def _listening_inodes(table: Path, port: int) -> list[str]:
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[9] for row in rows if row[3] == _LISTEN and int(row[1].rpartition(":")[2], 16) == port]
