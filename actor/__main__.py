"""python -m actor: run a task on a robot, send every step to the learner, act with the weights it publishes."""

import os
import signal
import sys
from types import FrameType

from actor.config import ActorConfig
from policy.cli import parse_config, run_main
from policy.errors import EXIT_INTERRUPTED, ConfigError
from policy.text import clean


class StopRequest:
    """The first SIGINT, SIGTERM or SIGHUP (the terminal is gone) asks the session to finish, the second ends at once.

    The handler runs inside the control step: it sets a flag and writes nothing.
    """

    def __init__(self) -> None:
        self.is_set = False
        signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup, and meant so
            signals.append(signal.SIGHUP)
        for number in signals:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.is_set:
            os._exit(EXIT_INTERRUPTED)  # the spool is a database: whatever it committed stays
        self.is_set = True


def claim_priority(priority: int) -> None:
    """Let the kernel run this process, with all threads that it starts from now on, before everything ordinary.

    All of them, and not the control thread alone: it would wait for the interpreter while another thread that holds it
    waits for a core. Does nothing for 0. Raises ConfigError where that is not allowed.
    """
    if priority == 0:
        return
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError as error:
        raise ConfigError(
            f"actor.realtime_priority = {priority} is not allowed to this user. Add the line `@realtime - rtprio 99` "
            "to /etc/security/limits.conf and your user to the group realtime (sudo groupadd -f realtime; sudo usermod "
            "-aG realtime $USER), and log in again; or set it to 0."
        ) from error


def say(line: str) -> None:
    sys.stdout.write(clean(f"{line}\n", None, keep="\n"))
    sys.stdout.flush()


def main() -> int:
    config = parse_config(
        ActorConfig,
        "actor",
        sys.argv[1:],
        "The actor: runs a task on a robot or its twin, sends every step to the learner, acts with the newest weights, "
        "and ends with an unassisted evaluation.",
        example="python -m actor --preset sim_quick --task peg_in_hole --learner 127.0.0.1:50051 --run-dir runs/actor",
        default_preset="paper_robot",
    )
    claim_priority(config.realtime_priority)
    stop = StopRequest()
    import torch  # after parsing: --help must not wait for torch and MuJoCo

    from actor.session import Session

    # Acting is four rows of a small network: a second thread slows it down, and takes the core the learner needs.
    torch.set_num_threads(1)
    Session(config, lambda: stop.is_set, say).run()
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
