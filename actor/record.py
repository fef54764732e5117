"""python -m actor.record: record demonstrations for the learner, each kept or discarded by a person."""

import sys

from actor.__main__ import StopRequest, say
from actor.config import RecorderConfig
from policy.cli import parse_config, run_main


def main() -> int:
    config = parse_config(
        RecorderConfig,
        "actor",
        sys.argv[1:],
        "The recorder: a person with an input device, or the task's scripted operator, demonstrates a task. Every step "
        "is on disk at once and goes to the learner when it is up; discarded episodes are marked and not learned from. "
        "Takes the actor's options; those of training and evaluation have no effect.",
        example="python -m actor.record --episodes 20 --teleop.device keyboard --run-dir runs/actor",
        default_preset="paper_robot",
        program="actor.record",
    )
    stop = StopRequest()
    import torch  # after parsing: --help must not wait for torch and MuJoCo

    from actor.recorder import Recorder

    torch.set_num_threads(1)
    Recorder(config, lambda: stop.is_set, say).run()
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
