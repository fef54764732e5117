"""Train the image backbone on the twin's own pictures, for runs in the twin on a machine without ImageNet weights.

    python -m benchmarks.pretrain_encoder --minutes 20 --out encoders

The network learns to tell where things are: from both cameras and the arm's pose it regresses the differences that a
task's state variant would observe. Its heads are thrown away and the backbone goes into a file of the same form as a
converted ImageNet one (docs/encoder.md). Then the question that matters for learning: heads trained afresh on frozen
maps, with random weights and with these, tested on episodes that neither has seen.

A backbone made this way knows this simulator and these tasks. It is no substitute for ImageNet weights on a robot.
"""

import argparse
import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actor.config import ActorConfig
from actor.env import RobotEnv, connect_backend, connect_cameras
from actor.tasks.cartesian_task import CartesianTask
from actor.workcell import configured_task
from learner.pixels import draw_shifts, shift_images
from policy.config import PolicyConfig
from policy.encoder import EncoderInput, ObservationHeads
from policy.encoder_weights import file_name, load_backbone
from policy.files import make_folder, replace_durably
from policy.resnet import ResNet10
from policy.spec import Specs
from policy.weights import serialise
from policy.weights_store import sha256

TASKS = ("peg_in_hole", "cube_stacking")
CAMERAS = ("wrist", "third_person")
CONFIG = PolicyConfig(encoder="resnet10", encoder_weights="random")
UNIT_M = 0.01  # of the targets: errors of a centimetre count 1
FRAME_EVERY = 3  # steps between two pictures of an episode
EPISODE_STEPS = 36
BATCH = 48
SHIFT_PX = 4
HELD_OUT = 0.1  # share of the episodes, the last ones
RESULT = Path("benchmarks/results/pretrain_encoder.md")


@dataclass
class Pictures:
    """What one task shows: images (n, 128, 128, 3) uint8 by camera, vectors (n, V), targets (n, D) in UNIT_M."""

    specs: Specs
    images: list[Tensor]
    vector: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.vector)

    def rows(self, rows: slice) -> "Pictures":
        return Pictures(self.specs, [camera[rows] for camera in self.images], self.vector[rows], self.target[rows])


def collect(task_name: str, count: int, seed: int) -> Pictures:
    """Return `count` pictures of episodes in which the scripted operator is disturbed, strongly in half of them."""
    rng = np.random.default_rng(seed)
    config = ActorConfig(task=task_name, pixels=True)
    seen, driven = configured_task(config), configured_task(ActorConfig(task=task_name))
    assert isinstance(driven, CartesianTask)
    images: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in CAMERAS}
    vectors: list[NDArray[np.float32]] = []
    targets: list[NDArray[np.float64]] = []
    with contextlib.ExitStack() as closing:
        backend = connect_backend("twin", seen)
        closing.callback(backend.close)
        rig = connect_cameras(config.cameras, seen, "twin", backend)
        assert rig is not None
        closing.callback(rig.close)
        env = RobotEnv(driven, backend)
        episode = 0
        while len(vectors) < count:
            env.reset(seed=int(rng.integers(2**31)))
            operator, noise = driven.make_operator(), (0.3 if episode % 2 else 1.0)
            drift = rng.uniform(-1, 1, driven.action_spec.dim)
            for step in range(EPISODE_STEPS):
                if step % FRAME_EVERY == 0:
                    reading = rig.read(env.state.O_T_EE[:3, 3])
                    for name in CAMERAS:
                        images[name].append(reading.images[name])
                    observation = seen.observe(env.state, env.objects, env.state.O_T_EE)
                    vectors.append(seen.observation_spec.normalise(observation))
                    targets.append(np.concatenate(driven.measure(env.state, env.objects)) / UNIT_M)
                action = operator.act(env.state, env.objects) + noise * (drift + rng.normal(size=len(drift)))
                *_, terminated, truncated, _ = env.step(np.clip(action, -1, 1).astype(np.float32))
                if terminated or truncated:
                    break
            episode += 1
    return Pictures(
        Specs(seen.observation_spec, seen.action_spec),
        [torch.from_numpy(np.stack(images[name][:count])) for name in CAMERAS],
        torch.from_numpy(np.stack(vectors[:count])),
        torch.from_numpy(np.stack(targets[:count]).astype(np.float32)),
    )


