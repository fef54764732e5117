"""Measure the twin: its speed, where the time goes, and how its controller answers steps. Prints Markdown tables.

python -m benchmarks.twin           # the tables
python -m benchmarks.twin --docs    # also the pictures of docs/twin.md, into docs/images/
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mujoco
import numpy as np

from actor.camera_rig import crop_and_resize
from actor.config import CamerasConfig
from actor.env import RobotEnv, connect_backend, connect_cameras
from actor.tasks import make_task
from actor.tasks.base import TaskOptions
from robot.backends.twin.backend import TwinBackend
from robot.backends.twin.model import PHYSICS_STEP_S
from robot.backends.twin.osc import OperationalSpaceController, OscConfig
from robot.backends.twin.simulation import Simulation
from robot.cameras.optics import MOUNTS
from robot.franka import Q_HOME
from robot.geometry import CUBE_EDGE_M, PEG_LENGTH_M
from robot.interface import Array, RobotCommand, ScenePlacement
from robot.pose import O_R_DOWN, apply_delta, make_pose, pose_difference, translation

IMAGES = Path(__file__).parent.parent / "docs" / "images"
RIM_M = 0.06
AXES = ("x", "y", "z", "rotation x", "rotation y", "rotation z")
IMAGE_PX = 128  # a side, as the policy sees it
STEP_SIZES = (0.01, 0.01, 0.01, 0.05, 0.05, 0.05)  # m and rad
RESPONSE_TIMES_S = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="write plot and frames into docs/images/")
    write_docs = parser.parse_args().docs
    print(f"MuJoCo {mujoco.mj_versionString()}, numpy {np.__version__}, {os.cpu_count()} CPU cores; processor times\n")
    _print_speed()
    _print_camera_times()
    _print_penetration()
    times_s, responses = step_responses()
    _print_responses(times_s, responses)
    if write_docs:
        IMAGES.mkdir(parents=True, exist_ok=True)
        _plot_responses(times_s, responses, IMAGES / "twin_step_response.png")
        _save_frames()
        _save_camera_images()


def reach_placement() -> ScenePlacement:
    return ScenePlacement(
        O_T_EE=make_pose(O_R_DOWN, (0.5, 0.0, 0.30)), objects={"target": translation(0.55, 0.08, 0.22)}
    )


def peg_placement(tip_height_m: float) -> ScenePlacement:
    """The peg upright over the hole, its tip that far over the rim."""
    return ScenePlacement(
        O_T_EE=make_pose(O_R_DOWN, (0.5, 0.0, RIM_M + PEG_LENGTH_M + tip_height_m)),
        objects={"hole": translation(0.5, 0.0, RIM_M), "peg": translation(0.0, 0.0, PEG_LENGTH_M)},
    )


def cube_placement() -> ScenePlacement:
    """A cube between the open fingers, the other one beside it."""
    return ScenePlacement(
        O_T_EE=make_pose(O_R_DOWN, (0.5, 0.0, 0.03)),
        objects={
            "cube_top": translation(0.5, 0.0, CUBE_EDGE_M / 2),
            "cube_bottom": translation(0.5, -0.1, CUBE_EDGE_M / 2),
        },
    )


def step_responses() -> tuple[Array, Array]:
    """Return times (T,), s, and the reached share (6, T) of one step along or about each axis of O."""
    backend = TwinBackend("reach")
    backend.connect()
    times_s = np.arange(1, 1001, dtype=np.float64) * PHYSICS_STEP_S
    responses: Array = np.zeros((6, len(times_s)))
    for axis, size in enumerate(STEP_SIZES):
        start = backend.reset(reach_placement()).O_T_EE
        delta = np.zeros(6)
        delta[axis] = size
        backend.send_command(RobotCommand(delta_position=delta[:3], delta_rotation=delta[3:]))
        for index in range(len(times_s)):
            backend.advance(PHYSICS_STEP_S)
            moved = np.concatenate(pose_difference(start, backend.read_state().O_T_EE))
            responses[axis, index] = moved[axis] / size
    backend.close()
    return times_s, responses


def _print_speed() -> None:
    print("| scene | steps/s | x real time | ms per 10 Hz step | ms per 20 Hz step | 640 x 480 frame, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    free = TwinBackend("reach")
    free.connect()
    free.reset(reach_placement())
    _print_speed_of("reach, free motion", free, np.array([0.0, 0.02, 0.0]))
    inserted = TwinBackend("peg_in_hole")
    inserted.connect()
    inserted.reset(peg_placement(tip_height_m=-0.02))
    _print_speed_of("peg_in_hole, pressing on walls and bottom of the hole", inserted, np.array([0.0, 0.02, -0.01]))
    grasping = TwinBackend("cube_stacking")
    grasping.connect()
    grasping.reset(cube_placement())
    grasping.send_command(RobotCommand(delta_position=np.zeros(3), delta_rotation=np.zeros(3), gripper_width=0.0))
    grasping.advance(1.0)
    _print_speed_of("cube_stacking, swinging a gripped cube", grasping, np.array([0.0, 0.02, 0.005]))
    _print_shares()


def _print_camera_times() -> None:
    """Time what the policy gets of each camera: drawn in its own size, cropped, made small."""
    columns = [f"{name}, ms" for name in (*MOUNTS, "both")]
    print(
        f"\n| what the policy gets, {IMAGE_PX} x {IMAGE_PX} | {' | '.join(columns)} |\n|{' --- |' * (1 + len(columns))}"
    )
    for scene, placement in (("peg_in_hole", peg_placement(tip_height_m=0.04)), ("cube_stacking", cube_placement())):
        backend = TwinBackend(scene)
        backend.connect()
        backend.reset(placement)
        times_ms = [_milliseconds(partial(_see, backend, camera)) for camera in MOUNTS]
        print(f"| {scene} | " + " | ".join(f"{time_ms:.1f}" for time_ms in (*times_ms, sum(times_ms))) + " |")
        backend.close()


def _see(backend: TwinBackend, camera: str) -> None:
    image = backend.photograph(camera)
    height, width, _ = image.shape
    side = min(height, width)
    crop_and_resize(image, ((width - side) // 2, (height - side) // 2, side, side), IMAGE_PX)


def _print_speed_of(label: str, backend: TwinBackend, delta_position: Array) -> None:
    """Print a table row, measured while the arm swings along y with `delta_position`, then close the backend."""
    signs = itertools.cycle((1.0, -1.0))

    def swing(period_s: float) -> None:
        delta = delta_position * (1.0, next(signs), 1.0)
        backend.send_command(RobotCommand(delta_position=delta, delta_rotation=np.zeros(3)))
        backend.advance(period_s)

    ms_10_hz = _milliseconds(partial(swing, 0.1))
    ms_20_hz = _milliseconds(partial(swing, 0.05))
    draw = partial(backend.render, 640, 480)
    draw()  # the first frame uploads the meshes
    steps_per_s = 0.1 / PHYSICS_STEP_S / (ms_10_hz * 1e-3)
    real_time = steps_per_s * PHYSICS_STEP_S
    frame_ms = _milliseconds(draw)
    print(f"| {label} | {steps_per_s:.0f} | {real_time:.0f} | {ms_10_hz:.2f} | {ms_20_hz:.2f} | {frame_ms:.0f} |")
    backend.close()


def _print_shares() -> None:
    """Time the controller alone and a whole physics step, with the peg on the bottom of the hole."""
    simulation = Simulation("peg_in_hole", OscConfig())
    simulation.reset(peg_placement(tip_height_m=-0.02))
    goal = apply_delta(simulation.O_T_EE(), np.array([0.005, 0.0, -0.02]), np.zeros(3))
    for _ in range(500):
        simulation.step(goal)
    data = simulation.data
    mass_matrix = np.zeros((7, 7))
    mujoco.mj_fullM(simulation.model, mass_matrix, data.qM)
    controller = OperationalSpaceController(OscConfig(), Q_HOME)
    arguments = (goal, simulation.O_T_EE(), data.qpos, data.qvel, simulation.jacobian, mass_matrix, data.qfrc_bias)
    control_us = 1e3 * _milliseconds(partial(controller.torque, *arguments), calls=500)
    whole_us = 1e3 * _milliseconds(partial(simulation.step, goal), calls=500)
    print("\n| part of one 2 ms step | us | share |\n| --- | --- | --- |")
    for label, part_us in (("controller, numpy", control_us), ("mj_step and the rest", whole_us - control_us)):
        print(f"| {label} | {part_us:.1f} | {part_us / whole_us:.0%} |")
    print(f"\n{data.ncon} contacts were active.")


def _print_penetration(episodes: int = 40) -> None:
    """Poke around in the hole with random steps and turns, and print how deep the peg sinks into the plate."""
    simulation = Simulation("peg_in_hole", OscConfig())
    rng = np.random.default_rng(0)
    depths_mm = []
    for _ in range(episodes):
        simulation.reset(peg_placement(tip_height_m=-0.01))
        for index in range(40):
            wanted = peg_placement(tip_height_m=0.005 if index % 20 > 14 else -0.03).O_T_EE
            step, turn = pose_difference(simulation.O_T_EE(), wanted)
            step = np.clip(step + rng.uniform(-0.01, 0.01, 3), -0.02, 0.02)
            goal = apply_delta(simulation.O_T_EE(), step, turn + rng.uniform(-0.06, 0.06, 3))
            for _ in range(50):
                simulation.step(goal)
                if simulation.data.ncon:
                    depths_mm.append(-1e3 * float(simulation.data.contact.dist.min()))
    p50, p99, most = np.quantile(depths_mm, (0.5, 0.99, 1.0))
    print(f"\nPenetration over {len(depths_mm)} steps in contact: p50 {p50:.2f}, p99 {p99:.2f}, most {most:.2f} mm")


def _milliseconds(call: Callable[[], object], calls: int = 20, repeats: int = 5) -> float:
    """Return the median over repeats of a call's mean processor time, which other programs hardly change."""
    means = []
    for _ in range(repeats):
        start_s = time.process_time()
        for _ in range(calls):
            call()
        means.append((time.process_time() - start_s) / calls * 1e3)
    return statistics.median(means)


