"""SpaceMice without hardware: what a test plugs in appears behind the real easyhid and pyspacemouse."""

import functools
import shutil
import socket
import struct
import subprocess
import tempfile
from pathlib import Path

import easyhid.easyhid
import pytest

COMPACT = (0x256F, 0xC635)
RECEIVER = (0x256F, 0xC652)
PRO = (0x046D, 0xC62B)
SIX_AXES = (0x01, 0x08)
KEYBOARD = (0x01, 0x06)
_FULL = 350  # what the device reports at full deflection


@functools.cache
def _built() -> "tempfile.TemporaryDirectory[str]":
    folder = tempfile.TemporaryDirectory()  # removed when the cache goes, at the process's end
    library = Path(folder.name) / "libhidapi-hidraw.so.0"
    source = Path(__file__).parent / "fake_hidapi.c"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Werror",
        f"-Wl,-soname,{library.name}",
        "-o",
        str(library),
        str(source),
    ]
    subprocess.run(command, check=True)
    library.with_suffix("").symlink_to(library.name)  # the name by which a linker, which Python asks, looks for it
    return folder


def library_folder() -> Path:
    """Return the folder with the fake libhidapi-hidraw.so.0. Skips the test where nothing can compile it."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc), which the stand-in for libhidapi is built with")
    return Path(_built().name)


class Desk:
    """Where SpaceMice are plugged in. Only they exist for this process, whatever else is attached to the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library = str(library_folder() / "libhidapi-hidraw.so.0")
        self._folder = tempfile.TemporaryDirectory(prefix="hid")  # short: the path of a socket has 107 characters
        self.folder = Path(self._folder.name)
        monkeypatch.setattr(easyhid.easyhid, "hidapi", easyhid.easyhid.ffi.dlopen(library))
        monkeypatch.setenv("FAKE_HID", str(self.folder))

    def plug(self, name: str = "hidraw0", ids: tuple[int, int] = COMPACT, usage: tuple[int, int] = SIX_AXES) -> "Mouse":
        return Mouse(self, self.folder / name, ids, usage)

    def starve(self, is_starved: bool) -> None:
        """Let nothing be read any more, as in a process that gets no time; reports queue up."""
        hold = self.folder / "hold"
        hold.touch() if is_starved else hold.unlink()


class Mouse:
    """A SpaceMouse in a person's hand; a Compact unless said otherwise."""

    def __init__(self, desk: Desk, path: Path, ids: tuple[int, int], usage: tuple[int, int]) -> None:
        self.path = path
        self._desk = desk  # whose folder goes with it
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.settimeout(30.0)
        self._listener.bind(str(path))
        self._listener.listen()
        self._link: socket.socket | None = None
        path.with_suffix(".txt").write_text(" ".join(f"{number:x}" for number in (*ids, *usage)))

    def report(self, content: bytes) -> None:
        """Send one report; waits until somebody has opened the device."""
        if self._link is None:
            self._link, _ = self._listener.accept()
            self._link.setblocking(True)  # with a time limit it would count as full at a quarter of its size
        self._link.sendall(bytes([len(content)]) + content.ljust(15, b"\0"))

    def translate(self, right: float = 0.0, back: float = 0.0, down: float = 0.0) -> None:
        """Push the cap, in parts of its way, along the device's own axes."""
        self.report(struct.pack("<B3h", 1, *(round(_FULL * part) for part in (right, back, down))))

    def rotate(self, about_right: float = 0.0, about_back: float = 0.0, about_down: float = 0.0) -> None:
        """Turn the cap, in parts of its way, about the device's own axes (right-handed)."""
        self.report(struct.pack("<B3h", 2, *(round(_FULL * part) for part in (about_right, about_back, about_down))))

    def press(self, *bits: int) -> None:
        """Hold the buttons with these bits, and no others."""
        self.report(struct.pack("<BBB", 3, sum(1 << bit for bit in bits), 0))

    def unplug(self) -> None:
        """Pull the plug. Safe to call twice."""
        for path in (self.path.with_suffix(".txt"), self.path):
            path.unlink(missing_ok=True)
        self._listener.close()
        if self._link is not None:
            self._link.close()
