"""Two trainers in lockstep of which one goes astray, for test_several_trainers.

python -m tests.trainer_ranks RANK RUN_DIR; rank 0 leaves in RUN_DIR/found.json what it saw.
"""

import json
import logging
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from learner.algorithms.state import SKIPPED
from learner.data_parallel import joined
from learner.follower import Follower
from learner.leader import Leader, config_of
from learner.trainer import Trainer
from policy.errors import NonFiniteError
from tests.trainer_runs import SPECS, make_config, train


class AstrayFollower(Follower):
    """After its first reload, one of its weights is not what rank 0 has."""

    def _reload(self) -> None:
        is_first = self._is_new
        super()._reload()
        if is_first:
            state = self._algorithm.state()
            name = next(name for name in state if name.startswith("denoiser."))
            state[name].flatten()[0] += 1e-3
            self._algorithm.load_state(state)


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def lead(run_dir: Path, group: dist.ProcessGroup) -> None:
    leader = Leader(2, "cpu", group)
    trainer = Trainer(config_of(make_config(run_dir, num_trainers=2), 0), SPECS, leader)
    warnings = Warnings()
    logging.getLogger("learner.leader").addHandler(warnings)
    train(trainer, 5)
    trainer.save()  # finds the follower astray, and brings it back
    after_first = list(warnings.texts)
    train(trainer, 5)
    trainer.save()
    state = trainer.algorithm.state()
    poisoned = {name: torch.full_like(state[name], torch.nan) for name in state if name.startswith("critic.")}
    trainer.algorithm.load_state({**state, **poisoned})
    broken = ""
    try:
        train(trainer, 3)
    except NonFiniteError as error:
        broken = str(error)
        trainer.roll_back(error)
    now = trainer.algorithm.state()
    is_back = all(torch.equal(now[name], state[name]) for name in state if SKIPPED not in name)  # which is counted on
    train(trainer, 5)
    trainer.save()
    leader.stop()
    found = {"after_first": after_first, "in_all": warnings.texts, "broken": broken, "is_back": is_back}
    (run_dir / "found.json").write_text(json.dumps(found | {"learner_step": trainer.learner_step}))


def main() -> None:
    rank, run_dir = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    with joined(rank, 2, run_dir / "rendezvous", "cpu", 60.0) as group:
        if rank == 0:
            lead(run_dir, group)
        else:
            config = config_of(make_config(run_dir, num_trainers=2), rank)
            AstrayFollower(config, SPECS, rank, group).run()


if __name__ == "__main__":
    main()
