"""The trainer on a log of its own making: exact resume, publication, and what it refuses."""

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import safetensors.torch
import torch

from learner.resolved_config import load_config
from learner.run_lock import sole_use_of
from learner.trainer import Trainer, run_trainer
from policy.config import to_json
from policy.errors import ConfigError, WeightsError
from policy.weights import deserialise
from policy.weights_store import WeightsStore
from tests.oracles import small_config
from tests.trainer_runs import HANG_LIMIT_S, SPECS, assert_same_state, make_config, train, wait_until, write_log


@pytest.mark.parametrize("algorithm", ["cgpo", "bc", "hil_serl_sac"])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, algorithm: str) -> None:
    for name in ("whole", "resumed"):
        write_log(tmp_path / name, 0, 100)  # more than the replay holds: the ring has wrapped at the checkpoint
    whole = Trainer(make_config(tmp_path / "whole", algorithm), SPECS)
    train(whole, 12)

    interrupted = Trainer(make_config(tmp_path / "resumed", algorithm), SPECS)
    train(interrupted, 7)
    interrupted.save()
    resumed = Trainer(make_config(tmp_path / "resumed", algorithm), SPECS)
    assert resumed.learner_step == 7
    train(resumed, 5)

    assert_same_state(resumed.algorithm.state(), whole.algorithm.state())


