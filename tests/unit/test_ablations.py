"""Variants of CGPO: each valid, and different from the base in what it names alone; what is said of their runs."""

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from benchmarks.ablations import (
    BASE,
    Options,
    base_config,
    chosen_variants,
    main,
    make_runs,
    render,
    variants,
)
from benchmarks.mujoco.__main__ import settings_of
from benchmarks.mujoco.curves import Curve
from benchmarks.mujoco.groups import Group
from benchmarks.mujoco.settings import resolve_config
from benchmarks.mujoco.sweep import _INSTEAD, split_arguments
from benchmarks.mujoco.sweep import Options as SweepOptions
from benchmarks.mujoco.sweep import make_runs as make_sweep_runs
from benchmarks.point_reach import NOISY_TASK, TASK, NoisyReach
from benchmarks.significance import chance, compare, seed_by_seed, verdict
from policy.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("paper_mujoco", "reduced_mujoco", str(ROOT / "benchmarks" / "reduced_point_reach.toml"))


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the benchmarks are started


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result


@pytest.mark.parametrize("preset", PRESETS)
def test_each_variant_differs_from_the_base_in_what_it_names_alone(preset: str) -> None:
    options = Options(preset=preset)
    base = flat(dataclasses.asdict(base_config(options)))
    found = variants(base_config(options))
    assert len({variant.name for variant in found}) == len(found) > 18
    for variant in found:
        config = resolve_config(preset, variant.overrides, algorithm="cgpo", device="cpu", threads=1)
        changed = {name for name, value in flat(dataclasses.asdict(config)).items() if value != base[name]}
        assert changed, variant.name
        assert changed <= {override.partition("=")[0] for override in variant.overrides}, variant.name


def test_a_value_that_the_base_has_is_no_variant() -> None:
    paper = {variant.name for variant in variants(base_config(Options(preset="paper_mujoco")))}
    assert {"steps_5", "steps_15", "rho_0.35", "rho_0.65", "target_candidates_1"} <= paper
    assert not {"steps_10", "rho_0.95", "target_candidates_4", "behavior_candidates_4", "clip_projected"} & paper


def test_all_that_is_to_be_compared_has_a_variant() -> None:
    every = [variants(base_config(Options(preset=preset))) for preset in PRESETS]
    assert "cgpo.entropy_reduction=concat" in {each for variant in every[0] for each in variant.overrides}
    overrides = {override for variant in every[2] for override in variant.overrides}
    assert overrides >= {
        "cgpo.guidance.type=none", "cgpo.guidance.type=naive", "cgpo.guidance.best_of=64", "cgpo.critic.ddqn=false",
        "policy.drop_quantiles=0", "cgpo.critic.type=twin_scalar", "cgpo.vbase=zero", "cgpo.vbase=sampled",
        "cgpo.entropy_reduction=mean", "cgpo.guidance.through_denoiser=false", "cgpo.guidance.clip_grad=hard",
    }  # fmt: skip


def test_an_unknown_variant_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'naive'"):
        chosen_variants(Options(only=("naiv",)))


def test_runs_are_what_the_runner_makes_of_their_commands(tmp_path: Path) -> None:
    """The folder in which a sweep looks for a run's summary must be the one that the run writes."""
    options = Options(
        only=("none", "behavior_candidates_1"), seeds="0,2", steps=3000, out=tmp_path, set=("batch_size=8",)
    )
    sweep = make_runs(options, chosen_variants(options))
    assert [run.name for run in sweep] == [
        f"{name}-s{seed}" for seed in (0, 2) for name in (BASE, "none", "entropy_mean", "behavior_candidates_1")
    ]
    for run in sweep:
        ((settings,),) = settings_of(run.command[3:])
        assert settings.config.replay.batch_size == 8
        assert settings.protocol.candidates == (4,)  # what is compared is evaluated alike
        assert not run.is_finished()
        summary = tmp_path / settings.folder / "summary.json"
        summary.parent.mkdir(parents=True)
        summary.write_text('{"env_step": 2999}')
        assert not run.is_finished()
        summary.write_text('{"env_step": 3000}')
        assert run.is_finished()


def test_a_sweep_has_every_task_algorithm_and_seed(tmp_path: Path) -> None:
    options = SweepOptions(tasks=(TASK,), algorithms=("cgpo", "sac"), seeds="0-1", steps=70, out=tmp_path, reduced=True)
    runs = make_sweep_runs(options, ["--threads", "2"])
    assert len({run.name for run in runs}) == 4
    for run in runs:
        ((settings,),) = settings_of(run.command[3:])
        summary = tmp_path / settings.folder / "summary.json"
        summary.parent.mkdir(parents=True)
        summary.write_text('{"env_step": 70}')
        assert run.is_finished()
        assert settings.config.torch_threads == 2
        assert settings.preset == ("reduced_mujoco" if settings.config.algorithm == "cgpo" else "paper_mujoco_sac")


