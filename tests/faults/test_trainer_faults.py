"""What the trainer survives: values that are not finite, a full disk, too little memory. And what it says about it."""

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.checkpoint import load_newest
from learner.trainer import Trainer
from learner.trainer_status import read_status
from policy.errors import EXIT_DIVERGED, EXIT_RETRY, DivergedError, MemoryExhaustedError, NonFiniteError, WeightsError
from policy.weights import deserialise
from policy.weights_store import WeightsStore
from tests.trainer_runs import SPECS, assert_same_state, make_config, run_until, train, write_log


def poison(trainer: Trainer, prefix: str) -> None:
    """Set a network's parameters to NaN, as a bit that flips in memory may do sooner or later."""
    state = trainer.algorithm.state()
    poisoned = {name: torch.full_like(state[name], torch.nan) for name in state if name.startswith(prefix)}
    assert poisoned
    trainer.algorithm.load_state({**state, **poisoned})


def checkpointed_steps(run_dir: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step_")) for folder in (run_dir / "checkpoints").glob("step_*"))


def metric_steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["learner_step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


# --- not finite ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_single_bad_transition_costs_the_updates_that_draw_it_and_no_more(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 7, reward=1e38)  # finite on its way, infinite once it is scaled by 10
    write_log(tmp_path, 7, 693)
    config = make_config(tmp_path, max_learner_steps=60)
    config = replace(config, replay=replace(config.replay, capacity=1000, batch_size=8, reward_scale=10.0))
    trainer = Trainer(config, SPECS)
    run_until(trainer, lambda: trainer.learner_step == 60)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["skipped_updates"] < 30
    assert all(tensor.isfinite().all() for tensor in trainer.algorithm.state().values())
    assert read_status(tmp_path).alarm == ""
    assert checkpointed_steps(tmp_path) == [60]


@pytest.mark.parametrize("algorithm", ["cgpo", "bc", "hil_serl_sac"])
def test_three_bad_updates_in_a_row_are_an_error(tmp_path: Path, algorithm: str) -> None:
    write_log(tmp_path, 0, 50)
    trainer = Trainer(make_config(tmp_path, algorithm), SPECS)
    train(trainer, 4)
    poison(trainer, {"cgpo": "critic.", "bc": "denoiser.", "hil_serl_sac": "actor."}[algorithm])
    with pytest.raises(NonFiniteError, match=r"optimiser with loss nan and gradient norm nan") as error:
        train(trainer, 3)
    assert "3 updates in a row" in str(error.value)


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_going_back_restores_everything_but_what_was_learned_since(tmp_path: Path, has_checkpoint: bool) -> None:
    write_log(tmp_path, 0, 50)
    trainer = Trainer(make_config(tmp_path), SPECS)
    expected = trainer.algorithm.state()
    if has_checkpoint:
        train(trainer, 10)
        trainer.save()
        expected = trainer.algorithm.state()
    train(trainer, 7)
    poison(trainer, "target_critic.")
    draws = trainer._replay.noise.generators[0].get_state()
    trainer.roll_back(NonFiniteError("the critic is broken."))
    assert trainer.learner_step == (10 if has_checkpoint else 0)
    assert_same_state(trainer.algorithm.state(), expected)
    assert trainer.num_transitions == 50
    # Other batches than those that led here.
    assert torch.equal(trainer._replay.noise.generators[0].get_state(), draws)
    assert not [step for step in metric_steps(tmp_path) if step > trainer.learner_step]


def test_what_was_left_out_is_counted_on_after_a_roll_back_and_after_a_start(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 50)
    trainer = Trainer(make_config(tmp_path, metrics_every=1), SPECS)
    train(trainer, 5)
    poison(trainer, "value.")
    with pytest.raises(NonFiniteError):
        train(trainer, 3)
    count = left_out(trainer)
    assert count >= 3
    trainer.roll_back(NonFiniteError("the value network is broken."))
    assert left_out(trainer) == count
    assert not any(steps.in_a_row for steps in trainer.algorithm.skipped_steps().values())
    train(trainer, 8)
    assert left_out(trainer) == count
    trainer.save()
    again = Trainer(make_config(tmp_path, metrics_every=1), SPECS)
    train(again, 2)
    assert (again.learner_step, left_out(again)) == (10, count)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["learner_step"], last["skipped_updates"]) == (10, count)


def left_out(trainer: Trainer) -> int:
    return sum(steps.total for steps in trainer.algorithm.skipped_steps().values())


@pytest.mark.parametrize("network", ["critic.", "value.", "target_denoiser."])
def test_training_goes_on_from_the_checkpoint_and_the_alarm_ends_with_the_next(tmp_path: Path, network: str) -> None:
    """The critic is published, the value network shows in its own updates, the target in those of others."""
    write_log(tmp_path, 0, 50)
    trainer = Trainer(make_config(tmp_path, max_learner_steps=25, checkpoint_period_s=1e6), SPECS)
    train(trainer, 10)
    trainer.save()
    train(trainer, 8)
    poison_later = iter([True])
    update_step = trainer.algorithm.update_step

    def poisoned_update_step(sample: Any) -> Any:
        if next(poison_later, False):
            poison(trainer, network)
        return update_step(sample)

    trainer.algorithm.update_step = poisoned_update_step  # type: ignore[method-assign, assignment]
    run_until(trainer, lambda: "rolled back to learner step 10" in read_status(tmp_path).alarm)
    # Stopped: the last checkpoint is healthy again, and says so.
    run_dir_state = load_newest(tmp_path / "checkpoints")
    assert run_dir_state is not None
    assert 10 <= run_dir_state.learner_step <= 25
    assert all(tensor.isfinite().all() for tensor in run_dir_state.tensors.values())
    assert metric_steps(tmp_path) == sorted(set(metric_steps(tmp_path)))
    latest = WeightsStore(tmp_path / "weights").latest()
    assert latest is not None
    deserialise(WeightsStore(tmp_path / "weights").read(latest), latest.sha256)  # refuses what is not finite
    second = Trainer(make_config(tmp_path, max_learner_steps=25), SPECS)
    run_until(second, lambda: second.learner_step == 25)
    assert read_status(tmp_path).alarm == ""


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_training_that_breaks_again_and_again_stops_with_the_reason(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 50, reward=1e38)
    config = make_config(tmp_path)
    trainer = Trainer(replace(config, replay=replace(config.replay, reward_scale=10.0)), SPECS)
    with pytest.raises(DivergedError) as error:
        run_until(trainer, lambda: False)
    for part in ("critic_optimiser with loss inf", "3rd time", "learning rate", "reward_scale = 10.0", "learner.log"):
        assert part in str(error.value)
    assert error.value.exit_code == EXIT_DIVERGED
    status = read_status(tmp_path)
    assert status.state == "down"
    assert "diverged and stopped" in status.alarm
    latest = WeightsStore(tmp_path / "weights").latest()
    assert latest is not None
    deserialise(WeightsStore(tmp_path / "weights").read(latest), latest.sha256)


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 30)
    config = make_config(tmp_path)
    Trainer(config, SPECS).save()
    other = replace(config, policy=replace(config.policy, critic_hidden=(17,)))
    with pytest.raises(WeightsError, match=r"critic: .*weights\.0: .*\[2, 4, 16\].*\[2, 4, 17\]"):
        Trainer(other, SPECS)