@pytest.mark.parametrize("steps", [2, 7])  # in the warm-up, when the value network's optimiser has not begun
def test_a_run_of_the_first_format_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture, steps: int) -> None:
    write_log(tmp_path, 0, 40)
    trainer = Trainer(make_config(tmp_path), SPECS)
    train(trainer, steps)
    trainer.save()
    (folder,) = (tmp_path / "checkpoints").iterdir()
    tensors = safetensors.torch.load_file(folder / "state.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "replay_noise" not in name and "skipped" not in name}
    assert len(kept) == len(tensors) - 4
    data = safetensors.torch.save(kept)
    (folder / "state.safetensors").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"format_version": 1, "replay_rng": {}, "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    resumed = Trainer(make_config(tmp_path), SPECS)
    assert resumed.learner_step == steps
    assert_same_state(resumed.algorithm.state(), trainer.algorithm.state())
    assert "not bit for bit" in caplog.text
    train(resumed, 3)
    resumed.save()
    assert Trainer(make_config(tmp_path), SPECS).learner_step == steps + 3


def test_a_run_goes_on_where_another_kind_of_generator_draws_its_batches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a change of replay.device: the state of CUDA's generators is 16 bytes."""
    write_log(tmp_path, 0, 40)
    trainer = Trainer(make_config(tmp_path), SPECS)
    train(trainer, 3)
    generator = trainer._replay.noise.generators[0]
    trainer._replay.noise.generators[0] = cast(
        torch.Generator, SimpleNamespace(get_state=lambda: torch.zeros(16, dtype=torch.uint8))
    )
    trainer.save()
    trainer._replay.noise.generators[0] = generator
    resumed = Trainer(make_config(tmp_path), SPECS)
    assert "replay.device" in caplog.text
    assert_same_state(resumed.algorithm.state(), trainer.algorithm.state())
    train(resumed, 3)


def test_data_that_came_after_the_checkpoint_is_read_on_resume(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 30)
    first = Trainer(make_config(tmp_path), SPECS)
    train(first, 1)
    first.save()
    write_log(tmp_path, 30, 10)
    second = Trainer(make_config(tmp_path), SPECS)
    assert second.num_transitions == 30
    second.read_log()
    assert second.num_transitions == 40


def test_the_ratio_of_updates_to_data_is_kept(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 28)
    trainer = Trainer(replace(make_config(tmp_path), learner_steps_per_transition=0.5), SPECS)
    train(trainer, 14)
    assert trainer.missing()


def test_too_little_data_is_waited_for(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 19)
    trainer = Trainer(make_config(tmp_path), SPECS)
    trainer.read_log()
    assert trainer.missing()


def test_published_weights_are_the_policy(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 30)
    trainer = Trainer(make_config(tmp_path), SPECS)
    train(trainer, 5)
    trainer.publish()
    store = WeightsStore(tmp_path / "weights")
    latest = store.latest()
    assert latest is not None
    assert (latest.version, latest.learner_step) == (1, 5)
    tensors = deserialise(store.read(latest), latest.sha256)
    for name, tensor in trainer.algorithm.policy_tensors().items():
        assert torch.equal(tensors[name], tensor), name


def test_a_version_number_is_never_used_twice(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 30)
    trainer = Trainer(make_config(tmp_path), SPECS)
    trainer.save()
    for _ in range(3):  # published after the checkpoint, then the trainer is killed
        trainer.publish()
    restarted = Trainer(make_config(tmp_path), SPECS)
    restarted.publish()
    latest = WeightsStore(tmp_path / "weights").latest()
    assert latest is not None
    assert latest.version == 4


def test_non_finite_weights_are_neither_published_nor_saved(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 30)
    trainer = Trainer(make_config(tmp_path), SPECS)
    trainer.publish()
    state = trainer.algorithm.state()
    name = next(name for name in state if name.startswith("denoiser."))
    state[name] = torch.full_like(state[name], torch.nan)
    trainer.algorithm.load_state(state)
    with pytest.raises(WeightsError, match="non-finite"):
        trainer.publish()
    with pytest.raises(WeightsError, match="non-finite"):
        trainer.save()
    latest = WeightsStore(tmp_path / "weights").latest()
    assert latest is not None
    assert latest.version == 1
    assert not (tmp_path / "checkpoints").exists()


def test_dipo_is_refused_before_anything_comes_unless_it_keeps_nothing_of_a_transition(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 30)
    policy = {"behavior_candidates": 1}
    config = small_config(algorithm="dipo", run_dir=str(tmp_path), policy=policy, dipo={"write_back": True})
    with pytest.raises(ConfigError, match=r"Set dipo\.write_back = false"):
        Trainer(config, SPECS)
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    with pytest.raises(ConfigError, match=r"Set dipo\.write_back = false"):
        run_trainer(path)  # without waiting for specs.json
    replay = replace(config.replay, batch_size=8, training_starts=20)
    trainer = Trainer(replace(config, replay=replay, dipo=replace(config.dipo, write_back=False)), SPECS)
    train(trainer, 2)


@pytest.mark.parametrize("device", ["gpu", "cuda:63"])
def test_a_device_that_is_not_there_is_refused(tmp_path: Path, device: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(to_json(replace(make_config(tmp_path), device=device)))
    with pytest.raises(ConfigError, match=f"device = '{device}' cannot be used"):
        load_config(path)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 30)
    config = make_config(tmp_path)
    Trainer(config, SPECS).save()
    wider = replace(config, policy=replace(config.policy, denoiser_hidden=(32,)))
    with pytest.raises(WeightsError, match="denoiser"):
        Trainer(wider, SPECS)


def test_stopping_leaves_a_checkpoint_weights_and_a_summary(tmp_path: Path) -> None:
    write_log(tmp_path, 0, 30)
    trainer = Trainer(make_config(tmp_path), SPECS)
    stop = threading.Event()
    stop.set()
    trainer.run(stop)
    assert list((tmp_path / "checkpoints").glob("step_*"))
    assert WeightsStore(tmp_path / "weights").latest() is not None
    assert (tmp_path / "learner_summary.json").exists()


def test_a_trainer_touches_nothing_until_that_of_a_killed_learner_has_ended(tmp_path: Path) -> None:
    run_dir, said = tmp_path / "run", tmp_path / "said"
    with contextlib.ExitStack() as closing:
        with sole_use_of(run_dir, "trainer.lock"):
            (run_dir / "config.json").write_text(to_json(make_config(run_dir)))
            command = [sys.executable, "-m", "learner.trainer", str(run_dir / "config.json")]
            trainer = subprocess.Popen(command, stderr=closing.enter_context(said.open("wb")))
            closing.callback(trainer.kill)
            wait_until(lambda: "another learner still works on" in said.read_text() or trainer.poll() is not None)
            assert sorted(path.name for path in run_dir.iterdir()) == ["config.json", "trainer.lock"]
        wait_until((run_dir / "trainer.json").exists)
        trainer.send_signal(signal.SIGTERM)
        assert trainer.wait(HANG_LIMIT_S) == 0
