"""What benchmark tables made of whole launch/sim.sh runs share."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def run_missing(commands: dict[Path, list[str]], jobs: int, result: str = "summary.json") -> None:
    """Run the command of every folder that lacks its `result` yet, `jobs` at a time; a failed one is reported."""
    missing = {folder: command for folder, command in commands.items() if not (folder / result).exists()}
    with ThreadPoolExecutor(jobs) as pool:
        for folder, code in zip(missing, pool.map(_run, missing.values()), strict=True):
            print(f"{folder}: {'done' if code == 0 else f'ended with code {code}, see its logs'}")


def _run(command: Sequence[str]) -> int:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode


def read_summary(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def interim_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return the interim evaluations of a run, oldest first."""
    return [row for row in read_lines(folder / "actor" / "evaluations.jsonl") if row["kind"] == "interim"]


def machine() -> str:
    model = platform.processor() or platform.machine()
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            model = text.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, no GPU"