def _print_responses(times_s: Array, responses: Array) -> None:
    print("\n| step | " + " | ".join(f"{time_s:g} s" for time_s in RESPONSE_TIMES_S) + " | most |")
    print("| --- |" + " --- |" * (len(RESPONSE_TIMES_S) + 1))
    for axis, response in enumerate(responses):
        unit, commanded = "mm" if axis < 3 else "mrad", STEP_SIZES[axis] * 1e3
        cells = [f"{np.interp(time_s, times_s, response) * commanded:.1f}" for time_s in RESPONSE_TIMES_S]
        print(
            f"| {AXES[axis]}, {commanded:.0f} {unit} | " + " | ".join(cells) + f" | {response.max() * commanded:.1f} |"
        )


def _plot_responses(times_s: Array, responses: Array, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(1, 2, figsize=(9.0, 3.4), sharex=True, layout="constrained")
    for plot, title, axes in ((plots[0], "position, mm", range(3)), (plots[1], "rotation, mrad", range(3, 6))):
        for axis in axes:
            plot.plot(times_s, responses[axis] * STEP_SIZES[axis] * 1e3, label=AXES[axis][-1])
        rate = (150.0 if axes[0] == 0 else 250.0) ** 0.5
        ideal = 1 - (1 + rate * times_s) * np.exp(-rate * times_s)
        plot.plot(times_s, ideal * STEP_SIZES[axes[0]] * 1e3, "k:", linewidth=1.0, label="ideal")
        plot.axhline(STEP_SIZES[axes[0]] * 1e3, color="0.6", linewidth=0.8)
        plot.axvline(0.1, color="0.8", linewidth=0.8, linestyle="--")
        plot.set(title=title, xlabel="time since the step, s", xlim=(0.0, 1.2), ylim=(0.0, None))
        plot.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _save_frames() -> None:
    import imageio.v3 as imageio

    placements = {
        "reach": reach_placement(),
        "peg_in_hole": peg_placement(tip_height_m=0.04),
        "cube_stacking": cube_placement(),
    }
    for scene, placement in placements.items():
        backend = TwinBackend(scene)
        backend.connect()
        backend.reset(placement)
        for camera in ("overview", "close"):
            imageio.imwrite(IMAGES / f"twin_{scene}_{camera}.png", backend.render(480, 360, camera))
        backend.close()


def _save_camera_images() -> None:
    """For each task both cameras, one above the other: four moments of an episode, then four starts in varied looks."""
    import imageio.v3 as imageio

    for name in ("peg_in_hole", "cube_stacking"):
        task = make_task(name, TaskOptions(pixels=True, image_size_px=IMAGE_PX))
        backend = connect_backend("twin", task)
        assert isinstance(backend, TwinBackend)
        env = RobotEnv(task, backend, cameras=connect_cameras(CamerasConfig(), task, "twin", backend))
        observation, _ = env.reset(seed=0)
        operator, seen, is_over = task.make_operator(), [observation], False
        while not is_over:
            observation, _, terminated, truncated, _ = env.step(operator.act(env.state, env.objects))
            seen.append(observation)
            is_over = terminated or truncated
        moments = [seen[round(share * (len(seen) - 1))] for share in (0.0, 0.4, 0.7, 1.0)]
        backend.vary_looks(1.0)
        varied = [env.reset(seed=seed)[0] for seed in range(4)]
        for suffix, shown in (("", moments), ("_varied", varied)):
            image = np.vstack([np.hstack([observation[camera] for observation in shown]) for camera in MOUNTS])
            imageio.imwrite(IMAGES / f"twin_{name}_cameras{suffix}.png", image)
        env.close()
        backend.close()


if __name__ == "__main__":
    main()