# --- memory -------------------------------------------------------------------------------------------------------


def run_out_of_memory(trainer: Trainer, times: int) -> None:
    update_step, left = trainer.algorithm.update_step, iter(range(times))

    def update(sample: Any) -> Any:
        if next(left, None) is not None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return update_step(sample)

    trainer.algorithm.update_step = update  # type: ignore[method-assign, assignment]


def test_running_out_of_memory_once_is_tried_again(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 50)
    trainer = Trainer(make_config(tmp_path, checkpoint_period_s=1e6), SPECS)
    train(trainer, 3)
    run_out_of_memory(trainer, 1)
    run_until(trainer, lambda: "CUDA out of memory" in read_status(tmp_path).alarm and trainer.learner_step > 5)
    assert checkpointed_steps(tmp_path) == [trainer.learner_step]
    assert read_status(tmp_path).alarm == ""  # over with the checkpoint


def test_running_out_of_memory_twice_leaves_a_checkpoint_and_asks_for_a_new_start(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 50)
    trainer = Trainer(make_config(tmp_path), SPECS)
    train(trainer, 3)
    run_out_of_memory(trainer, 2)
    with pytest.raises(MemoryExhaustedError, match=r"cpu is out of memory for the second time at learner step 3"):
        run_until(trainer, lambda: False)
    assert MemoryExhaustedError.exit_code == EXIT_RETRY == 75
    assert checkpointed_steps(tmp_path) == [3]
    assert Trainer(make_config(tmp_path), SPECS).learner_step == 3