class Regression(nn.Module):
    """The heads that algorithms train, and one layer to a task's targets."""

    def __init__(self, pictures: Pictures) -> None:
        super().__init__()
        self.heads = ObservationHeads(pictures.specs, CONFIG)
        self.output = nn.Linear(self.heads.feature_dim, pictures.target.shape[1])
        nn.init.zeros_(self.output.weight)
        with torch.no_grad():
            self.output.bias.copy_(pictures.target.mean(dim=0))

    def forward(self, vector: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
        predicted: Tensor = self.output(self.heads(EncoderInput(vector, maps)))
        return predicted


def pretrain(training: dict[str, Pictures], minutes: float, seed: int) -> ResNet10:
    """Return a backbone trained for so long, with a step size that falls to nothing over that time."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    backbone = load_backbone("random").requires_grad_(True).train()
    regressions = {name: Regression(pictures) for name, pictures in training.items()}
    parameters = [*backbone.parameters(), *(p for regression in regressions.values() for p in regression.parameters())]
    optimiser = torch.optim.AdamW(parameters, weight_decay=1e-3)
    start_s = time.monotonic()
    batches, shown_s = 0, start_s
    while (passed := (time.monotonic() - start_s) / (60 * minutes)) < 1:
        optimiser.param_groups[0]["lr"] = 1e-3 * min(1.0, batches / 50) * 0.5 * (1 + np.cos(np.pi * passed))
        name = TASKS[batches % len(TASKS)]
        pictures, rows = training[name], rng.integers(len(training[name]), size=BATCH)
        shown = [shift_images(camera[rows], draw_shifts(rng, BATCH, SHIFT_PX)) for camera in pictures.images]
        maps = backbone(torch.cat(shown)).chunk(len(shown))
        loss = nn.functional.smooth_l1_loss(regressions[name](pictures.vector[rows], maps), pictures.target[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        batches += 1
        if time.monotonic() - shown_s > 30:
            shown_s = time.monotonic()
            print(f"{100 * passed:3.0f} %  {batches} batches of {BATCH}  {name} loss {loss.item():.3f}", flush=True)
    return backbone.requires_grad_(False).eval()


@torch.no_grad()
def frozen_maps(backbone: ResNet10, pictures: Pictures) -> tuple[Tensor, ...]:
    return tuple(torch.cat([backbone(few) for few in torch.split(camera, 4)]) for camera in pictures.images)


def fresh_head_error_mm(backbone: ResNet10, pictures: Pictures, seed: int, batches: int = 1500) -> NDArray[np.float64]:
    """Return the RMSE (D,), mm, on held-out episodes of heads trained on the frozen maps of the others."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    maps, border = frozen_maps(backbone, pictures), held_out_from(pictures)
    regression = Regression(pictures)
    optimiser = torch.optim.Adam(regression.parameters(), 3e-4)
    for _ in range(batches):
        rows = rng.integers(border, size=128)
        predicted = regression(pictures.vector[rows], tuple(camera[rows] for camera in maps))
        optimiser.zero_grad(set_to_none=True)
        nn.functional.smooth_l1_loss(predicted, pictures.target[rows]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        tested = pictures.rows(slice(border, None))
        error = regression(tested.vector, tuple(camera[border:] for camera in maps)) - tested.target
    rmse: NDArray[np.float64] = (error.square().mean(dim=0).sqrt() * UNIT_M * 1e3).double().numpy()
    return rmse


def held_out_from(pictures: Pictures) -> int:
    return round(len(pictures) * (1 - HELD_OUT))


def target_names(task_name: str) -> list[str]:
    fields = configured_task(ActorConfig(task=task_name)).observation_spec.fields
    differences = [field.name for field in fields if "_to_" in field.name]
    return [f"{name} {axis}" for name in differences for axis in "xyz"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrain_encoder", description=__doc__)
    parser.add_argument("--pictures", type=int, default=4000, help="of each task")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("encoders"), help="folder for the weights")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    start_s = time.monotonic()
    pictures = {name: collect(name, arguments.pictures, arguments.seed + index) for index, name in enumerate(TASKS)}
    collect_s = time.monotonic() - start_s
    print(f"{arguments.pictures} pictures of each task in {collect_s:.0f} s", flush=True)
    training = {name: every.rows(slice(held_out_from(every))) for name, every in pictures.items()}
    backbone = pretrain(training, arguments.minutes, arguments.seed)
    weights = serialise(backbone.state_dict())
    digest = sha256(weights)
    make_folder(arguments.out)
    replace_durably(arguments.out / file_name(digest), weights)
    print(f'wrote {arguments.out / file_name(digest)}\npolicy.encoder_weights = "{digest}"', flush=True)
    lines = [
        "# A backbone trained on the twin's pictures",
        "",
        "Heads trained afresh on frozen maps; root-mean-square error, mm, on episodes that nothing was trained on.",
        "",
        "| what is regressed | random weights | trained on the twin |",
        "| --- | --- | --- |",
    ]
    for name in TASKS:
        errors = [fresh_head_error_mm(which, pictures[name], 1) for which in (load_backbone("random"), backbone)]
        lines += [
            f"| {name}: {target} | {before:.1f} | {after:.1f} |"
            for target, before, after in zip(target_names(name), *errors, strict=True)
        ]
    lines += [
        "",
        f"`python -m benchmarks.pretrain_encoder --pictures {arguments.pictures} --minutes {arguments.minutes:g} "
        f"--threads {arguments.threads} --seed {arguments.seed}`: {arguments.pictures} pictures of each task, drawn in "
        f"{collect_s:.0f} s; {arguments.minutes:g} minutes of training. SHA-256 of the weights: `{digest}`. The time "
        "limit decides how many batches there are, so another run gives other weights.",
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
