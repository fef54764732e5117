"""Runs of the MuJoCo benchmark: complete curves, and the same curve whenever and however often a run is interrupted."""

import csv
import json
import multiprocessing
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.mujoco import training
from benchmarks.mujoco.curves import parse, read_runs, render
from benchmarks.mujoco.run_folder import CONTRAST_COLUMNS, WALL_CLOCK_COLUMNS, RunFolder, columns
from benchmarks.mujoco.settings import Protocol, RunSettings
from benchmarks.mujoco.training import Host, Stopped, is_finished, train
from learner.algorithm_config import CgpoConfig, DipoConfig, GuidanceConfig
from learner.config import LearnerConfig, ReplayConfig
from learner.tensor_replay import TensorReplay
from policy.config import PolicyConfig
from policy.errors import ConfigError, WeightsError

STEPS, EVERY, WARM_UP = 100, 25, 40
POLICY = PolicyConfig(
    denoising_steps=3, denoiser_hidden=(16,), critic_hidden=(16,), num_critics=2, num_quantiles=5, drop_quantiles=1
)
CONFIG = LearnerConfig(
    policy=POLICY,
    cgpo=CgpoConfig(guidance=GuidanceConfig(steps=1), value_hidden=(16,), entropy_samples=2),
    replay=ReplayConfig(capacity=1000, batch_size=8, training_starts=WARM_UP),
    device="cpu",
    torch_threads=1,
)
PROTOCOL = Protocol(
    evaluation_every=EVERY,
    episodes=2,
    candidates=(2,),
    more_candidates=(1,),
    more_every=3,
    probe_states=4,
    probe_after=2,
)
SETTINGS = RunSettings(task="InvertedPendulum-v4", preset="tiny", overrides=(), config=CONFIG, protocol=PROTOCOL)


class Killed(BaseException):
    """Ends a run as SIGKILL would: nothing of ours catches it."""


def host(out: Path, **values: Any) -> Host:
    return Host(**{"out": out, "steps": STEPS, "say": lambda text: None, **values})


def rows(out: Path, settings: RunSettings = SETTINGS) -> list[dict[str, str]]:
    with (out / settings.folder / "curve.csv").open() as file:
        return list(csv.DictReader(file))


