"""Memory and time of a replay with two 128 x 128 cameras: ours, and LeRobot's layout restated.

`python -m benchmarks.replay_memory` writes benchmarks/results/replay_memory.md. Each line runs in a process of its own,
so that its resident memory is its own.
"""

import argparse
import ctypes
import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learner.config import ReplayConfig
from learner.replay import Replay
from policy.config import PolicyConfig
from policy.encoder import ObservationEncoder
from policy.image_codec import encode_image
from policy.spec import ActionSpec, Field, ImageField, ObservationSpec, Specs
from policy.transition import ActionSource, RecordId, Transition

RESULTS = Path(__file__).parent / "results" / "replay_memory.md"
SIZE, CAMERAS, STATE_DIM, ACTION_DIM, EPISODE_STEPS = 128, ("wrist", "side"), 20, 7, 100
BATCH, DRAWS, ENCODED_DRAWS = 256, 20, 3
WARM_UP = 50
STATE = Field(name="state", unit="m", low=(-1.0,) * STATE_DIM, high=(1.0,) * STATE_DIM)
SPECS = Specs(
    ObservationSpec((STATE,), tuple(ImageField(name=name, height=SIZE, width=SIZE) for name in CAMERAS)),
    ActionSpec((Field(name="delta", unit="m", low=(-1.0,) * ACTION_DIM, high=(1.0,) * ACTION_DIM),)),
)


class Layout(Protocol):
    def add(self, transition: Transition, following: dict[str, Any], number: int) -> None: ...

    def draw(self) -> object:
        """Return what a sample holds before any network sees it: frames gathered and shifted, or maps."""

    def draw_maps(self) -> object:
        """Return a sample after the frozen backbone."""


class Ours:
    def __init__(self, image_storage: Literal["pixels", "maps"], capacity: int) -> None:
        config = ReplayConfig(capacity=capacity, batch_size=BATCH, image_storage=image_storage)
        encoder = ObservationEncoder(SPECS, PolicyConfig(encoder="resnet10", encoder_weights="random"))
        self._replay = Replay(config, SPECS.observation, ACTION_DIM, seed=0, encoder=encoder)
        self._encode = encoder.maps_of_cameras
        self._encoder = encoder

    def add(self, transition: Transition, following: dict[str, Any], number: int) -> None:
        self._replay.add(RecordId("robot", "incarnation", number), transition)

    def draw(self) -> object:
        self._encoder.maps_of_cameras = lambda images: tuple(images)  # type: ignore[method-assign]
        batch = self._replay.sample()
        self._encoder.maps_of_cameras = self._encode  # type: ignore[method-assign]
        return batch

    def draw_maps(self) -> object:
        return self._replay.sample()


class LeRobotLayout:
    """What LeRobot 0.4's ReplayBuffer keeps and draws: float32 frames (C, H, W) in [0, 1] in one tensor per name.

    Without optimize_memory the next observation is stored as well; with it, row i + 1 is taken for it. LeRobot compiles
    the random shift, which this leaves out.
    """

    def __init__(self, optimize_memory: bool, capacity: int) -> None:
        shapes = {STATE.name: (STATE_DIM,), **dict.fromkeys(CAMERAS, (3, SIZE, SIZE))}
        self._states = {name: torch.empty((capacity, *shape)) for name, shape in shapes.items()}
        copies = {name: torch.empty((capacity, *shape)) for name, shape in shapes.items()}
        self._next_states = self._states if optimize_memory else copies
        self._offset = int(optimize_memory)
        self._actions, self._rewards = torch.empty((capacity, ACTION_DIM)), torch.empty(capacity)
        self._dones, self._truncated = torch.empty(capacity, dtype=torch.bool), torch.empty(capacity, dtype=torch.bool)
        self._capacity, self._size = capacity, 0
        self._backbone = ObservationEncoder(SPECS, PolicyConfig(encoder="resnet10", encoder_weights="random"))

    def add(self, transition: Transition, following: dict[str, Any], number: int) -> None:
        row = number % self._capacity
        for name, values in _tensors(dict(transition.observation)).items():
            self._states[name][row] = values
        if not self._offset:
            for name, values in _tensors(following).items():
                self._next_states[name][row] = values
        self._actions[row] = torch.from_numpy(transition.executed_action)
        self._rewards[row] = transition.reward
        self._dones[row], self._truncated[row] = transition.terminated, transition.truncated
        self._size = min(self._size + 1, self._capacity)

    def draw(self) -> list[Tensor]:
        rows = torch.randint(self._size - self._offset, (BATCH,))
        now = {name: values[rows] for name, values in self._states.items()}
        following = {name: values[rows + self._offset] for name, values in self._next_states.items()}
        columns = [self._actions[rows], self._rewards[rows], self._dones[rows], self._truncated[rows]]
        images = torch.cat([side[name] for name in CAMERAS for side in (now, following)])
        return [now[STATE.name], following[STATE.name], _random_shift(images), *columns]

    def draw_maps(self) -> object:
        pixels = (self.draw()[2] * 255).to(torch.uint8).permute(0, 2, 3, 1)  # our backbone takes uint8
        return self._backbone.maps(pixels)


LAYOUTS: dict[str, Callable[[int], Layout]] = {
    "ours, pixels": lambda capacity: Ours("pixels", capacity),
    "ours, maps": lambda capacity: Ours("maps", capacity),
    "LeRobot, optimize_memory": lambda capacity: LeRobotLayout(True, capacity),
    "LeRobot": lambda capacity: LeRobotLayout(False, capacity),
}


