"""learner.num_trainers: processes that share each batch in lockstep, fail together and go on together."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from learner.algorithms.base import Algorithm
from learner.checkpoint import load_newest
from learner.config import LearnerConfig
from learner.data_parallel import LostRankError
from learner.leader import Leader, Order, _explained, config_of
from learner.trainer import Trainer
from policy.config import to_json
from policy.errors import EXIT_RETRY, ConfigError, MemoryExhaustedError
from tests.integration.test_supervisor import Learner, metric_steps, newest_checkpoint, wait_for_trainer
from tests.trainer_runs import HANG_LIMIT_S, SPECS, assert_same_state, make_config, wait_until, write_log

ROOT = Path(__file__).resolve().parents[2]
LAST_STEP = 150


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as closing:
        yield closing


def prepared(run_dir: Path, **changes: Any) -> LearnerConfig:
    """Return the configuration of two trainers, after writing it and a log to learn from."""
    values: dict[str, Any] = {
        "num_trainers": 2,
        "max_learner_steps": LAST_STEP,
        "metrics_every": 5,
        "checkpoint_period_s": 0.1,
    }
    config = make_config(run_dir, **values, **changes)
    write_log(run_dir, 0, 100)
    (run_dir / "specs.json").write_text(SPECS.to_json())
    (run_dir / "config.json").write_text(to_json(config))
    return config


def start_trainers(run_dir: Path, closing: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "learner.trainer", str(run_dir / "config.json")]
    trainer = subprocess.Popen(command, cwd=ROOT, stderr=closing.enter_context((run_dir / "said").open("wb")))
    closing.callback(trainer.kill)  # the others end with it
    return trainer


def follower_of(pid: int) -> psutil.Process:
    (follower,) = (child for child in psutil.Process(pid).children() if "learner.follower" in child.cmdline())
    return follower


@pytest.mark.e2e
def test_trainers_that_die_start_again_together_and_come_to_what_they_would_have(
    tmp_path: Path, closing: contextlib.ExitStack
) -> None:
    """A follower killed: bit for bit the run of those that live. One that hangs: a clear end. SIGTERM: a clean one."""
    prepared(tmp_path / "whole", trainer_timeout_s=5.0)
    whole = start_trainers(tmp_path / "whole", closing)
    learner = Learner(prepared(tmp_path / "killed"))
    closing.callback(learner.close)
    first = wait_for_trainer(learner)
    wait_until(lambda: newest_checkpoint(learner.run_dir) > 0)
    ingest, killed = learner.children()["ingest"], follower_of(first.pid)
    killed.kill()
    assert newest_checkpoint(learner.run_dir) < LAST_STEP
    second = wait_for_trainer(learner, other_than=first)
    wait_until(lambda: newest_checkpoint(learner.run_dir) == LAST_STEP)
    wait_until(lambda: newest_checkpoint(tmp_path / "whole") == LAST_STEP)

    hanging = follower_of(whole.pid)
    hanging.suspend()
    everyone = [learner.process, ingest, second, follower_of(second.pid), hanging, killed, first]
    assert learner.children()["ingest"] == ingest  # the same process
    follower_of(second.pid).terminate()  # as a service manager would: it leaves the end to the first trainer
    learner.process.terminate()
    assert learner.process.wait(HANG_LIMIT_S) == 0
    assert whole.wait(HANG_LIMIT_S) == 1
    assert not psutil.wait_procs(everyone, timeout=5)[1]

    said = (tmp_path / "whole" / "said").read_text()
    assert "has not answered for learner.trainer_timeout_s = 5.0 s" in said
    assert learner.said.count("trainer 1 has ended with code -9") == learner.said.count("ended with code") / 2 == 1
    assert "killing" not in learner.said
    for text in (said, learner.said):
        assert "2 trainers share each batch" in text
        assert "other networks" not in text  # looked at with each checkpoint
    expected, found = (load_newest(tmp_path / name / "checkpoints") for name in ("whole", "killed"))
    assert expected is not None
    assert found is not None
    assert_same_state(found.tensors, expected.tensors)
    assert_same_state(found.rank_noise, expected.rank_noise)
    assert torch.equal(found.replay_noise, expected.replay_noise)
    assert {"1/replay", "1/actor_noise"} <= found.rank_noise.keys()
    assert metric_steps(learner.run_dir) == sorted(set(metric_steps(learner.run_dir)))
    assert not list(learner.run_dir.glob("trainers.*"))


def test_networks_that_come_apart_are_brought_together_and_a_roll_back_is_everyones(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 100)
    command = [sys.executable, "-m", "tests.trainer_ranks"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=HANG_LIMIT_S)
        assert rank.returncode == 0, errors
    found = json.loads((tmp_path / "found.json").read_text())
    assert "trainers [1] have come to other networks" in found["after_first"][0]
    assert len(found["in_all"]) == 1  # once: they were the same from there on, also after the roll-back
    assert "3 updates in a row were not finite" in found["broken"]
    assert found["is_back"]
    assert found["learner_step"] == 15


class SilentLeader(Leader):
    """Leads another trainer that is not there."""

    def __init__(self) -> None:
        super().__init__(num_ranks=2)

    def _say(self, order: Order, log_position: int) -> None:
        pass

    def reload(self, algorithm: Algorithm, log_position: int, rank_noise: Mapping[str, Tensor]) -> None:
        pass


def test_out_of_memory_beside_others_is_no_second_attempt_and_saves_no_half_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(config_of(prepared(tmp_path), 0), SPECS, SilentLeader())

    def run_out(sample: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(trainer.algorithm, "update_step", run_out)
    with pytest.raises(MemoryExhaustedError, match="cpu is out of memory at learner step 0"):
        trainer.run(threading.Event())
    assert not newest_checkpoint(tmp_path)
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(("code", "exit_code", "said"), [(75, EXIT_RETRY, "code 75"), (-9, 1, "code -9")])
def test_the_trainer_ends_with_the_exit_code_of_the_follower_that_failed(code: int, exit_code: int, said: str) -> None:
    action = f"os.kill(os.getpid(), {-code})" if code < 0 else f"os._exit({code})"
    followers = [subprocess.Popen([sys.executable, "-c", f"import os; {action}"])]
    error = _explained(LostRankError("Connection closed by peer"), followers, 120.0)
    assert error.exit_code == exit_code
    assert f"trainer 1 has ended with {said}" in str(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trainers": 3}, r"batch_size = 16 cannot be shared equally by learner.num_trainers = 3"),
        ({"num_trainers": 0}, "num_trainers = 0 must be at least 1"),
        ({"num_trainers": 2, "trainer_timeout_s": 0.0}, "trainer_timeout_s = 0.0"),
        ({"num_trainers": 2, "device": "cuda:1"}, "device = 'cuda:1' is one device"),
    ],
)
def test_trainers_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, **changes)


def test_each_trainer_has_a_gpu_of_its_own_or_none_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = make_config(tmp_path, num_trainers=2, device="cuda")
    shares = [config_of(config, rank) for rank in range(2)]
    assert [share.device for share in shares] == ["cuda:0", "cuda:1"]
    assert [share.replay.batch_size for share in shares] == [8, 8]
    assert {share.cuda_graph for share in shares} == {"off"}
    assert used == [0, 1]
    with pytest.raises(ConfigError, match="4 on cuda needs as many GPUs, PyTorch finds 2"):
        config_of(replace(config, num_trainers=4), 0)
    assert config_of(replace(config, num_trainers=1), 0) == replace(config, num_trainers=1)