def curve(out: Path, settings: RunSettings = SETTINGS) -> list[dict[str, str]]:
    """Return the rows without what the clock says."""
    return [
        {name: value for name, value in row.items() if name not in WALL_CLOCK_COLUMNS} for row in rows(out, settings)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole")
    train([SETTINGS], host(out), is_resumed=False)
    return out


def test_a_curve_has_a_row_for_each_evaluation_with_the_candidates_that_are_due(whole: Path) -> None:
    found = rows(whole)
    assert [int(row["env_step"]) for row in found] == [25, 50, 75, 100]
    assert [int(row["updates"]) for row in found] == [0, 10, 35, 60]
    assert all(row["return_mean_k2"] and row["length_mean_k2"] for row in found)
    assert [bool(row["return_mean_k1"]) for row in found] == [False, False, True, True], "every third and the last"
    means = [float(row["return_mean_k2"]) for row in found]
    assert [float(row["best_return"]) for row in found] == [max(means[: end + 1]) for end in range(4)]
    for row in found:
        assert float(row["return_min_k2"]) <= float(row["return_mean_k2"]) <= float(row["return_max_k2"])
        # One of InvertedPendulum's points for each step but the last: the task's own figure.
        assert float(row["length_mean_k2"]) - 1 <= float(row["return_mean_k2"]) <= float(row["length_mean_k2"])
    assert found[0]["updates_per_s"] == ""
    assert float(found[3]["updates_per_s"]) > 0
    assert sum(int(row["training_episodes"]) for row in found) > 5
    # One point for each step at most, so all episodes together cannot have more of them than there were steps.
    points = sum(int(row["training_episodes"]) * float(row["training_return_mean"]) for row in found)
    assert STEPS / 2 < points <= STEPS
    # The best of several samples above their mean, on states of the replay.
    assert float(found[3]["contrast"]) > 0
    assert float(found[3]["value_std"]) > 0
    lines = (whole / SETTINGS.folder / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [line["env_step"] for line in metrics] == [25, 50, 75, 100]
    assert metrics[3]["critic_loss"] > 0


def test_the_folder_says_what_was_run_and_what_it_came_to(whole: Path) -> None:
    folder = whole / "InvertedPendulum-v4/cgpo/tiny/seed_0"
    config = json.loads((folder / "config.json").read_text())
    assert config["learner"]["policy"]["denoising_steps"] == 3
    assert config["protocol"]["candidates"] == [2]
    (start,) = config["starts"]
    assert set(start["versions"]) == {"torch", "gymnasium", "mujoco", "numpy"}
    assert start["device"] == "cpu"
    found = rows(whole)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["env_step"] == STEPS
    assert summary["best_return"] == float(found[-1]["best_return"])
    assert summary["last_tenth_return"] == float(found[-1]["return_mean_k2"])
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("place", "passages"),
    [
        ("mujoco.step", (7, 30, 38, 12)),  # during and after the warm-up, more than once
        ("mujoco.curve", (3,)),  # a row is written, its checkpoint is not
        ("mujoco.replay_saved", (2, 30)),  # rows are saved, the checkpoint that knows of them is not
        ("mujoco.saved", (40,)),
    ],
)
def test_a_run_that_is_killed_anywhere_ends_with_the_same_curve(
    place: str, passages: tuple[int, ...], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for nth in passages:
        _kill_at(place, nth, monkeypatch)
        with pytest.raises(Killed):
            train([SETTINGS], host(tmp_path, checkpoint_period_s=0), is_resumed=True)
    monkeypatch.undo()
    train([SETTINGS], host(tmp_path), is_resumed=True)
    assert curve(tmp_path) == curve(whole)
    assert len(json.loads((tmp_path / SETTINGS.folder / "config.json").read_text())["starts"]) == len(passages) + 1


def test_a_run_that_is_killed_between_checkpoints_repeats_what_came_after_the_last(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for nth in (10, 60, 40):  # before the first checkpoint, after the second, and after that again
        _kill_at("mujoco.step", nth, monkeypatch)
        with pytest.raises(Killed):
            train([SETTINGS], host(tmp_path), is_resumed=True)
    monkeypatch.undo()
    train([SETTINGS], host(tmp_path), is_resumed=True)
    assert curve(tmp_path) == curve(whole)


def test_steps_that_were_left_out_are_counted_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = TensorReplay.add

    def add_a_bad_row(self: Any, observation: Any, action: Any, reward: Any, *others: Any) -> None:
        add(self, observation, action, reward * (float("nan") if self.total == WARM_UP + 2 else 1), *others)

    monkeypatch.setattr(TensorReplay, "add", add_a_bad_row)
    train([SETTINGS], host(tmp_path / "whole"), is_resumed=False)
    with pytest.MonkeyPatch.context() as kill:
        _kill_at("mujoco.step", 80, kill)
        with pytest.raises(Killed):
            train([SETTINGS], host(tmp_path / "killed", checkpoint_period_s=0), is_resumed=False)
    train([SETTINGS], host(tmp_path / "killed"), is_resumed=True)
    counts = [[int(row["skipped_steps"]) for row in rows(tmp_path / name)] for name in ("whole", "killed")]
    assert counts[0] == counts[1]
    assert counts[0][2] > 0  # left out before the kill
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


def _kill_at(place: str, nth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = 0

    def failpoint(name: str) -> None:
        nonlocal passed
        passed += name == place
        if passed == nth:
            raise Killed

    monkeypatch.setattr(training, "failpoint", failpoint)


def stop_after(calls: int) -> Callable[[], bool]:
    left = iter(range(calls))
    return lambda: next(left, None) is None


@pytest.mark.parametrize("calls", [1, 35, 60])  # at the first step, in an evaluation, in training
def test_a_run_that_is_asked_to_stop_can_go_on(calls: int, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train([SETTINGS], host(tmp_path, should_stop=stop_after(calls)), is_resumed=False)
    status = json.loads((tmp_path / SETTINGS.folder / "status.json").read_text())
    assert status["state"] == "stopped"
    assert not is_finished([SETTINGS], host(tmp_path))
    train([SETTINGS], host(tmp_path), is_resumed=True)
    assert curve(tmp_path) == curve(whole)


def test_a_damaged_checkpoint_and_a_shortened_curve_are_refused(tmp_path: Path) -> None:
    train([SETTINGS], host(tmp_path, steps=30), is_resumed=False)
    folder = tmp_path / SETTINGS.folder
    rows_before = (folder / "curve.csv").read_text()
    (folder / "curve.csv").write_text(rows_before[:-5])
    with pytest.raises(WeightsError, match="it was changed since"):
        train([SETTINGS], host(tmp_path), is_resumed=True)
    (folder / "curve.csv").write_text(rows_before)
    whole_file = (folder / "checkpoint.safetensors").read_bytes()
    for damaged in (whole_file[:-100], b"", whole_file.replace(b'"format":"2"', b'"format":"9"')):
        (folder / "checkpoint.safetensors").write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"checkpoint\.safetensors (cannot be read|has format 9)"):
            train([SETTINGS], host(tmp_path), is_resumed=True)
    (folder / "checkpoint.safetensors").write_bytes(whole_file)
    train([SETTINGS], host(tmp_path, steps=31), is_resumed=True)


def test_a_checkpoint_of_the_format_before_is_continued(whole: Path, tmp_path: Path) -> None:
    """It had no counts of left-out steps, and config.json fewer settings."""
    with pytest.raises(Stopped):
        train([SETTINGS], host(tmp_path, should_stop=stop_after(120)), is_resumed=False)
    path = tmp_path / SETTINGS.folder / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys() if not name.endswith(".skipped")}
    progress = json.loads(header["progress"])
    del progress["final_step"]
    save_file(tensors, path, metadata={"format": "1", "progress": json.dumps(progress)})
    config_path = tmp_path / SETTINGS.folder / "config.json"
    config = json.loads(config_path.read_text())
    del config["protocol"]["probe_after"]
    config_path.write_text(json.dumps(config))
    settings = replace(SETTINGS, protocol=replace(PROTOCOL, probe_after=Protocol().probe_after))
    train([settings], host(tmp_path), is_resumed=True)
    names = [name for name in curve(whole)[0] if name not in CONTRAST_COLUMNS]
    for found, expected in zip(curve(tmp_path), curve(whole), strict=True):
        assert {name: found[name] for name in names} == {name: expected[name] for name in names}
    (read,) = read_runs(tmp_path)
    assert len(parse(render(read), "kept").rows) == 4


def test_more_steps_continue_a_finished_run(whole: Path, tmp_path: Path) -> None:
    # The number of evaluations and K_e are those of a run that had meant to go on.
    protocol = replace(PROTOCOL, more_every=1)
    settings = replace(SETTINGS, protocol=protocol)
    train([settings], host(tmp_path / "twice", steps=50), is_resumed=False)
    assert is_finished([settings], host(tmp_path / "twice", steps=50))
    with pytest.raises(ConfigError, match=r"protocol\.episodes was 2, is 3"):
        is_finished([replace(settings, protocol=replace(protocol, episodes=3))], host(tmp_path / "twice", steps=50))
    assert not is_finished([settings], host(tmp_path / "twice"))
    train([settings], host(tmp_path / "twice"), is_resumed=True)
    train([settings], host(tmp_path / "once"), is_resumed=False)
    assert curve(tmp_path / "twice", settings) == curve(tmp_path / "once", settings)


def test_a_run_is_evaluated_at_its_end_whatever_its_number_of_steps(whole: Path, tmp_path: Path) -> None:
    train([SETTINGS], host(tmp_path, steps=60), is_resumed=False)
    (*_, last) = rows(tmp_path)
    assert [int(row["env_step"]) for row in rows(tmp_path)] == [25, 50, 60]
    assert last["return_mean_k2"]
    assert last["return_mean_k1"], "with every K_e"
    summary = json.loads((tmp_path / SETTINGS.folder / "summary.json").read_text())
    assert (summary["env_step"], summary["evaluations"]) == (60, 3)
    train([SETTINGS], host(tmp_path, steps=60), is_resumed=True)
    assert len(rows(tmp_path)) == 3, "it was evaluated there already"
    # What comes after is as without that evaluation, but for what is summed since the last one.
    train([SETTINGS], host(tmp_path), is_resumed=True)
    assert [int(row["env_step"]) for row in rows(tmp_path)] == [25, 50, 60, 75, 100]
    names = [name for name in curve(whole)[0] if not name.startswith("training_") and name != "best_return"]
    for found, expected in zip(curve(tmp_path)[3:], curve(whole)[2:], strict=True):
        assert {name: found[name] for name in names} == {name: expected[name] for name in names}


def test_the_contrast_is_measured_on_states_that_the_policy_met_and_on_the_same_ones_ever_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the replay is the random warm-up's after 80 steps, so the evaluation after 100 is the first."""
    train([SETTINGS], host(tmp_path / "whole", steps=150), is_resumed=False)
    contrasts = [row["contrast"] for row in rows(tmp_path / "whole")]
    assert [bool(value) for value in contrasts] == [False] * 3 + [True] * 3
    with pytest.MonkeyPatch.context() as kill:
        _kill_at("mujoco.step", 110, kill)
        with pytest.raises(Killed):
            train([SETTINGS], host(tmp_path / "killed", steps=150, checkpoint_period_s=0), is_resumed=False)
    # A checkpoint of a program that asked for another number of states keeps its own.
    more = replace(SETTINGS, protocol=replace(PROTOCOL, probe_states=9))
    train([more], host(tmp_path / "killed", steps=150), is_resumed=True)
    assert [row["contrast"] for row in rows(tmp_path / "killed")] == contrasts
    config = json.loads((tmp_path / "killed" / SETTINGS.folder / "config.json").read_text())
    assert config["protocol"]["probe_states"] == PROTOCOL.probe_states


def test_a_run_does_not_go_on_on_another_device_and_says_when_its_threads_change(tmp_path: Path) -> None:
    train([SETTINGS], host(tmp_path, steps=10), is_resumed=False)
    said: list[str] = []
    other_threads = replace(SETTINGS, config=replace(CONFIG, torch_threads=2))
    train([other_threads], host(tmp_path, steps=20, say=said.append), is_resumed=True)
    assert "threads 1, now 2" in said[0]
    assert "sums may round otherwise" in said[0]
    path = tmp_path / SETTINGS.folder / "config.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    assert is_finished([SETTINGS], host(tmp_path, steps=20)), "what is finished may be looked at anywhere"
    with pytest.raises(ConfigError, match="was run with --device cuda, now it is cpu"):
        train([SETTINGS], host(tmp_path, steps=30), is_resumed=True)


def test_dipos_samples_are_chosen_among_only_where_they_differ(tmp_path: Path) -> None:
    scalar = replace(POLICY, num_quantiles=1, drop_quantiles=0)
    configs = [
        replace(CONFIG, algorithm="dipo", policy=scalar, dipo=DipoConfig(evaluation_noise=is_noisy))
        for is_noisy in (False, True)
    ]
    silent, noisy = (columns(replace(SETTINGS, config=config)) for config in configs)
    assert [name for name in silent if name.startswith("return_mean")] == ["return_mean_k1"]
    assert [name for name in noisy if name.startswith("return_mean")] == ["return_mean_k2", "return_mean_k1"]
    assert "contrast" in silent
    # A curve that was begun with other columns keeps them.
    folder = RunFolder(tmp_path, replace(SETTINGS, config=configs[0]))
    (tmp_path / "curve.csv").write_text("env_step,return_mean_k1,return_mean_k32\n1,2,3\n")
    folder.append({"env_step": 2, "return_mean_k1": 4.0, "contrast": 5.0})
    assert folder.read_curve()[1] == {"env_step": "2", "return_mean_k1": "4", "return_mean_k32": ""}


def test_a_population_learns_what_each_seed_learns_alone(whole: Path, tmp_path: Path) -> None:
    seeds = (0, 1)
    alone = [replace(SETTINGS, config=replace(CONFIG, seed=seed)) for seed in seeds]
    together = [replace(settings, population=seeds) for settings in alone]
    _stop_and_go_on(together, tmp_path)
    train([alone[1]], host(tmp_path), is_resumed=False)
    for settings, single in ((together[0], curve(whole)), (together[1], curve(tmp_path, alone[1]))):
        found = curve(tmp_path / "population", settings)
        assert found[0] == single[0], "before any update nothing is batched"
        for row, expected in zip(found, single, strict=True):
            for name, value in expected.items():
                # Batched sums round otherwise, and 60 updates carry that on.
                assert (float(row[name] or 0)) == pytest.approx(float(value or 0), rel=0.02, abs=1e-3), name


def _stop_and_go_on(together: list[RunSettings], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        train(together, host(tmp_path / "population", should_stop=stop_after(120)), is_resumed=False)
    train(together, host(tmp_path / "population"), is_resumed=True)


def test_a_population_that_cannot_go_on_ends_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They ignore signals, so a process that left them to the interpreter's exit would wait for them for ever."""
    together = [replace(SETTINGS, config=replace(CONFIG, seed=seed), population=(0, 1)) for seed in (0, 1)]
    monkeypatch.setattr(training, "make_population", lambda *_: _raise(WeightsError("no such weights")))
    with pytest.raises(WeightsError) as caught:
        train(together, host(tmp_path), is_resumed=False)
    assert caught.traceback, "it holds on to what failed, workers included"
    assert not multiprocessing.active_children()


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("bootstraps", [True, False])
def test_only_a_time_limit_that_counts_as_an_end_is_stored_as_one(bootstraps: bool, tmp_path: Path) -> None:
    config = replace(CONFIG, replay=replace(CONFIG.replay, training_starts=500, timeout_bootstrap=bootstraps))
    settings = replace(SETTINGS, task="Pendulum-v1", config=config)  # ends by its limit of 200 steps alone
    with ExitStack() as workers:
        run = training.Training([settings], host(tmp_path), workers)
        run._make_callables()
        for _ in range(400):
            run._step()
    stored = run._replay._rows[:400]
    ends = stored[:, -1].nonzero().flatten().tolist()
    assert ends == ([] if bootstraps else [199, 399])
    # The next observation is the episode's own last one: each row but an episode's last continues in the next.
    continues = (stored[:-1, 5:8] == stored[1:, :3]).all(dim=1)
    assert (~continues).nonzero().flatten().tolist() == [199]
    action = stored[:, 3]
    assert action.abs().max() <= 1, "the replay holds normalised actions; Pendulum's go to 2"
    assert action.abs().max() > 0.9


# --- folders ----------------------------------------------------------------------------------------------------------


def test_another_configuration_is_refused_and_named(whole: Path) -> None:
    config = replace(CONFIG, cgpo=replace(CONFIG.cgpo, discount=0.9))
    other = replace(SETTINGS, config=config, protocol=replace(PROTOCOL, episodes=3))
    with pytest.raises(ConfigError, match=r"learner\.cgpo\.discount was 0\.99, is 0\.9") as caught:
        train([other], host(whole, steps=200), is_resumed=True)
    assert "protocol.episodes was 2, is 3" in str(caught.value)
    with pytest.raises(ConfigError, match="--resume"):
        train([SETTINGS], host(whole, steps=200), is_resumed=False)


def test_settings_that_a_newer_program_added_do_not_hinder_a_resume(tmp_path: Path) -> None:
    train([SETTINGS], host(tmp_path, steps=10), is_resumed=False)
    path = tmp_path / SETTINGS.folder / "config.json"
    config = json.loads(path.read_text())
    del config["learner"]["cgpo"]["shared_prefix"]
    path.write_text(json.dumps(config))
    other = replace(SETTINGS, config=replace(CONFIG, cgpo=replace(CONFIG.cgpo, shared_prefix=False)))
    with pytest.raises(ConfigError, match=r"shared_prefix was True, is False"):
        train([other], host(tmp_path, steps=20), is_resumed=True)
    train([SETTINGS], host(tmp_path, steps=20), is_resumed=True)


def test_a_folder_is_one_runs_at_a_time(tmp_path: Path) -> None:
    inner: list[BaseException] = []

    def should_stop() -> bool:
        try:
            train([SETTINGS], host(tmp_path), is_resumed=True)
        except ConfigError as error:
            inner.append(error)
        return True

    with pytest.raises(Stopped):
        train([SETTINGS], host(tmp_path, should_stop=should_stop), is_resumed=False)
    assert "another" in str(inner[0])
