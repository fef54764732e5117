"""An actor whose environment writes each executed step down before anything else of the actor hears of it.

    python -m benchmarks.fault_matrix.witness ORACLE CLOCK_OFFSET_S [flags of python -m actor]

ORACLE gets one line per step, appended by one system call: what a killed process has written is there. The clock that
tells the time of day is put wrong by CLOCK_OFFSET_S.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import actor.workcell
from actor.__main__ import main
from actor.env import EnvObservation, RobotEnv
from actor.spool import Spool
from benchmarks.fault_matrix.oracle import digest
from policy.cli import run_main


class WitnessedEnv(RobotEnv):
    """Numbers steps as the loop does: after a hold within an episode one number is left out."""

    oracle: int  # file descriptor
    incarnation: str
    _episode = -1
    _number = 0
    _num_steps = 1  # of the episode; there is none yet, and the first reset begins one
    _has_held = False
    _observed: EnvObservation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observed, info = super().reset(seed=seed, options=options)
        self._episode += self._num_steps > 0
        self._number, self._num_steps, self._has_held, self._observed = -1, 0, False, observed
        return observed, info

    def hold(self, reason: str) -> EnvObservation:
        self._observed = super().hold(reason)
        self._has_held = self._num_steps > 0
        return self._observed

    def step(self, action: NDArray[np.float32]) -> tuple[EnvObservation, float, bool, bool, dict[str, Any]]:
        outcome = super().step(action)
        self._number += 2 if self._has_held else 1
        line = {
            "incarnation": self.incarnation,
            "episode": self._episode,
            "step": self._number,
            "digest": digest(self._observed, outcome[4]["executed_action"]),
            "monotonic_s": time.monotonic(),
        }
        os.write(self.oracle, json.dumps(line).encode() + b"\n")
        self._observed, self._num_steps, self._has_held = outcome[0], self._num_steps + 1, False
        return outcome


def witness(oracle: Path, clock_offset_s: float) -> None:
    """Put the witness into this process. Call it before a session is made."""
    WitnessedEnv.oracle = os.open(oracle, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    open_spool = Spool.__init__

    def note_incarnation(spool: Spool, path: Path, actor_id: str, incarnation: str, **options: Any) -> None:
        WitnessedEnv.incarnation = incarnation
        open_spool(spool, path, actor_id, incarnation, **options)

    Spool.__init__ = note_incarnation  # type: ignore[method-assign, assignment]
    actor.workcell.RobotEnv = WitnessedEnv  # type: ignore[attr-defined]
    if clock_offset_s:
        true_time_s, true_time_ns = time.time, time.time_ns

        def wrong_time_s() -> float:
            # gRPC makes deadlines of it for its core, which asks the system itself.
            is_grpc = sys._getframe(1).f_globals["__name__"].startswith("grpc")
            return true_time_s() + (0.0 if is_grpc else clock_offset_s)

        time.time = wrong_time_s
        time.time_ns = lambda: true_time_ns() + int(clock_offset_s * 1e9)


if __name__ == "__main__":
    witness(Path(sys.argv[1]), float(sys.argv[2]))
    sys.argv = ["python -m actor", *sys.argv[3:]]
    sys.exit(run_main(main))