def test_a_sweep_can_set_values_for_all(tmp_path: Path) -> None:
    options = SweepOptions(tasks=(TASK,), algorithms=("sac", "td3"), seeds="0", out=tmp_path, set=("batch_size=8",))
    for run in make_sweep_runs(options):
        ((settings,),) = settings_of(run.command[3:])
        assert settings.config.replay.batch_size == 8
        summary = tmp_path / settings.folder / "summary.json"
        summary.parent.mkdir(parents=True)
        summary.write_text('{"env_step": 100000}')
        assert run.is_finished()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tasks": (TASK, "Hoper-v4")}, "Hoper"),
        ({"algorithms": ("cgpo", "tcq")}, "Did you mean 'tqc'"),
        ({"set": ("batch_sise=8",)}, "batch_size"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_sweep_runs(SweepOptions(**{"tasks": (TASK,), **changes}))


def test_an_option_that_no_run_has_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_sweep_runs(SweepOptions(tasks=(TASK,)), ["--treads", "2"])
    assert "--treads" in capsys.readouterr().err


def test_what_follows_two_dashes_goes_to_the_runs() -> None:
    words = ["--jobs", "2", "--debug", "--", "--threads", "1", "--device", "cpu"]
    assert split_arguments(words, _INSTEAD) == (["--jobs", "2"], ["--threads", "1", "--device", "cpu"])
    assert split_arguments(["--list"], _INSTEAD) == (["--list"], [])


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("--set", "--set"), ("--seeds=0", "--seeds"), ("--out", "--out"), ("--steps", "--steps"), ("--task", "--tasks"),
        ("--preset", "--reduced and --set"), ("--population", "benchmarks.mujoco itself"), ("--pop", "benchmarks.mu"),
    ],
)  # fmt: skip
def test_what_names_the_runs_cannot_follow_two_dashes(word: str, other: str) -> None:
    """The folder in which the sweep looks for a run would be another one than the run writes to."""
    with pytest.raises(ConfigError, match=f"^{word} after -- .* use {other}"):
        split_arguments(["--jobs", "2", "--", "--threads", "1", word, "x"], _INSTEAD)


def by_trying_all(values: list[float], others: list[float]) -> float:
    """The rank-sum test written out: every way to choose which of the pooled values are the first."""
    pooled = [*values, *others]
    ranks = [sum(x < y for x in pooled) + (sum(x == y for x in pooled) + 1) / 2 for y in pooled]
    centre = len(values) * (len(pooled) + 1) / 2
    off = [
        abs(sum(ranks[i] for i in ways) - centre) for ways in itertools.combinations(range(len(pooled)), len(values))
    ]
    return sum(each >= off[0] for each in off) / len(off)


@pytest.mark.parametrize(
    ("values", "others"),
    [([1, 2, 3], [4, 5, 6]), ([3, 1, 9, 2], [4, 8, 7]), ([1, 1, 2, 3], [2, 2, 5, 7, 1]), ([1, 1], [1, 1])],
)
def test_chance_is_that_of_all_ways_to_share_the_values_out(values: list[float], others: list[float]) -> None:
    assert chance(values, others) == pytest.approx(by_trying_all(values, others))


@pytest.mark.parametrize(
    ("values", "others", "expected"),
    [
        ([1, 2, 3, 4, 5], [6, 7, 8, 9, 10], "**worse** (0.8%)"),  # 2 of the 252 ways to share ten values out
        ([6, 7, 8, 9, 10], [1, 2, 3, 4, 5.5], "**better** (0.8%)"),
        ([1, 2, 3, 4, 7.5], [6, 7, 8, 9, 10], "**worse** (3.2%)"),  # one seed on the other side
        ([1, 2, 3, 8.5, 9.5], [6, 7, 8, 9, 10], "not told apart (31%)"),
        ([1, 2, 3], [4, 5, 6], "too few seeds"),  # 10 % at best
        ([1], [4, 5, 6, 7, 8], "too few seeds"),
    ],
)
def test_a_difference_counts_when_chance_rarely_makes_it(
    values: list[float], others: list[float], expected: str
) -> None:
    assert verdict(values, others) == expected


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(1, 2)] * 5, "lower in 5 of 5 (6.2%)"),  # two of the 32 ways
        ([(1, 2)] * 9 + [(3, 2)], "lower in 9 of 10 (2.1%)"),  # 2 (1 + 10) of 1024
        ([(3, 2)] * 6 + [(2, 2)], "lower in 0 of 6 (3.1%)"),
        ([(1, 2), (2, 1)], "lower in 1 of 2 (100.0%)"),
        ([(2, 2)], "no pair differs"),
        ([], "no pair"),
    ],
)
def test_pairs_of_one_seed_are_compared_by_the_sign_test(pairs: list[tuple[float, float]], expected: str) -> None:
    assert seed_by_seed(pairs) == expected


