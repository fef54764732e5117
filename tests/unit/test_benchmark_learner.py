"""The learner's benchmark: its counts of operations, its phases, its turns, and a tiny run of all of it."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import acting, replay_memory
from benchmarks.learner import __main__ as program
from benchmarks.learner import cases, peak
from benchmarks.learner.cases import SIZES, SyntheticReplay, default_names, make_case, make_specs
from benchmarks.learner.flops import FlopCounter, Products, count, split_products, written_products
from benchmarks.learner.paths import PLAIN, POPULATION
from benchmarks.learner.phases import ACTOR, CHAINS, CRITIC, PHASES, STEPS, TARGET_CHAIN, TARGETS, VALUES, ledger_of
from benchmarks.learner.race import Clock, Times, median_ratio, race
from benchmarks.learner.report import markdown
from benchmarks.learner.results import Run
from learner.algorithms import ALGORITHMS, make_algorithm
from learner.algorithms.cgpo import Cgpo
from learner.config import LearnerConfig
from policy.cli import config_from_preset
from policy.errors import ConfigError

MICRO: dict[str, Any] = {
    "policy": {
        "denoising_steps": 4, "denoiser_hidden": [16, 16], "critic_hidden": [16], "num_critics": 2, "num_quantiles": 5,
        "drop_quantiles": 1,
    },
    "learner": {
        "kernels": "plain",
        "device": "cpu",
        "replay": {"batch_size": 8, "capacity": 100, "demonstration_fraction": 0.5},
        "cgpo": {
            "value_hidden": [16], "entropy_samples": 3, "guidance": {"steps": 2}, "critic": {"target_candidates": 2},
        },
    },
}  # fmt: skip


def merged(tables: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = dict(tables)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


def micro(changes: dict[str, Any]) -> LearnerConfig:
    return config_from_preset(LearnerConfig, "learner", merged(MICRO, changes))


def case_of(config: LearnerConfig) -> Any:
    case = make_case("paper_mujoco@Hopper", "cpu")
    return dataclasses.replace(case, config=config, specs=make_specs(*SIZES["Hopper"]))


def embedding(config: LearnerConfig) -> int:
    """Operations of the time embedding's two layers, which the plain path computes at each call of the denoiser."""
    return 4 * config.policy.denoising_steps * config.policy.time_embedding_dim * config.policy.denoiser_hidden[0]


# --- operations ---------------------------------------------------------------------------------------------------


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"policy": {"num_critics": 3, "critic_layer_norm": True, "critic_hidden": [16, 24]}},
    {"policy": {"denoiser_hidden": [24], "denoising_steps": 6}, "learner": {"cgpo": {"shared_prefix": False}}},
    {"learner": {"cgpo": {"critic": {"target_candidates": 1}, "human_targets": True, "cta_ratio": 3}}},
    {"learner": {"cgpo": {"guidance": {"steps": 9, "through_denoiser": False}, "vbase": "zero"}}},
    {"learner": {"cgpo": {"guidance": {"type": "none", "best_of": 3}, "vbase": "sampled", "vbase_samples": 2}}},
    {"learner": {"cgpo": {"guidance": {"steps": 0}, "vbase_critic": "target"}}},
]


def counted_operations(config: LearnerConfig) -> dict[str, float]:
    """Count one update's operations by phase, as they are executed."""
    case = case_of(config)
    algorithm, replay = make_algorithm(config, case.specs), SyntheticReplay(case, None)
    counter = FlopCounter()
    with counter:
        counted = ledger_of(algorithm, replay.sample, 1, lambda: counter.total)
    return {phase: operations for phase, operations in counted.items() if operations}


def by_phase(products: Products) -> dict[str, int]:
    return {
        TARGET_CHAIN: products.target_chain,
        TARGETS: products.target_values,
        CRITIC: products.critic_training,
        CHAINS: products.chains,
        VALUES: products.values,
        ACTOR: products.actor_training,
    }


