"""Train the image backbone on the twin's own pictures, for runs in the twin on a machine without ImageNet weights.

    python -m benchmarks.pretrain_encoder --minutes 20 --out encoders

The network learns to tell where things are: from both cameras and the arm's pose it regresses the differences that a
task's state variant would observe, while the twin's looks vary. Its heads are thrown away and the backbone goes into a
file of the same form as a converted ImageNet one (docs/encoder.md). Then the question that matters for learning: heads
trained afresh on frozen maps of the twin as it normally looks, with random weights and with these, tested on episodes
of another seed that nothing was trained on.

A backbone made this way knows this simulator and these tasks. It is no substitute for ImageNet weights on a robot.
"""

import argparse
import contextlib
import dataclasses
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
from actor.workcell import configured_task, vary_looks
from learner.pixels import draw_shifts, shift_images
from policy.cli import config_from_preset
from policy.config import load_preset
from policy.encoder import EncoderInput, ObservationHeads
from policy.encoder_weights import file_name, load_backbone
from policy.files import make_folder, replace_durably
from policy.resnet import ResNet10
from policy.spec import Specs
from policy.weights import serialise
from policy.weights_store import sha256

TASKS = ("peg_in_hole", "cube_stacking")
CAMERAS = ("wrist", "third_person")
PRESET = config_from_preset(ActorConfig, "actor", load_preset("sim_pixels"))
UNIT_M = 0.01  # of the targets: errors of a centimetre count 1
FRAME_EVERY = 4  # steps between two pictures of an episode
EPISODE_STEPS = 48
BATCH = 48
SHIFT_PX = 4
FRESH_PICTURES, HELD_OUT_PICTURES = 800, 300
RESULT = Path("benchmarks/results/pretrain_encoder.md")

Rmse = NDArray[np.float64]


@dataclass
class Pictures:
    """What one task shows: images (n, 128, 128, 3) uint8 by camera, vectors (n, V), targets (n, D) in UNIT_M."""

    specs: Specs
    images: list[Tensor]
    vector: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.vector)


def collect(task_name: str, count: int, seed: int, looks_variation: float = 0.0) -> Pictures:
    """Return `count` pictures of episodes in which the scripted operator is disturbed, strongly in half of them."""
    rng = np.random.default_rng(seed)
    config = dataclasses.replace(PRESET, task=task_name)
    seen, driven = configured_task(config), configured_task(dataclasses.replace(config, pixels=False))
    assert isinstance(driven, CartesianTask)
    images: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in CAMERAS}
    vectors: list[NDArray[np.float32]] = []
    targets: list[NDArray[np.float64]] = []
    with contextlib.ExitStack() as closing:
        backend = connect_backend("twin", seen)
        closing.callback(backend.close)
        vary_looks(backend, looks_variation)
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
        self.heads = ObservationHeads(pictures.specs, PRESET.policy)
        self.output = nn.Linear(self.heads.feature_dim, pictures.target.shape[1])
        nn.init.zeros_(self.output.weight)
        with torch.no_grad():
            self.output.bias.copy_(pictures.target.mean(dim=0))

    def forward(self, vector: Tensor, maps: tuple[Tensor, ...]) -> Tensor:
        predicted: Tensor = self.output(self.heads(EncoderInput(vector, maps)))
        return predicted