def test_only_runs_of_one_seed_make_a_pair() -> None:
    groups = [
        Group(tuple(curve_of((), seed, [value]) for seed, value in enumerate(values, start)))
        for start, values in ((0, [1.0, 2.0, 3.0]), (1, [2.5, 2.5, 9.0]))
    ]
    assert compare(*groups) == ("too few seeds", "lower in 1 of 2 (100.0%)")  # 2 < 2.5, 3 > 2.5


def test_a_task_without_a_version_is_the_one_that_the_runs_have() -> None:
    options = Options(task="HalfCheetah", only=("none",), seeds="0")
    assert options.task == "HalfCheetah-v4"
    (curve,) = [dataclasses.replace(curve_of((), 0, [1.0]), task="HalfCheetah-v4", preset="reduced_mujoco")]
    assert "# Ablations on HalfCheetah-v4" in render(options, chosen_variants(options), [curve])


def test_what_a_variant_is_compared_with_is_run_too(tmp_path: Path) -> None:
    """K_b = 1 without the entropy term of Eq 19 would be another comparison."""
    options = Options(only=("behavior_candidates_1",), seeds="0", out=tmp_path)
    chosen = chosen_variants(options)
    assert [variant.name for variant in chosen] == [BASE, "entropy_mean", "behavior_candidates_1"]
    eq_19 = ("cgpo.entropy_reduction=mean",)
    overrides = {BASE: (), "entropy_mean": eq_19, "behavior_candidates_1": ("policy.behavior_candidates=1", *eq_19)}
    levels = {BASE: 0.0, "entropy_mean": 200.0, "behavior_candidates_1": 100.0}
    curves = [curve_of(overrides[name], seed, [levels[name] + seed]) for name in levels for seed in range(5)]
    lines = table_of(render(options, chosen, curves))
    assert "| entropy_mean | **worse** (0.8%) |" in lines["behavior_candidates_1"]
    assert "| base | **better** (0.8%) |" in lines["entropy_mean"]
    without = [curve for curve in curves if curve.overrides != eq_19]
    assert "| entropy_mean | not run yet |" in table_of(render(options, chosen, without))["behavior_candidates_1"]


@pytest.mark.parametrize("preset", PRESETS)
def test_each_variant_differs_in_one_value_from_what_it_is_compared_with(preset: str) -> None:
    """But for the two that cannot: their rows say what they bundle."""
    found = {variant.name: variant for variant in variants(base_config(Options(preset=preset)))}
    bundles = {
        variant.name
        for variant in found.values()
        if len(set(variant.overrides) - set(found[variant.against].overrides if variant.against != BASE else ())) > 1
    }
    assert bundles == {"none_best_of_64", "twin_scalar"}
    assert "bundles" in found["twin_scalar"].what


def curve_of(overrides: tuple[str, ...], seed: int, returns: list[float], is_finished: bool = True) -> Curve:
    rows = tuple({"env_step": float(step), "return_mean_k4": value} for step, value in enumerate(returns, 1))
    return Curve(
        task=TASK, algorithm="cgpo", preset="reduced_point_reach", overrides=overrides, seed=seed, population=(),
        protocol={}, steps=20, is_finished=is_finished, starts=(), columns=("env_step", "return_mean_k4"), rows=rows,
    )  # fmt: skip


def test_seeds_that_were_evaluated_differently_are_not_compared() -> None:
    other = dataclasses.replace(curve_of((), 1, [1.0]), protocol={"episodes": 3})
    with pytest.raises(ConfigError, match="evaluated differently"):
        render(Options(), chosen_variants(Options()), [curve_of((), 0, [1.0]), other])


def table_of(document: str) -> dict[str, str]:
    return {line.split("|")[1].strip(): line for line in document.splitlines() if line.startswith("|")}


