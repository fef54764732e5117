"""A trainer beside the first one: reads the log, draws its share of each batch and steps when it is told to.

python -m learner.follower CONFIG RANK FOLDER, which is what learner.leader does. It ends when told to, or killed with
the first one, and is deaf to Ctrl-C: what must be kept is the first one's to keep.
"""

import logging
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from learner.algorithms import make_algorithm
from learner.algorithms.base import Algorithm
from learner.config import LearnerConfig
from learner.data_parallel import broadcast_tensors, joined
from learner.graphed_update import GraphedUpdate
from learner.leader import DIGEST, Order, config_of, digest, exchange_order
from learner.rank_state import generators_and_rest, synchronise
from learner.replay_feed import ReplayFeed, make_replay
from learner.resolved_config import load_config
from policy.cli import run_main
from policy.episode_log import EpisodeLog
from policy.errors import MemoryExhaustedError
from policy.failpoints import failpoint
from policy.spec import Specs

_REPLAY = "replay"  # the generator that batches are drawn with, among the algorithm's


class Follower:
    """Does what rank 0 says. Its networks are rank 0's; its replay holds the same rows; its random numbers differ."""

    def __init__(self, config: LearnerConfig, specs: Specs, rank: int, group: dist.ProcessGroup) -> None:
        """`config` is this rank's own share."""
        self._config = config
        self._specs = specs
        self._rank = rank
        self._group = group
        self._replay = make_replay(config, specs)
        self._feed = ReplayFeed(EpisodeLog(config.run_dir / "log.sqlite", specs, read_only=True), self._replay)
        self._algorithm: Algorithm  # these two by RELOAD, the first order but for READ
        self._updates: GraphedUpdate
        self._is_new = True

    def run(self) -> None:
        """Obey until STOP. Raises LostRankError when nothing is heard for learner.trainer_timeout_s."""
        while True:
            order, log_position = exchange_order(torch.zeros(2, dtype=torch.int64), self._group)
            if order is Order.STOP:
                return
            self._feed.read_to(log_position)
            if order is Order.STEP:
                self._updates.step()
                failpoint("follower.after_step")
            elif order is Order.RELOAD:
                self._reload()
            elif order is Order.TELL:
                self._tell()

    def _reload(self) -> None:
        """Begin where rank 0 does, after a start or a roll-back; the latter leaves the replay's generator as it is."""
        self._algorithm = make_algorithm(self._config, self._specs)
        synchronise(self._algorithm, self._config.device)
        mine = f"{self._rank}/"
        noise = broadcast_tensors({}, "cpu", group=self._group)
        own = {name.removeprefix(mine): tensor for name, tensor in noise.items() if name.startswith(mine)}
        replay_noise = own.pop(_REPLAY, None)
        if own:
            self._algorithm.load_state({**self._algorithm.state(), **own})
        self._updates = GraphedUpdate(self._algorithm, self._replay.sample, self._config, self._replay.prepare)
        if self._is_new and replay_noise is not None:
            self._replay.resume_noise(replay_noise)
        self._is_new = False

    def _tell(self) -> None:
        told: dict[str, Tensor] = {DIGEST: digest(self._algorithm), **generators_and_rest(self._algorithm)[0]}
        told[_REPLAY] = self._replay.noise.generators[0].get_state()
        broadcast_tensors(told, "cpu", source=self._rank, group=self._group)


def follow(config_path: Path, rank: int, folder: Path) -> int:
    logging.getLogger().setLevel(logging.WARNING)  # rank 0 says the same things
    whole = load_config(config_path)
    config = config_of(whole, rank)
    torch.set_num_threads(config.torch_threads)
    specs = Specs.from_json((config.run_dir / "specs.json").read_text())
    (folder / str(rank)).touch()
    with joined(rank, whole.num_trainers, folder / "rendezvous", config.device, whole.trainer_timeout_s) as group:
        try:
            Follower(config, specs, rank, group).run()
        except torch.OutOfMemoryError as error:
            raise MemoryExhaustedError(
                f"{config.device} is out of memory: {error} All trainers start again from the newest checkpoint. If "
                "this comes back: end other programs on the device, or lower replay.batch_size or replay.capacity."
            ) from error
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: follow(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))