# --- disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mount.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill the disk but for `leave` bytes."""
    path = disk / "filling"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    path.write_bytes(bytes(free - leave))
    return path


def test_a_full_disk_keeps_the_last_checkpoint_alarms_and_training_goes_on(small_disk: Path) -> None:
    write_log(small_disk, 0, 50)
    trainer = Trainer(make_config(small_disk, checkpoint_period_s=0.05, steps_per_update=10), SPECS)
    train(trainer, 3)
    trainer.save()
    filling = fill(small_disk, leave=16_384)

    def is_told() -> bool:
        return "no new checkpoint" in read_status(small_disk).alarm and trainer.learner_step > 20

    run_until(trainer, is_told)
    assert "No space left" in read_status(small_disk).alarm
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step_0000000003"]
    assert Trainer(make_config(small_disk), SPECS).learner_step == 3

    filling.unlink()
    again = Trainer(make_config(small_disk, checkpoint_period_s=0.05, steps_per_update=10), SPECS)
    run_until(again, lambda: len(checkpointed_steps(small_disk)) > 1 and not read_status(small_disk).alarm)


def test_space_that_comes_back_ends_the_alarm_in_the_same_run(small_disk: Path) -> None:
    write_log(small_disk, 0, 50)
    trainer = Trainer(make_config(small_disk, checkpoint_period_s=0.05, steps_per_update=10), SPECS)
    filling = fill(small_disk, leave=16_384)
    alarms: list[str] = []

    def is_over() -> bool:
        alarm = read_status(small_disk).alarm
        if not alarms and "no new checkpoint" in alarm and "no new weights" in alarm:
            alarms.append(alarm)
            filling.unlink()
        return bool(alarms) and not alarm and bool(checkpointed_steps(small_disk))

    run_until(trainer, is_over)
    latest = WeightsStore(small_disk / "weights").latest()
    assert latest is not None
    deserialise(WeightsStore(small_disk / "weights").read(latest), latest.sha256)


@pytest.mark.parametrize(("min_free_gb", "is_written"), [(1e6, False), (0.0, True)])
def test_the_limit_of_free_space_is_checked_before_writing(
    tmp_path: Path, min_free_gb: float, is_written: bool
) -> None:
    write_log(tmp_path, 0, 50)
    trainer = Trainer(make_config(tmp_path, checkpoint_period_s=0.05, min_free_gb=min_free_gb), SPECS)
    run_until(trainer, lambda: trainer.learner_step > 20)
    assert bool(checkpointed_steps(tmp_path)) == is_written
    assert ("learner.min_free_gb" in read_status(tmp_path).alarm) != is_written


def test_files_that_may_not_grow_are_reported_and_training_goes_on(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 50)
    trainer = Trainer(make_config(tmp_path, checkpoint_period_s=0.05), SPECS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:
        run_until(trainer, lambda: "no new checkpoint" in read_status(tmp_path).alarm and trainer.learner_step > 15)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not checkpointed_steps(tmp_path)
    assert len(metric_steps(tmp_path)) > 2
