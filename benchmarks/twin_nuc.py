"""Does the twin behind Deoxys' door keep real time? `python -m benchmarks.twin_nuc` prints the table of docs/twin.md.

Starts the process on free ports and drives the arm with our own driver at 20 Hz while, case by case, its cameras are
watched and every core of the machine is kept busy by somebody else.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zmq

from robot.backends.deoxys.backend import DeoxysBackend
from robot.backends.deoxys.config import load_network
from robot.backends.deoxys.options import DeoxysOptions
from robot.backends.twin.room import RoomClient
from robot.cameras import make_camera
from robot.interface import RobotCommand

PERIOD_S = 0.05


def main() -> None:
    """Measure each case and print its row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    seconds = parser.parse_args().seconds
    print(f"{os.cpu_count()} cores; {seconds:g} s each")
    print(
        "| case | late steps | longest, ms | given up, s | states/s | oldest state, ms | process, % of a core | "
        "drawing, % | images/s, each |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for name, has_cameras, busy in (
        ("nothing else", False, 0),
        ("both cameras watched", True, 0),
        ("both, and every core busy", True, os.cpu_count() or 1),
    ):
        print(f"| {name} | {' | '.join(_measure(seconds, has_cameras, busy))} |", flush=True)


def _measure(seconds: float, has_cameras: bool, busy: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, _nuc(Path(folder)) as (process, address), RoomClient(address) as room:
        arm = DeoxysBackend("peg_in_hole", DeoxysOptions(network=Path(folder) / "network.yml"))
        cameras = [make_camera("room", name, device=address) for name in ("wrist", "third_person") if has_cameras]
        workers = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(busy)]
        try:
            for camera in cameras:
                camera.connect()
            arm.connect()
            for worker in workers:
                worker.start()
            child = psutil.Process(process.pid).children()[0]
            before, drawn_s = room.info(), sum(child.cpu_times()[:2])
            frames = [camera.read().sequence for camera in cameras]
            listener = _listen(Path(folder) / "network.yml")
            start_s = time.monotonic()
            ages_s = _drive(arm, seconds)
            took_s = time.monotonic() - start_s
            states = _count(listener)
            after, drawn_s = room.info(), sum(child.cpu_times()[:2]) - drawn_s
            images = [camera.read().sequence - first for camera, first in zip(cameras, frames, strict=True)]
        finally:
            for worker in workers:
                worker.kill()
            arm.close()
            for camera in cameras:
                camera.close()
    steps = after["physics_steps"] - before["physics_steps"]
    return [
        f"{(after['late_steps'] - before['late_steps']) / steps:.2%}",
        f"{after['max_late_s'] * 1e3:.1f}",
        f"{after['lost_s'] - before['lost_s']:.2f}",
        f"{states / took_s:.1f}",
        f"{max(ages_s) * 1e3:.0f}",
        f"{(after['processor_s'] - before['processor_s']) / took_s:.0%}",
        f"{drawn_s / took_s:.0%}",
        f"{min(images) / took_s:.1f}" if images else "none",
    ]


def _drive(arm: DeoxysBackend, seconds: float) -> list[float]:
    """Circle in the air at 20 Hz; return the ages of the states that were acted on, s."""
    ages_s, deadline_s = [], time.monotonic()
    end_s = deadline_s + seconds
    while deadline_s < end_s:
        deadline_s += PERIOD_S
        time.sleep(max(deadline_s - time.monotonic(), 0.0))
        ages_s.append(time.monotonic() - arm.read_state().received_monotonic_s)
        angle = 2.0 * np.pi * 0.5 * deadline_s
        step = 0.01 * np.array([np.cos(angle), np.sin(angle), 0.5 * np.cos(angle)])
        arm.send_command(RobotCommand(delta_position=step, delta_rotation=np.zeros(3)))
    return ages_s


def _listen(network: Path) -> Any:
    """Return a second subscriber to the arm's states, which keeps all that come."""
    listener: Any = zmq.Context.instance().socket(zmq.SUB)
    listener.rcvhwm = 0
    listener.subscribe(b"")
    listener.connect(f"tcp://127.0.0.1:{load_network(network).state_port}")
    return listener


def _count(listener: Any) -> int:
    count = 0
    while listener.poll(0):
        listener.recv()
        count += 1
    listener.close(0)
    return count


@contextmanager
def _nuc(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "robot.backends.twin.nuc", "--with-parent", "--room", "127.0.0.1:0"]
    command += ["--write-network", str(folder / "network.yml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def _burn() -> None:
    while True:
        np.linalg.inv(np.random.default_rng(0).normal(size=(100, 100)))


if __name__ == "__main__":
    main()
