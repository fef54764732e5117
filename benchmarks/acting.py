"""Measure how long the robot PC takes to choose an action, prepared as it is and plain, on one thread in one run.

    python -m benchmarks.acting [--preset NAME ...] [--decisions N] [--json FILE]    # Markdown; about a minute

A decision is all of ActingPolicy.select_action: images from their codes, encoder, heads, T denoiser calls for the
configured candidates, one critic call, gripper. The two forms take turns, decision by decision, so that other work on
the machine meets both; both see the same observations and draw the same noise, and how far their actions differ is in
the table. Weights are random, images are noise: the arithmetic is that of a trained policy, and noise is the dearest to
decode.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actor.tasks import make_task
from actor.tasks.base import TaskOptions
from benchmarks.runs import machine
from policy.acting import ActingPolicy
from policy.config import PolicyConfig, from_dict, load_preset
from policy.critic_network import conservative_value
from policy.diffusion_policy import make_critic, make_denoiser
from policy.image_codec import code_images
from policy.noise_schedule import make_noise_schedule
from policy.sampler import best_of, draw_noise, sample
from policy.spec import ActionSpec, Field, Observation, ObservationSpec, Specs

DECISIONS = 1000
_WARM_UP = 20
_OBSERVATIONS = 8  # different ones, in turn
_SEED = 0


@dataclass(frozen=True)
class ActingRow:
    """The latency of one form of one policy. Times in ms."""

    case: str  # preset@task
    form: str  # prepared, as the actor runs it; or plain
    decisions: int
    candidates: int
    denoising_steps: int
    cameras: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    difference: float  # largest of any element of any action to the plain form's


def ant_specs() -> Specs:
    """The sizes of Gymnasium's Ant-v4: 27 numbers observed without contact forces, 8 torques."""
    observed = Field(name="observation", unit="1", low=(-1.0,) * 27, high=(1.0,) * 27)
    torques = Field(name="action", unit="1", low=(-1.0,) * 8, high=(1.0,) * 8)
    return Specs(ObservationSpec((observed,)), ActionSpec((torques,)))


def task_specs(name: str, *, pixels: bool) -> Specs:
    task = make_task(name, TaskOptions(pixels=pixels))
    return Specs(task.observation_spec, task.action_spec)


CASES: dict[str, tuple[str, Callable[[], Specs]]] = {
    "paper_mujoco": ("Ant", ant_specs),
    "sim_quick": ("peg_in_hole", lambda: task_specs("peg_in_hole", pixels=False)),
    "paper_robot": ("cube_stacking", lambda: task_specs("cube_stacking", pixels=True)),
}


class PlainHead:
    """policy.diffusion_policy.DiffusionActor with nothing prepared: the modules as training has them."""

    def __init__(self, specs: Specs, config: PolicyConfig) -> None:
        self._config, self._action_dim = config, specs.action.continuous_dim
        self._schedule = make_noise_schedule(config.schedule, config.denoising_steps)
        self._denoiser, self._critic = make_denoiser(specs, config), make_critic(specs, config)
        self.modules: dict[str, nn.Module] = {"denoiser": self._denoiser, "critic": self._critic}

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def act(self, feature: Tensor, candidates: int | None, generator: torch.Generator) -> Tensor:
        count = candidates or self._config.behavior_candidates
        rows = feature.expand(count, -1)
        noise = draw_noise(self._schedule, count, self._action_dim, generator)
        actions = sample(self._denoiser, self._schedule, rows, noise)
        values = conservative_value(self._critic(rows, actions), self._config.drop_quantiles)
        return best_of(actions[None], values[None])[0]


def measure_acting(presets: Sequence[str] = tuple(CASES), decisions: int = DECISIONS) -> list[ActingRow]:
    """Return two rows, plain and prepared, for each of the presets, which are keys of CASES. Runs on one thread."""
    with _alone_on_one_thread():
        return [row for preset in presets for row in _measure(preset, decisions)]


def _measure(preset: str, decisions: int) -> list[ActingRow]:
    task, make_specs = CASES[preset]
    specs = make_specs()
    config = from_dict(PolicyConfig, load_preset(preset)["policy"] | {"encoder_weights": "random"})
    policies = {"plain": _plain(specs, config), "prepared": ActingPolicy(specs, config, _SEED)}
    observations = _observations(specs)
    times_s: dict[str, list[float]] = {form: [] for form in policies}
    actions: dict[str, list[Any]] = {form: [] for form in policies}
    for decision in range(_WARM_UP + decisions):
        for form, policy in policies.items():
            started_s = time.perf_counter()
            action = policy.select_action(observations[decision % _OBSERVATIONS])
            times_s[form].append(time.perf_counter() - started_s)
            actions[form].append(action)
    difference = float(np.abs(np.array(actions["prepared"]) - np.array(actions["plain"])).max())
    rows = []
    for form, taken_s in times_s.items():
        p50_ms, p99_ms, max_ms = 1e3 * np.quantile(taken_s[_WARM_UP:], (0.5, 0.99, 1.0))
        rows.append(
            ActingRow(
                case=f"{preset}@{task}",
                form=form,
                decisions=decisions,
                candidates=config.behavior_candidates,
                denoising_steps=config.denoising_steps,
                cameras=len(specs.observation.images),
                p50_ms=float(p50_ms),
                p99_ms=float(p99_ms),
                max_ms=float(max_ms),
                difference=0.0 if form == "plain" else difference,
            )
        )
    return rows


def _plain(specs: Specs, config: PolicyConfig) -> ActingPolicy:
    """Return the policy of the same seed, and so the same weights and noise, with a plain head."""
    policy = ActingPolicy(specs, config, _SEED)
    head = PlainHead(specs, config)
    for name, module in head.modules.items():
        module.load_state_dict(policy._head.modules[name].state_dict())
    policy._head = head
    return policy


def _observations(specs: Specs) -> list[Observation]:
    """Draw observations as the control loop has them, images coded."""
    rng = np.random.default_rng(_SEED)
    drawn: list[Observation] = []
    for _ in range(_OBSERVATIONS):
        observation: dict[str, Any] = {
            field.name: rng.uniform(field.low, field.high).astype(np.float32) for field in specs.observation.fields
        }
        for image in specs.observation.images:
            observation[image.name] = rng.integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)
        drawn.append(code_images(observation, "jpeg"))
    return drawn


@contextmanager
def _alone_on_one_thread() -> Iterator[None]:
    """Compute as the actor does: on one thread, without the garbage collector's pauses (actor/session.py)."""
    threads, was_enabled = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if was_enabled:
            gc.enable()


def table(rows: Sequence[ActingRow]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| policy | T | candidates | cameras | form | p50 ms | p99 ms | max ms | differs by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        differs = "" if row.form == "plain" else f"{row.difference:.0e}"
        lines.append(
            f"| {row.case} | {row.denoising_steps} | {row.candidates} | {row.cameras} | {row.form} "
            f"| {row.p50_ms:.2f} | {row.p99_ms:.2f} | {row.max_ms:.2f} | {differs} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", choices=list(CASES), default=list(CASES), help="default: all of them")
    parser.add_argument("--decisions", type=int, default=DECISIONS, help="of each form (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="keep the figures there")
    options = parser.parse_args()
    rows = measure_acting(options.preset, options.decisions)
    print(f"{machine()}, PyTorch {torch.__version__}, one thread; {options.decisions} decisions of each form\n")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