@pytest.mark.parametrize("changes", CONFIGURATIONS)
def test_formula_counts_what_the_plain_path_executes(changes: dict[str, Any]) -> None:
    """Phase by phase and exactly, but for the time embedding, which the formula leaves out."""
    config = micro(changes)
    cgpo, steps = config.cgpo, config.policy.denoising_steps
    expected = by_phase(written_products(config, case_of(config).specs))
    expected[TARGET_CHAIN] += steps * embedding(config)  # one chain for all of a step's batches
    expected[CHAINS] += (2 + (cgpo.vbase == "sampled")) * steps * embedding(config)
    # forward, the gradients of both weights, and the gradient with respect to the second layer's input
    expected[ACTOR] += 5 * embedding(config) // 2
    assert counted_operations(config) == expected


@pytest.mark.parametrize("changes", CONFIGURATIONS)
def test_formula_counts_what_the_fast_path_executes(changes: dict[str, Any]) -> None:
    config = dataclasses.replace(micro(changes), kernels="fast")
    assert counted_operations(config) == by_phase(split_products(config, case_of(config).specs))


@pytest.mark.parametrize("is_inference", [False, True])
def test_every_way_to_multiply_is_counted(is_inference: bool) -> None:
    x, weight, bias, batched = torch.randn(7, 5), torch.randn(3, 5), torch.randn(3), torch.randn(2, 7, 5)
    calls: list[Callable[[], object]] = [
        lambda: torch.mm(x, weight.t()),
        lambda: torch.addmm(bias, x, weight.t(), out=torch.empty(7, 3)),
        lambda: torch.zeros(7, 3).addmm_(x, weight.t()),
        lambda: torch.nn.functional.linear(x, weight, bias),
    ]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        calls.append(lambda: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
    with torch.inference_mode(is_inference):
        assert [count(call) for call in calls] == [2 * 7 * 5 * 3] * len(calls)
        assert count(lambda: batched @ weight.t()) == 2 * 2 * 7 * 5 * 3


# --- phases -------------------------------------------------------------------------------------------------------


def test_phases_are_all_of_the_time() -> None:
    """A clock that moves by one at each reading: nothing it shows may be lost between phases, or charged twice."""
    config = micro({})
    case = case_of(config)
    algorithm, replay = make_algorithm(config, case.specs), SyntheticReplay(case, None)
    readings: list[int] = []

    def tick() -> int:
        readings.append(len(readings))
        return readings[-1]

    phases = ledger_of(algorithm, replay.sample, 3, tick)
    assert sum(phases.values()) * 3 == pytest.approx(readings[-1])
    assert set(phases) <= set(PHASES)
    assert {TARGET_CHAIN, CRITIC, CHAINS, VALUES, ACTOR, STEPS} <= set(phases)
    assert not hasattr(Cgpo._update_critic, "__wrapped__")  # and the algorithm is as it was


def test_time_goes_to_the_phase_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = micro({})
    case = case_of(config)
    algorithm, replay = make_algorithm(config, case.specs), SyntheticReplay(case, None)
    now = [0.0]
    values = Cgpo._base_value

    def slow(*arguments: Any) -> Any:
        now[0] += 5
        return values(*arguments)

    monkeypatch.setattr(Cgpo, "_base_value", slow)
    phases = ledger_of(algorithm, replay.sample, 2, lambda: now[0])
    assert {phase: seconds for phase, seconds in phases.items() if seconds} == {VALUES: 5}


# --- turns --------------------------------------------------------------------------------------------------------


def test_paths_take_turns_and_short_ones_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            now[0] += seconds
            order.append(name)

        return run

    times = race({"long": call("long", 1.0), "short": call("short", 0.06)}, Clock("cpu"), seconds=5)
    assert times["long"].seconds == pytest.approx([1.0] * 5)
    assert times["short"].seconds == pytest.approx([0.06] * 5)
    first_round = ["long", "short", "short", "short", "short"]
    assert order[4:] == (first_round + first_round[::-1]) * 2 + first_round  # after two calls of each


def test_ratio_is_of_the_same_rounds() -> None:
    """Twice as slow in each round, while the machine is four times slower in the second half of them."""
    fast, slow = Times((1.0, 1.0, 4.0, 4.0, 4.0)), Times((2.0, 2.0, 8.0, 8.0, 8.0))
    assert median_ratio(slow, fast) == 2


# --- the whole ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    preset = tmp_path_factory.mktemp("presets") / "micro.toml"
    preset.write_text(
        """
        [policy]
        denoising_steps = 4
        denoiser_hidden = [16, 16]
        critic_hidden = [16]
        num_critics = 2
        [learner.replay]
        batch_size = 8
        """
    )
    arguments = ["--preset", f"{preset}@Hopper", "--seconds", "0.1", "--population", "2", "--clock", "cpu"]
    arguments += ["--decisions", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peak, "SHAPES", ((64, 64, 64), (8, 32, 16)))
        patch.setattr(program, "measure_acting", functools.partial(acting.measure_acting, ["sim_quick"]))
        return program.measure(program.parse(arguments), "python -m benchmarks.learner")


def test_run_holds_what_it_says(run: Run, tmp_path: Path) -> None:
    (case,) = run.cases
    plain, population = case.paths[PLAIN], case.paths[POPULATION]
    assert case.name == "micro@Hopper"
    assert case.widths == SIZES["Hopper"]
    assert plain.agents == 1
    assert population.agents == 2
    assert population.operations == 2 * case.single.operations
    assert plain.operations == sum(plain.phase_operations.values())
    assert case.written_operations is not None
    assert 0 < plain.operations / case.written_operations - 1 < 0.1  # the time embedding; much, in networks this small
    assert len(plain.seconds) == len(population.seconds) == len(case.product_seconds) >= 3
    assert 0 < case.share(PLAIN) < 1
    assert any("CUDA" in reason for reason in run.skipped)
    assert [row.form for row in run.acting] == ["plain", "prepared"]
    run.save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json") == run


def test_report_names_every_case_and_its_phases(run: Run) -> None:
    text = markdown(run)
    for part in ("## Phases of micro@Hopper", "| target chain |", "| micro | Hopper (11, 3) | 8 |", "## Not measured"):
        assert part in text


@pytest.mark.parametrize(("difference", "shown"), [(0.0, "rounding"), (1e-8, "rounding"), (3e-5, "3e-05"), (None, "")])
def test_losses_that_float32_cannot_tell_apart_are_said_to_be(run: Run, difference: float | None, shown: str) -> None:
    case = dataclasses.replace(run.cases[0], loss_difference=difference)
    row = next(line for line in markdown(dataclasses.replace(run, cases=[case])).splitlines() if "(11, 3)" in line)
    assert row.split("|")[-2].strip() == shown


def test_default_cases_exist_and_cover_every_baseline() -> None:
    found = [make_case(name, "cpu") for name in default_names("cpu")]
    assert {"paper_mujoco@Ant", "paper_mujoco@Humanoid", "sim_quick@peg_in_hole"} <= {case.name for case in found}
    assert {case.config.algorithm for case in found} == set(ALGORITHMS) - {"hil_serl_sac", "bc"}
    assert all(case.config.cgpo.bc_warmup_steps == 0 for case in found)


def test_half_of_a_batch_with_images_is_a_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    """sim_pixels says so; episodes of people and of the policy alternate. One encodes its frames only once."""
    monkeypatch.setattr(replay_memory, "EPISODE_STEPS", 4)
    monkeypatch.setattr(cases, "_IMAGE_ROWS", 8)
    case = make_case("sim_pixels", "cpu")
    batch = cases.make_synthetic_replay(case, None).sample()
    assert batch.observation.vector.shape == (case.config.replay.batch_size, case.widths[0])
    assert len(batch.observation.maps) == 2
    assert batch.is_human.float().mean() == case.config.replay.demonstration_fraction == 0.5
    with pytest.raises(ConfigError, match="populations"):
        cases.make_synthetic_replay(case, 2)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--preset", "paper_mujocco"], "paper_mujoco"),
        (["--preset", "paper_mujoco@Cheetah"], "HalfCheetah"),
        (["--preset", "paper_robot@Ant"], "two_cameras"),
        (["--population", "0"], "at least one agent"),
        (["--clock", "cpu", "--threads", "2"], "--threads 1"),
    ],
)
def test_refuses_what_it_cannot_measure(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        program.measure(program.parse(arguments), "python -m benchmarks.learner")
