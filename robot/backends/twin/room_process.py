"""Starts and watches the process that draws a room's cameras. Nothing here waits for it."""

import json
import logging
import os
import subprocess
import sys
from typing import Any

_log = logging.getLogger(__name__)

_CLOSE_S = 5.0


class CameraProcess:
    """The child. What it says is read whenever `look` is called."""

    def __init__(self, scene: str, host: str, poses_port: int, port: int, fps: float, looks: float) -> None:
        """port: the first of the two it uses; 0 for free ones. looks: how much they vary (looks.py)."""
        self.report: dict[str, Any] = {"frames_port": 0, "render_port": 0, "cameras_error": "they are not ready yet"}
        self.has_reported = False
        ports = (port, port + 1) if port else (0, 0)
        poses_host = "127.0.0.1" if host == "0.0.0.0" else host
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "robot.backends.twin.room_cameras", "--scene", scene, "--host", host,
                "--poses", f"tcp://{poses_host}:{poses_port}", "--ports", *map(str, ports), "--fps", str(fps),
                "--looks-variation", str(looks), "--parent", str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def look(self) -> None:
        """Bring `report` up to date."""
        assert self._process.stdout is not None
        if not self.has_reported and (line := self._process.stdout.readline()):
            self.report.update(json.loads(line))
            self._note()
        if self._process.poll() is not None and not self.report["cameras_error"]:
            self._fail(f"the process that draws them ended with exit code {self._process.returncode}")
        elif self._process.poll() is not None and not self.has_reported:
            self._fail(f"the process that draws them ended at once, with exit code {self._process.returncode}")

    def close(self) -> None:
        """End the child. Safe to call twice."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_CLOSE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _fail(self, reason: str) -> None:
        self.report.update(frames_port=0, render_port=0, cameras_error=reason)
        self._note()

    def _note(self) -> None:
        self.has_reported = True
        if self.report["cameras_error"]:
            _log.warning("no cameras: %s", self.report["cameras_error"])
