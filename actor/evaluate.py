"""python -m actor.evaluate: how good a published policy is alone, or which of two is better."""

import sys

from actor.__main__ import StopRequest, say
from actor.config import EvaluateConfig
from policy.cli import parse_config, run_main


def main() -> int:
    config = parse_config(
        EvaluateConfig,
        "actor",
        sys.argv[1:],
        "Evaluation of published policies, without help and without learning: fixed start states, a blind order of two "
        "policies, a video of each trial, and a report with intervals and tests. Takes the actor's options for task, "
        "robot, cameras and judge; those of training have no effect.",
        example="python -m actor.evaluate --checkpoint runs/a --against runs/b --episodes 20 --out runs/a_or_b",
        program="actor.evaluate",
    )
    stop = StopRequest()
    import torch  # after parsing: --help must not wait for torch and MuJoCo

    from actor.evaluator import Evaluator

    torch.set_num_threads(1)
    return Evaluator(config, lambda: stop.is_set, say).run()


if __name__ == "__main__":
    sys.exit(run_main(main))
