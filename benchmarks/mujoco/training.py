"""The loop: act, update, step, store; evaluate; checkpoint, so that a killed run goes on as it would have.

One thread. What a run does depends on its settings and its number of steps alone, never on time or on checkpoints.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.mujoco.acting import Acting
from benchmarks.mujoco.checkpoint import Progress, load_checkpoint, save_checkpoint
from benchmarks.mujoco.environments import Array, TrainingEnvironments, specs_of
from benchmarks.mujoco.evaluation import Evaluator, Outcome
from benchmarks.mujoco.probe import Probe
from benchmarks.mujoco.run_folder import (
    Row,
    RunFolder,
    describe_start,
    evaluated_candidates,
    summarise,
)
from benchmarks.mujoco.settings import RunSettings
from benchmarks.runs import machine
from learner.agents import Agents
from learner.algorithms import make_algorithm, make_population
from learner.algorithms.state import SKIPPED, Resumable, Stateful
from learner.graphed_update import GraphedUpdate
from learner.metric_sums import Average
from learner.run_lock import sole_use_of
from learner.tensor_replay import TensorReplay
from policy.errors import DivergedError
from policy.failpoints import failpoint

_HOPELESS = 1000  # optimiser steps in a row that were not finite


class Stopped(Exception):
    """Somebody asked the run to stop."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where and how a run happens; none of it changes the curve."""

    out: Path
    steps: int
    command: Sequence[str] = ()
    checkpoint_period_s: float = 300.0
    should_stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda text: print(text, flush=True)  # a log shows it as it happens


def is_finished(settings: Sequence[RunSettings], host: Host) -> bool:
    """Return whether nothing is left to do. Raises ConfigError where a folder holds another run."""
    folders = [_folder(host, each) for each in settings]
    for folder in folders:
        folder.check(is_resumed=True)
    return all(folder.finished_steps() >= host.steps for folder in folders)


def train(settings: Sequence[RunSettings], host: Host, *, is_resumed: bool) -> None:
    """Train one agent, or the population that `settings` describe.

    Raises Stopped, with everything saved, when the host asks for it; ConfigError when the folder holds another run.
    """
    for each in settings:
        _folder(host, each).check(is_resumed=is_resumed)
    with sole_use_of(host.out / settings[0].state_folder, "run.lock"), ExitStack() as workers:
        Training(settings, host, workers).run(is_resumed=is_resumed)


def _folder(host: Host, settings: RunSettings) -> RunFolder:
    return RunFolder(host.out / settings.folder, settings)


