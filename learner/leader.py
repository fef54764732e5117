"""Several trainers in lockstep: the first one is the Trainer as it is alone, and tells the others what to do with it.

The others (learner.follower) are its own processes. They read the same log to the place that it names, draw their share
of each batch, and step when it does; nothing of theirs is on disk. Each order is an exchange that all of them take part
in, also while there is nothing to do, so that one that has died or hangs is found out within learner.trainer_timeout_s.
Then the first one ends too, with the others' exit code, and whoever supervises it starts all of them again.
"""

import contextlib
import enum
import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from learner.data_parallel import LostRankError, broadcast_tensors, expecting_all_ranks, joined, share_of
from learner.rank_state import generators_and_rest, synchronise
from policy.errors import ConfigError
from policy.process import killed_with_parent

if TYPE_CHECKING:
    from learner.algorithms.base import Algorithm
    from learner.config import LearnerConfig

logger = logging.getLogger(__name__)

DIGEST = "digest"  # of what must be the same on all ranks, beside a rank's generators
_POLL_PERIOD_S = 0.05
_START_S = 120.0  # for another trainer to start, and PyTorch with it
_LAST_WORDS_S = 2.0  # until a process whose connection is gone has an exit code


class Order(enum.IntEnum):
    """What the first trainer tells the others; first of all, and always, to read the log to its own place."""

    READ = 1
    STEP = 2
    RELOAD = 3  # take the first one's networks and optimisers
    TELL = 4  # the state of all random generators, and a digest of the rest
    STOP = 5


class Leader:
    """The first trainer's word to the others; where it is the only one, nothing is said."""

    def __init__(
        self, num_ranks: int = 1, device: str | torch.device = "cpu", group: dist.ProcessGroup | None = None
    ) -> None:
        self._num_ranks = num_ranks
        self._device = device
        self._group = group

    @property
    def is_alone(self) -> bool:
        return self._num_ranks == 1

    def read(self, log_position: int) -> None:
        """Let the others read the log to this place. To be called many times in learner.trainer_timeout_s."""
        self._say(Order.READ, log_position)

    def step(self, log_position: int) -> None:
        """Let the others do the learner step that the caller does next."""
        self._say(Order.STEP, log_position)

    def reload(self, algorithm: "Algorithm", log_position: int, rank_noise: Mapping[str, Tensor]) -> None:
        """Give the others the networks and optimisers of `algorithm`, and each its generators from `rank_noise`.

        One that finds nothing there begins with generators of its own.
        """
        if self.is_alone:
            return
        self._say(Order.RELOAD, log_position)
        synchronise(algorithm, self._device)
        broadcast_tensors(rank_noise, "cpu", group=self._group)

    def rank_noise(self, algorithm: "Algorithm", log_position: int) -> dict[str, Tensor]:
        """Return the state of the others' generators, by "RANK/NAME", for `reload` after the next start.

        Looks whether all have the same networks, and gives them those of `algorithm` where they do not.
        """
        if self.is_alone:
            return {}
        self._say(Order.TELL, log_position)
        noise: dict[str, Tensor] = {}
        astray = []
        own = digest(algorithm)
        for rank in range(1, self._num_ranks):
            told = broadcast_tensors({}, "cpu", source=rank, group=self._group)
            if not torch.equal(told.pop(DIGEST), own):
                astray.append(rank)
            noise |= {f"{rank}/{name}": tensor for name, tensor in told.items()}
        if astray:
            logger.warning(
                "trainers %s have come to other networks than the first one, and take its own now. GPUs of different "
                "models round differently; on equal ones this is a fault of the hardware or of this program.", astray,
            )  # fmt: skip
            self.reload(algorithm, log_position, noise)
        return noise

    def stop(self) -> None:
        """Let the others end."""
        self._say(Order.STOP, 0)

    def _say(self, order: Order, log_position: int) -> None:
        if not self.is_alone:
            exchange_order(torch.tensor([order, log_position]), self._group)


def exchange_order(message: Tensor, group: dist.ProcessGroup | None) -> tuple[Order, int]:
    """Return the first rank's order and place in the log; the others bring zeros."""
    with expecting_all_ranks():
        dist.all_reduce(message, group=group)
    order, log_position = message.tolist()
    return Order(order), log_position