def test_the_table_sets_each_variant_beside_the_base() -> None:
    options = Options(only=("none", "naive", "no_ddqn", "x0_gradient"))
    curves = [curve_of((), seed, [0.0, 100.0 + 10 * seed]) for seed in range(5)]
    curves += [curve_of(("cgpo.guidance.type=none",), seed, [0.0, 50.0 + seed]) for seed in range(5)]
    curves += [curve_of(("cgpo.guidance.type=naive",), seed, [0.0, 107.0 + 10 * seed]) for seed in range(5)]
    short = [[0.0, 200.0 + seed] if seed else [0.0] for seed in range(5)]
    curves += [curve_of(("cgpo.critic.ddqn=false",), seed, short[seed], seed != 0) for seed in range(5)]
    curves.append(dataclasses.replace(curve_of((), 9, [7000.0]), preset="paper_mujoco"))  # of another comparison
    document = render(options, chosen_variants(options), curves)
    lines = table_of(document)
    assert lines["base"].endswith("| 5 | 60.0 ± 7.9 |  |  |  | 120 ± 15.8 |")
    assert lines["none"].endswith("| 26.0 ± 0.8 | base | **worse** (0.8%) | lower in 5 of 5 (6.2%) | 52.0 ± 1.6 |")
    assert "| base | not told apart (69%) |" in lines["naive"]
    assert "| base | not at the same steps |" in lines["no_ddqn"]
    assert "Not run yet: x0_gradient." in document
    assert "**1 of these runs are unfinished**" in document
    assert "up to 0.10 of these 2 would be expected to seem to; 1 does." in document  # 5 % of two verdicts


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ablations", "--only none naive no_ddqn no_truncation vbase_zero"),
        ("ablations_Pendulum-v1", "--task Pendulum-v1 --only none naive no_ddqn no_truncation vbase_zero"),
        (
            "ablations_NoisyReach-v0",
            f"--task {NOISY_TASK} --only no_ddqn no_truncation --set cgpo.critic.target_candidates=16",
        ),
    ],
)
def test_the_tables_of_this_repository_follow_from_the_curves_beside_them(
    name: str, arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = ROOT / "benchmarks/results"
    shutil.copytree(results / name, tmp_path / name)
    written = tmp_path / f"{name}.md"
    monkeypatch.setattr("sys.argv", ["ablations", *arguments.split(), "--render", "--write", str(written)])
    assert main() == 0
    assert written.read_text() == (results / f"{name}.md").read_text()


def test_without_the_base_there_is_no_table() -> None:
    options = Options(only=("none",))
    with pytest.raises(ConfigError, match="nothing to compare with"):
        render(options, chosen_variants(options), [curve_of(("cgpo.guidance.type=none",), 0, [1.0])])


@pytest.mark.parametrize(("task", "length", "ends"), [(TASK, 10, True), (NOISY_TASK, 50, False)])
def test_the_cheap_tasks_reward_whoever_moves_to_the_centre_and_stays(task: str, length: int, ends: bool) -> None:
    env = gymnasium.make(task)
    turn = env.unwrapped._turn  # type: ignore[attr-defined]

    def mean_reward(policy: Any, episodes: int = 30) -> float:
        rewards = []
        for seed in range(episodes):
            observation, _ = env.reset(seed=seed)
            is_over = False
            while not is_over:
                observation, reward, terminated, truncated, _ = env.step(policy(observation).astype(np.float32))
                rewards.append(float(reward))
                is_over = terminated or truncated
            assert (terminated, truncated) == (ends, not ends)
        assert len(rewards) == episodes * length
        return float(np.mean(rewards))

    best = mean_reward(lambda observation: np.clip(-4 * turn.T @ observation[:6], -1, 1))
    assert best > 0.6
    assert mean_reward(lambda _: np.zeros(6)) < 0.15
    assert mean_reward(lambda observation: np.clip(-4 * observation[:6], -1, 1)) < best - 0.2  # not the point's axes


def test_a_large_action_is_noisy_and_dear_on_the_noisy_task(monkeypatch: pytest.MonkeyPatch) -> None:
    env = gymnasium.make(NOISY_TASK)

    def rewards(size: float) -> list[float]:
        found = []
        for seed in range(400):
            env.reset(seed=seed)
            observation, reward, *_ = env.step(np.full(6, size, dtype=np.float32))
            found.append(float(reward) + 3 * float(np.mean(observation**2)))
        return found

    assert rewards(0.0) == pytest.approx([1.0] * 400)
    assert float(np.std(rewards(0.5))) == pytest.approx(1.5, rel=0.15)
    monkeypatch.setattr(NoisyReach, "_luck", lambda self, action: 0.0)
    assert rewards(0.5) == pytest.approx([1 - 0.2 * 0.25] * 400)