def pretrain(training: dict[str, Pictures], minutes: float, seed: int) -> tuple[ResNet10, int]:
    """Return a backbone trained for so long on the processor's clock, and in how many batches."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    backbone = load_backbone("random").requires_grad_(True).train()
    regressions = {name: Regression(pictures) for name, pictures in training.items()}
    parameters = [*backbone.parameters(), *(p for regression in regressions.values() for p in regression.parameters())]
    optimiser = torch.optim.AdamW(parameters, weight_decay=1e-3)
    start_s, batches = time.process_time(), 0
    while (passed := (time.process_time() - start_s) / (60 * minutes)) < 1:
        optimiser.param_groups[0]["lr"] = 1e-3 * min(1.0, batches / 50) * 0.5 * (1 + np.cos(np.pi * passed))
        name = TASKS[batches % len(TASKS)]
        pictures, rows = training[name], rng.integers(len(training[name]), size=BATCH)
        shown = [shift_images(camera[rows], draw_shifts(rng, BATCH, SHIFT_PX), SHIFT_PX) for camera in pictures.images]
        with torch.autocast("cpu", torch.bfloat16):  # nearly twice as fast on processors that have it
            maps = backbone(torch.cat(shown)).float().chunk(len(shown))
        loss = nn.functional.smooth_l1_loss(regressions[name](pictures.vector[rows], maps), pictures.target[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        batches += 1
        if batches % 20 < len(TASKS):
            print(f"{100 * passed:3.0f} %  {batches} batches of {BATCH}  {name} loss {loss.item():.3f}", flush=True)
    return backbone.requires_grad_(False).eval(), batches


@torch.no_grad()
def frozen_maps(backbone: ResNet10, pictures: Pictures) -> tuple[Tensor, ...]:
    return tuple(torch.cat([backbone(few) for few in torch.split(camera, 16)]) for camera in pictures.images)


def fresh_head_error_mm(backbone: ResNet10, fresh: Pictures, held_out: Pictures, batches: int = 600) -> Rmse:
    """Return the RMSE (D,), mm, on held-out pictures of heads trained on the frozen maps of others."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    maps = frozen_maps(backbone, fresh)
    regression = Regression(fresh)
    optimiser = torch.optim.Adam(regression.parameters(), 1e-3)
    for batch in range(batches):
        optimiser.param_groups[0]["lr"] = 1e-3 * 0.5 * (1 + np.cos(np.pi * batch / batches))
        rows = rng.integers(len(fresh), size=128)
        predicted = regression(fresh.vector[rows], tuple(camera[rows] for camera in maps))
        optimiser.zero_grad(set_to_none=True)
        nn.functional.smooth_l1_loss(predicted, fresh.target[rows]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        error = regression(held_out.vector, frozen_maps(backbone, held_out)) - held_out.target
    rmse: Rmse = (error.square().mean(dim=0).sqrt() * UNIT_M * 1e3).double().numpy()
    return rmse


def target_names(task_name: str) -> list[str]:
    fields = configured_task(ActorConfig(task=task_name)).observation_spec.fields
    differences = [field.name for field in fields if "_to_" in field.name]
    return [f"{name} {axis}" for name in differences for axis in "xyz"]


def measure(backbone: ResNet10, seed: int) -> list[str]:
    """Return the table's lines."""
    lines = []
    for index, name in enumerate(TASKS):
        fresh = collect(name, FRESH_PICTURES, seed + 100 + index)
        held_out = collect(name, HELD_OUT_PICTURES, seed + 200 + index)
        spread = (held_out.target - fresh.target.mean(dim=0)).square().mean(dim=0).sqrt() * UNIT_M * 1e3
        errors = [fresh_head_error_mm(which, fresh, held_out) for which in (load_backbone("random"), backbone)]
        columns = zip(target_names(name), spread.tolist(), *errors, strict=True)
        lines += [
            f"| {name}: {target} | " + " | ".join(f"{error:.1f}" for error in row) + " |" for target, *row in columns
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrain_encoder", description=__doc__)
    parser.add_argument("--pictures", type=int, default=4000, help="of each task")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, of processor time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("encoders"), help="folder for the weights")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start_s = time.process_time()
    training = {
        name: collect(name, arguments.pictures, arguments.seed + index, looks_variation=1.0)
        for index, name in enumerate(TASKS)
    }
    print(f"{arguments.pictures} pictures of each task in {time.process_time() - start_s:.0f} s", flush=True)
    backbone, batches = pretrain(training, arguments.minutes, arguments.seed)
    weights = serialise(backbone.state_dict())
    digest = sha256(weights)
    make_folder(arguments.out)
    replace_durably(arguments.out / file_name(digest), weights)
    print(f'wrote {arguments.out / file_name(digest)}\npolicy.encoder_weights = "{digest}"', flush=True)
    lines = [
        "# A backbone trained on the twin's pictures",
        "",
        f"Heads trained afresh on frozen maps of {FRESH_PICTURES} pictures; root-mean-square error, mm, on "
        f"{HELD_OUT_PICTURES} pictures of a seed that nothing was trained on.",
        "",
        "| what is regressed | always the mean | random weights | trained on the twin |",
        "| --- | --- | --- | --- |",
        *measure(backbone, arguments.seed),
        "",
        f"`python -m benchmarks.pretrain_encoder --pictures {arguments.pictures} --minutes {arguments.minutes:g} "
        f"--seed {arguments.seed}`: {arguments.pictures} pictures of each task with varied looks, {batches} batches of "
        f"{BATCH} in {arguments.minutes:g} minutes of one core. SHA-256 of the weights: `{digest}`. The time limit "
        "decides how many batches there are, so another run gives other weights.",
    ]
    RESULT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