def digest(algorithm: "Algorithm") -> Tensor:
    """Return SHA-256, (32,) uint8, of all of an algorithm's state that ranks have in common."""
    _, rest = generators_and_rest(algorithm)
    return torch.frombuffer(bytearray(hashlib.sha256(safetensors.torch.save(rest)).digest()), dtype=torch.uint8)


def config_of(config: "LearnerConfig", rank: int) -> "LearnerConfig":
    """Return a trainer's own configuration: its share, and its device. Raises ConfigError where there is none for it.

    CUDA graphs are off: whether gradients can be exchanged within one has not been tried.
    """
    count = config.num_trainers
    if count == 1:
        return config
    share = share_of(config, rank, count)
    if torch.device(config.device).type != "cuda":
        return share
    if torch.cuda.device_count() < count:
        raise ConfigError(
            f"learner.num_trainers = {count} on cuda needs as many GPUs, PyTorch finds {torch.cuda.device_count()} "
            "here. Set it to that, or make more visible (CUDA_VISIBLE_DEVICES)."
        )
    torch.cuda.set_device(rank)
    if config.cuda_graph != "off" and rank == 0:
        logger.info("cuda_graph is off: not tried with learner.num_trainers = %d", count)
    return replace(share, device=f"cuda:{rank}", cuda_graph="off")


@contextlib.contextmanager
def leading(config: "LearnerConfig", config_path: Path, stop: threading.Event) -> Iterator[Leader | None]:
    """Start the other trainers that `config` asks for, and end them; yields None if `stop` is set before all are there.

    Raises LostRankError, with the exit code of the one that failed, when one of them does not do its part.
    """
    count, device = config.num_trainers, config.device
    if count == 1:
        yield Leader()
        return
    for old in config.run_dir.glob("trainers.*"):  # of one that was killed
        shutil.rmtree(old)
    folder = Path(tempfile.mkdtemp(prefix="trainers.", dir=config.run_dir))
    command = [sys.executable, "-m", "learner.follower", str(config_path)]
    followers = [
        subprocess.Popen([*command, str(rank), str(folder)], preexec_fn=killed_with_parent) for rank in range(1, count)
    ]
    try:
        if not _await_all(folder, followers, stop):
            yield None
            return
        with joined(0, count, folder / "rendezvous", device, config.trainer_timeout_s) as group:
            leader = Leader(count, device, group)
            yield leader
            leader.stop()
    except LostRankError as error:
        raise _explained(error, followers, config.trainer_timeout_s) from error
    finally:
        for follower in followers:
            follower.kill()
            follower.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _await_all(folder: Path, followers: Sequence[subprocess.Popen[bytes]], stop: threading.Event) -> bool:
    """Wait until each has left its number in `folder`, just before it joins; returns False once `stop` is set."""
    deadline_s = time.monotonic() + _START_S
    while not all((folder / str(rank)).exists() for rank in range(1, len(followers) + 1)):
        if time.monotonic() > deadline_s or any(follower.poll() is not None for follower in followers):
            raise LostRankError("another of the learner's trainers has not started")
        if stop.wait(_POLL_PERIOD_S):
            return False
    return True


def _explained(error: LostRankError, followers: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> LostRankError:
    """Return an error that says which trainer failed, and ends this process with that one's exit code."""
    deadline_s = time.monotonic() + _LAST_WORDS_S
    while all(follower.poll() is None for follower in followers) and time.monotonic() < deadline_s:
        time.sleep(_POLL_PERIOD_S)
    codes = {rank: follower.poll() for rank, follower in enumerate(followers, start=1)}
    dead = {rank: code for rank, code in codes.items() if code is not None}
    what = ", ".join(f"trainer {rank} has ended with code {code}" for rank, code in dead.items())
    what = what or f"trainers {list(codes)} run, but one has not answered for learner.trainer_timeout_s = {timeout_s} s"
    explained = LostRankError(
        f"{what}; its own message, if any, is above. All start again from the newest checkpoint. ({error})"
    )
    explained.exit_code = max(max(dead.values(), default=1), 1)  # a signal's is negative
    return explained
