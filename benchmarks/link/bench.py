"""What the sections of the link's benchmark share."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.link.crowd import Crowd
from benchmarks.link.processes import Actor, GaveUpError, Ingest, Security, start
from benchmarks.link.workload import Workload, take_pictures


class Bench:
    """What sections share: a folder, pictures, and how thorough to be."""

    def __init__(self, folder: Path, *, is_quick: bool) -> None:
        self.folder = folder
        self.pictures_path = folder / "pictures.npz"
        self.pictures = take_pictures(self.pictures_path)
        self.is_quick = is_quick
        self._count = 0

    def fresh_folder(self) -> Path:
        self._count += 1
        folder = self.folder / f"{self._count:03d}"
        folder.mkdir(parents=True)
        return folder

    def workload(self, kind: str) -> Workload:
        return Workload(kind, self.pictures.noisy)

    @contextlib.contextmanager
    def connected(self, workload: Workload, security: Security | None = None) -> Iterator[tuple[Ingest, Actor]]:
        """Start an ingest and connect an actor to it."""
        folder = self.fresh_folder()
        with contextlib.ExitStack() as running:
            ingest = Ingest(folder / "learner", workload.specs, security=security)
            running.callback(ingest.close)
            ingest.start().wait_until_ready()
            actor = Actor(folder / "actor", ingest.address, workload, security=security)
            running.callback(actor.close)
            yield ingest, actor.connect()


class CrowdProcess:
    """A running process of benchmarks.link.crowd."""

    def __init__(self, crowd: Crowd, niceness: int = 0) -> None:
        pipe = subprocess.PIPE
        self._log_path = Path(crowd.folder) / f"{crowd.prefix}.log"
        with self._log_path.open("w") as log:
            self.process = start(["benchmarks.link.crowd", crowd.to_json()], log, stdin=pipe, stdout=pipe)
        psutil.Process(self.process.pid).nice(niceness)
        self._line()

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, dict[str, Any]]:
        answer: dict[str, dict[str, Any]] = json.loads(self._line())
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise GaveUpError(f"simulated actors ended: {self._log_path.read_text()[-500:]}")
        return line
