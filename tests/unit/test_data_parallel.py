"""Two processes that average their gradients learn what one learns from the joint batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from learner.agents import Agents
from learner.data_parallel import average_over_ranks, share_of
from policy.errors import ConfigError
from tests.data_parallel_rank import ALGORITHMS, joint_config, make, results, update

ROOT = Path(__file__).resolve().parents[2]
HANG_LIMIT_S = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have left what they came to."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.data_parallel_rank"]
    ranks = [
        subprocess.Popen([*command, str(rank), "2", str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=HANG_LIMIT_S)
        assert rank.returncode == 0, errors
    return folder


def ranks_of(folder: Path, algorithm: str) -> list[dict[str, Tensor]]:
    return [safetensors.torch.load_file(folder / f"{algorithm}.{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_two_ranks_learn_what_one_learns_from_the_joint_batch(
    algorithm: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Agents, "noise", Agents.noise)  # make() replaces it; put it back after the test
    alone = make(algorithm, 0, 1)
    before = results(alone)
    update(alone, 0, 1)
    expected = results(alone)
    assert any(not torch.equal(expected[name], before[name]) for name in before)
    for rank in ranks_of(folder, algorithm):
        for name, tensor in expected.items():
            difference = float((rank[name] - tensor).abs().max())
            assert difference < 1e-5, name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ranks_start_apart_and_stay_the_same_once_they_are_synchronised(algorithm: str, folder: Path) -> None:
    other = ranks_of(folder, algorithm)[1]
    assert float(other["difference_before"]) > 0
    assert float(other["difference"]) == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_both(algorithm: str, folder: Path) -> None:
    first, second = ranks_of(folder, algorithm)
    assert int(first["skipped"]) == int(second["skipped"]) > 0
    assert bool(first["is_finite"])
    assert bool(second["is_finite"])


def test_a_rank_has_its_share_of_each_batch_and_a_seed_of_its_own() -> None:
    config = joint_config("cgpo")
    shares = [share_of(config, rank, 3) for rank in range(3)]
    assert [share.replay.batch_size for share in shares] == [4, 4, 4]
    assert shares[0].seed == config.seed
    assert len({share.seed for share in shares}) == 3
    with pytest.raises(ConfigError, match="12 cannot be shared equally by 5"):
        share_of(config, 0, 5)


def test_one_process_alone_keeps_its_gradients() -> None:
    gradient, loss = torch.ones(2), torch.tensor(3.0)
    (kept, absent), same = average_over_ranks([gradient, None], loss)
    assert kept is gradient
    assert absent is None
    assert same is loss