def _tensors(observation: dict[str, Any]) -> dict[str, Tensor]:
    images = {name: torch.from_numpy(observation[name].pixels.copy()).permute(2, 0, 1) / 255 for name in CAMERAS}
    return {STATE.name: torch.from_numpy(observation[STATE.name]), **images}


def _random_shift(images: Tensor, pad: int = 4) -> Tensor:
    count, _, height, width = images.shape
    padded = F.pad(images, (pad,) * 4, mode="replicate").permute(0, 2, 3, 1)
    top, left = torch.randint(2 * pad + 1, (2, count, 1))
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def transitions(count: int) -> Iterator[tuple[Transition, dict[str, Any]]]:
    """Yield steps of episodes of EPISODE_STEPS, each with the next step's observation; images are noise."""
    rng = np.random.default_rng(0)

    def observe() -> dict[str, Any]:
        frames = {name: rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for name in CAMERAS}
        images = {name: encode_image(frame, "raw") for name, frame in frames.items()}
        return {STATE.name: rng.uniform(-1, 1, STATE_DIM).astype(np.float32), **images}

    observation = observe()
    for number in range(count):
        episode, step = divmod(number, EPISODE_STEPS)
        is_last, following = step == EPISODE_STEPS - 1, observe()
        action = rng.uniform(-1, 1, ACTION_DIM).astype(np.float32)
        yield (
            Transition(
                episode=episode, step=step, observation=observation, policy_action=action, executed_action=action,
                source=ActionSource.POLICY, reward=0.0, terminated=False, truncated=is_last, weights_version=0,
                weights_age_s=0.0, wall_time_s=0.0, monotonic_time_s=0.0,
                final_observation=following if is_last else None,
            ),
            following,
        )  # fmt: skip
        observation = observe() if is_last else following


def measure(name: str, count: int) -> dict[str, float]:
    """Fill one layout in this process; returns bytes and milliseconds."""
    torch.set_num_threads(1)
    layout = LAYOUTS[name](2 * (count + WARM_UP))  # room for final observations as well
    durations_s: list[float] = []
    rss_before = 0
    for number, (transition, following) in enumerate(transitions(count + WARM_UP)):
        if number == WARM_UP:
            layout.draw_maps()  # what the libraries take once is not the transitions'
            rss_before, durations_s = resident_bytes(), []
        start_s = time.perf_counter()
        layout.add(transition, following, number)
        durations_s.append(time.perf_counter() - start_s)
    per_transition = (resident_bytes() - rss_before) / count
    return {
        "bytes": per_transition,
        "add_ms": 1e3 * float(np.median(durations_s)),
        "draw_ms": _milliseconds(layout.draw, DRAWS),
        "maps_ms": _milliseconds(layout.draw_maps, ENCODED_DRAWS),
    }


def _milliseconds(function: Callable[[], object], times: int) -> float:
    """Return the fastest of several calls: the machine may have other work."""
    durations_s = []
    for _ in range(times):
        start_s = time.perf_counter()
        function()
        durations_s.append(time.perf_counter() - start_s)
    return 1e3 * min(durations_s)


def resident_bytes() -> int:
    """Return the process's anonymous resident memory: without pages of libraries, which come and go."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator merely keeps is nobody's
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def machine() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.processor()
    return f"{len(models)} cores of {name}, one thread, PyTorch {torch.__version__}"


def _row(name: str, figures: dict[str, float]) -> str:
    total = f"{figures['bytes'] * 20_000 / 1e9:.2f} GB"
    times = f"{figures['add_ms']:.2f} | {figures['draw_ms']:.1f} | {figures['maps_ms']:,.0f}"
    return f"| {name} | {figures['bytes']:,.0f} | {total} | {times} |"


def _introduction(count: int) -> list[str]:
    return [
        "# Memory and time of the replay",
        "",
        f"`python -m benchmarks.replay_memory --transitions {count}` on {machine()}.",
        "",
        f"Two cameras of {SIZE} x {SIZE} pixels, episodes of {EPISODE_STEPS} steps, batches of {BATCH}, each line in a",
        "process of its own. Memory: growth of resident anonymous memory over the transitions added. Drawing a batch:",
        "frames of both observations gathered and shifted at random, or stored maps. With the backbone: the same up to",
        "ResNet-10's maps on this CPU; where pixels are stored, a GPU is meant to do that. LeRobot's layout is",
        "restated in the benchmark from its source, not imported; its random shift runs eagerly instead of compiled.",
        "Times are the fastest of several, adding is the median; the machine had other work meanwhile.",
        "",
        "| layout | bytes per transition | 20,000 of them | add, ms | draw a batch, ms | with the backbone, ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transitions", type=int, default=3000, help="transitions that each layout is filled with")
    parser.add_argument("--layout", choices=LAYOUTS, help="measure this one here and print JSON")
    arguments = parser.parse_args()
    if arguments.layout:
        print(json.dumps(measure(arguments.layout, arguments.transitions)))
        return
    rows = []
    for name in LAYOUTS:
        command = [sys.executable, "-m", "benchmarks.replay_memory", "--layout", name]
        output = subprocess.run(
            [*command, "--transitions", str(arguments.transitions)], check=True, capture_output=True, text=True
        ).stdout
        rows.append(_row(name, json.loads(output)))
        print(rows[-1], flush=True)
    RESULTS.write_text("\n".join([*_introduction(arguments.transitions), *rows, ""]))
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