class Training(Resumable):
    """One run: one agent, or a population of one agent for each of several settings that differ in their seed."""

    def __init__(self, settings: Sequence[RunSettings], host: Host, workers: ExitStack) -> None:
        """Closing `workers` ends the environments' processes, which nothing else may do: they ignore signals."""
        self._settings, self._host = settings[0], host
        self._protocol = settings[0].protocol
        configs = [each.config for each in settings]
        config = self._config = configs[0]
        is_population = bool(self._settings.population)
        torch.set_num_threads(config.torch_threads)
        seeds = [each.seed for each in configs]
        # Worker processes come first: what is forked must not hold a GPU.
        task = self._settings.task
        self._environments = workers.enter_context(closing(TrainingEnvironments(task, seeds, in_workers=is_population)))
        self._evaluator = workers.enter_context(
            closing(Evaluator(task, seeds, self._protocol.episodes, in_workers=is_population))
        )
        specs = specs_of(task)
        self._agents = Agents(configs, is_population=is_population)
        self._algorithm = make_population(configs, specs) if is_population else make_algorithm(config, specs)
        self._replay = TensorReplay(
            len(configs) if is_population else None,
            config.replay.capacity,
            specs.observation.vector_dim,
            specs.action.dim,
            self._agents.device,
        )
        self._action_dim = specs.action.dim
        self._acting_noise, self._uniform_noise, self._replay_noise = (
            self._agents.noise(purpose) for purpose in range(10, 13)
        )
        self._probe = Probe(self._algorithm, self._agents, self._protocol, specs.observation.vector_dim)
        self._folders = [_folder(host, each) for each in settings]
        self._state_folder = host.out / self._settings.state_folder
        count = len(configs)
        self._progress = Progress(
            episode_return=[0.0] * count, finished_returns=[[] for _ in configs], best=[None] * count
        )
        self._saved_at_s = time.monotonic()

    def _make_callables(self) -> None:
        """Make what calls the algorithm, or graphs of it. Its state must have been loaded: that may replace tensors."""
        self._updater = GraphedUpdate(
            self._algorithm,
            lambda: self._replay.sample(self._config.replay.batch_size, self._replay_noise),
            self._config,
        )
        self._explore = Acting(self._algorithm.explore, self._agents, self._acting_noise)
        self._exploit: dict[int, Acting] = {
            count: Acting(partial(self._algorithm.exploit, candidates=count), self._agents, self._agents.noise(15))
            for count in evaluated_candidates(self._settings)
        }

    def _parts(self) -> dict[str, Stateful]:
        return {
            "acting_noise": self._acting_noise,
            "uniform_noise": self._uniform_noise,
            "replay_noise": self._replay_noise,
            **self._probe.parts(),
        }

    # --- the run ----------------------------------------------------------------------------------------------------

    def run(self, *, is_resumed: bool) -> None:
        """Train to the end. Raises Stopped, with everything saved, when the host asks for it."""
        if is_resumed:
            self._resume()
        self._make_callables()
        start = describe_start(
            self._progress.env_step, self._host.command, self._config.device, self._config.torch_threads, machine()
        )
        for folder in self._folders:
            folder.record(start)
        self._began_s, self._began_step = time.monotonic(), self._progress.env_step
        self._saved_at_s = time.monotonic()
        try:
            self._loop()
        except Stopped:
            self._save("stopped")
            raise
        except DivergedError:
            self._write_status("diverged")
            raise
        self._finish()

    def _loop(self) -> None:
        progress = self._progress
        while True:
            is_last = progress.env_step >= self._host.steps
            since, is_between = divmod(progress.env_step, self._protocol.evaluation_every)
            if progress.evaluations < since:
                self._evaluate(is_last=is_last)
                progress.evaluations += 1
                self._save("running")
            elif is_last and is_between and progress.final_step != progress.env_step:
                self._evaluate(is_last=True)  # with the number, and so the starts, of the next one if there is more
                progress.final_step = progress.env_step
                self._save("running")
            if is_last:
                return
            self._check_stop()
            began_s = time.monotonic()
            self._step()
            ended_s = time.monotonic()
            progress.training_s += ended_s - began_s
            progress.wall_s += ended_s - began_s
            if ended_s - self._saved_at_s >= self._host.checkpoint_period_s:
                self._save("running")

    def _step(self) -> None:
        """Choose an action, update while the environments could already move, step, store."""
        progress = self._progress
        observation = self._environments.observation
        action = self._choose(observation)
        self._update()
        step = self._environments.step(action)
        is_terminal = step.terminated
        if not self._config.replay.timeout_bootstrap:
            is_terminal = is_terminal | step.truncated
        reward = step.reward * np.float32(self._config.replay.reward_scale)
        self._replay.add(observation, action, reward, step.next_observation, is_terminal)
        for agent, ended in enumerate((step.terminated | step.truncated).tolist()):
            progress.episode_return[agent] += float(step.reward[agent])
            if ended:
                progress.finished_returns[agent].append(progress.episode_return[agent])
                progress.episode_return[agent] = 0.0
        progress.env_step += 1
        failpoint("mujoco.step")

    def _choose(self, observation: Array) -> Array:
        """Return actions (P, A) for observations (P, F): uniform ones until training starts."""
        if self._progress.env_step < self._config.replay.training_starts:
            action = 2 * self._uniform_noise.uniform(self._action_dim) - 1
            uniform: Array = action.reshape(len(self._folders), self._action_dim).cpu().numpy()
            return uniform
        return self._explore(observation[:, None]).squeeze(1)

    def _update(self) -> None:
        """Bring the number of updates to what the number of steps asks for, one per step after the warm-up."""
        steps = self._progress.env_step - self._config.replay.training_starts + 1
        ratio = self._config.learner_steps_per_transition or 1.0
        while self._progress.updates < int(steps * ratio):
            self._updater.step()
            self._progress.updates += 1

    def _check_stop(self) -> None:
        if self._host.should_stop():
            raise Stopped

    # --- evaluation -------------------------------------------------------------------------------------------------

    def _evaluate(self, *, is_last: bool) -> None:
        progress = self._progress
        began_s = time.monotonic()
        number = progress.evaluations + 1
        skipped_steps = self._skipped_steps()
        due = self._protocol.due_candidates(number, is_last=is_last) if self._settings.has_candidates else (1,)
        outcomes = {count: self._outcome(number, count) for count in due}
        contrast = self._probe.contrast(self._replay, number)
        metrics = self._updater.take_metrics()
        ended_s = time.monotonic()
        progress.wall_s += ended_s - began_s
        headline = evaluated_candidates(self._settings)[0]
        for agent, folder in enumerate(self._folders):
            mean = float(outcomes[headline].returns[agent].mean())
            best = progress.best[agent]
            progress.best[agent] = mean if best is None else max(best, mean)
            row: Row = {"env_step": progress.env_step, "updates": progress.updates}
            for count, outcome in outcomes.items():
                row |= _return_cells(outcome, agent, count)
            row |= {**self._training_cells(agent), "skipped_steps": skipped_steps[agent]}
            row |= {name: values[agent] for name, values in contrast.items()}
            folder.append_metrics({"env_step": progress.env_step, **_of_agent(metrics, agent)})
            folder.append({**row, "evaluation_s": ended_s - began_s, "wall_s": progress.wall_s})
        failpoint("mujoco.curve")
        self._report(outcomes[headline])
        progress.finished_returns = [[] for _ in self._folders]
        progress.updates_before, progress.training_s = progress.updates, 0.0

    def _outcome(self, evaluation: int, candidates: int) -> Outcome:
        seeds = [
            int(np.random.SeedSequence((each.settings.config.seed, evaluation, candidates)).generate_state(1)[0])
            for each in self._folders
        ]
        act = self._exploit[candidates]
        act.reseed(seeds)
        return self._evaluator.run(act, evaluation, self._check_stop)

    def _training_cells(self, agent: int) -> Row:
        progress = self._progress
        returns = progress.finished_returns[agent]
        updates = progress.updates - progress.updates_before
        return {
            "best_return": progress.best[agent],
            "training_return_mean": float(np.mean(returns)) if returns else None,
            "training_episodes": len(returns),
            "updates_per_s": updates / progress.training_s if updates and progress.training_s else None,
        }

    def _skipped_steps(self) -> list[int]:
        """Return how many optimiser steps each agent has not taken, because something was not finite.

        Raises DivergedError when none of them learns any more.
        """
        total, diverged = [0] * len(self._folders), {}
        for name, steps in self._algorithm.skipped_steps().items():
            agent = _member(name)
            total[agent] += steps.total
            if steps.in_a_row >= _HOPELESS:
                diverged[agent] = (
                    f"{name} took none of its last {steps.in_a_row} steps (loss {steps.loss}, gradient norm "
                    f"{steps.gradient_norm}; limit {_HOPELESS})"
                )
        if len(diverged) == len(self._folders):
            raise DivergedError(
                f"{self._folders[0].path}: training has diverged: {diverged[0]}. Try a smaller learning rate or "
                "another seed."
            )
        return total

    def _report(self, headline: Outcome) -> None:
        progress = self._progress
        took_s = time.monotonic() - self._began_s
        steps_per_s = (progress.env_step - self._began_step) / took_s if took_s else 0.0
        left = self._host.steps - progress.env_step
        eta = f", {_duration(left / steps_per_s)} left" if left > 0 and steps_per_s else ""
        for agent, folder in enumerate(self._folders):
            returns = headline.returns[agent]
            self._host.say(
                f"{self._settings.task} {self._config.algorithm} seed {folder.settings.config.seed}: step "
                f"{progress.env_step:,} of {self._host.steps:,}, return {returns.mean():.1f} ± {returns.std():.1f}, "
                f"best {progress.best[agent]:.1f}; {steps_per_s:.0f} steps/s{eta}"
            )

    # --- resume -----------------------------------------------------------------------------------------------------

    def _save(self, state: str) -> None:
        progress = self._progress
        progress.replay_rows = self._replay.save(self._state_folder / "replay")
        failpoint("mujoco.replay_saved")
        episodes = self._environments.state()
        progress.episodes = [episode for episode, _ in episodes]
        progress.sizes = [folder.sizes() for folder in self._folders]
        tensors = {f"run.{name}": tensor for name, tensor in self.state().items()}
        tensors |= {f"algorithm.{name}": tensor for name, tensor in self._algorithm.state().items()}
        tensors |= {f"actions.{agent}": torch.from_numpy(actions) for agent, (_, actions) in enumerate(episodes)}
        save_checkpoint(self._state_folder, tensors, progress)
        failpoint("mujoco.saved")
        self._saved_at_s = time.monotonic()
        self._write_status(state)

    def _write_status(self, state: str) -> None:
        progress = self._progress
        for agent, folder in enumerate(self._folders):
            folder.write_status(
                state=state, env_step=progress.env_step, steps=self._host.steps, best_return=progress.best[agent]
            )

    def _resume(self) -> None:
        """Go on from the newest checkpoint; from the start where there is none."""
        found = load_checkpoint(self._state_folder)
        if found is None:
            for folder in self._folders:
                folder.cut({})
            return
        notice = self._folders[0].notice_of_change(self._config.device, self._config.torch_threads, machine())
        tensors, self._progress = found
        own = _below("run.", tensors)
        self._probe.fit(own)
        self.load_state(own)
        state = self._algorithm.state()
        counts = {name: torch.zeros_like(state[name]) for name in state if name.endswith(f".{SKIPPED}")}
        self._algorithm.load_state(counts | _below("algorithm.", tensors))
        self._replay.restore(self._state_folder / "replay", self._progress.replay_rows)
        actions = [tensors[f"actions.{agent}"].numpy() for agent in range(len(self._folders))]
        self._environments.resume(list(zip(self._progress.episodes, actions, strict=True)))
        for folder, sizes in zip(self._folders, self._progress.sizes, strict=True):
            folder.cut(sizes)
        self._host.say(f"continuing at step {self._progress.env_step:,}{notice}")

    def _finish(self) -> None:
        headline = f"return_mean_k{evaluated_candidates(self._settings)[0]}"
        for folder in self._folders:
            folder.write_summary(
                {**summarise(folder.read_curve(), headline), "wall_s": round(self._progress.wall_s, 1)}
            )
        self._write_status("finished")


def _return_cells(outcome: Outcome, agent: int, candidates: int) -> Row:
    returns = outcome.returns[agent]
    values = (returns.mean(), returns.std(), returns.min(), returns.max(), outcome.lengths[agent].mean())
    names = ("return_mean", "return_std", "return_min", "return_max", "length_mean")
    return {f"{name}_k{candidates}": float(value) for name, value in zip(names, values, strict=True)}


def _member(name: str) -> int:
    """Return the agent that a part belongs to, which learner.algorithms.state names PART or PART#NUMBER."""
    _, _, number = name.rpartition("#")
    return int(number) if number.isdigit() else 0


def _of_agent(metrics: Mapping[str, Average], agent: int) -> dict[str, float]:
    return {name: value[agent] if isinstance(value, list) else value for name, value in metrics.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
