"""The room beside the twin's door: objects, cameras and hand of one scene, and our own arm driver in another."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from robot.backends.deoxys.backend import DeoxysBackend
from robot.backends.deoxys.options import DeoxysOptions
from robot.backends.twin.room import RoomClient
from robot.cameras import make_camera
from robot.errors import RobotConfigError, RobotError
from robot.geometry import CUBE_EDGE_M, HOLE_DEPTH_M, PEG_LENGTH_M
from robot.interface import Array, RobotCommand, Room, ScenePlacement
from robot.pose import O_R_DOWN, inverse, make_pose, translation
from tests.twin_nuc import HANG_S, NucProcess, PlainClient

RIM_M = 0.06


@pytest.fixture(scope="module")
def nuc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NucProcess]:
    process = NucProcess("cube_stacking", tmp_path_factory.mktemp("nuc"), "--camera-fps", "30")
    yield process
    children = psutil.Process(process.process.pid).children()
    assert process.close() == 0
    assert not [child for child in children if child.is_running()]


@pytest.fixture(scope="module")
def room(nuc: NucProcess) -> Iterator[RoomClient]:
    with RoomClient(nuc.room, scene="cube_stacking") as client:
        yield client


@pytest.fixture(scope="module")
def client(nuc: NucProcess) -> Iterator[PlainClient]:
    client = PlainClient(nuc.network)
    client.next_state()
    yield client
    client.close()


def cubes_at(top: Array, bottom: Array, start: Array) -> ScenePlacement:
    return ScenePlacement(O_T_EE=start, objects={"cube_top": top, "cube_bottom": bottom})


def on_table(x: float, y: float) -> Array:
    return translation(x, y, CUBE_EDGE_M / 2)


def test_objects_are_placed_at_rest_while_the_arm_stays(room: RoomClient) -> None:
    typed: Room = room
    start, q = room.snapshot().O_T_EE, room.snapshot().q
    top, bottom = on_table(0.60, -0.1), on_table(0.42, 0.12)
    typed.place(cubes_at(top, bottom, start))
    poses = typed.object_poses()
    assert poses["cube_top"] == pytest.approx(top, abs=1e-4)
    assert poses["cube_bottom"] == pytest.approx(bottom, abs=1e-4)
    assert np.abs(room.snapshot().q - q).max() < 1e-4
    poses["cube_top"][:] = 0.0  # the caller's own
    assert room.object_poses()["cube_top"][0, 3] > 0.5


def test_what_cannot_be_placed_is_refused_and_changes_nothing(room: RoomClient) -> None:
    start, before = room.snapshot().O_T_EE, room.object_poses()
    spot = on_table(0.42, -0.12)
    with pytest.raises(RobotError, match=r"5\.0 cm away from the placement's start pose \(limit 3 cm\)"):
        room.place(cubes_at(spot, before["cube_bottom"], translation(0.0, 0.0, 0.05) @ start))
    in_the_hand = start @ translation(0.0, 0.03, 0.0)  # where a finger is
    with pytest.raises(RobotError, match=r"would put cube_top and .*finger .* mm into each other"):
        room.place(cubes_at(in_the_hand, before["cube_bottom"], start))
    with pytest.raises(RobotError, match="would put cube_bottom and cube_top"):
        room.place(cubes_at(spot, spot, start))
    with pytest.raises(RobotConfigError, match="places the objects"):
        room.place(ScenePlacement(O_T_EE=start, objects={"hole": start}))
    after = room.object_poses()
    for name, pose in before.items():
        assert after[name] == pytest.approx(pose, abs=1e-4)  # on the table they sink in by 0.02 mm


def test_a_room_of_another_scene_or_address_says_what_to_do(nuc: NucProcess) -> None:
    with pytest.raises(RobotConfigError, match="--scene peg_in_hole"):
        RoomClient(nuc.room, scene="peg_in_hole").connect()
    with pytest.raises(RobotError, match=r"python -m robot\.backends\.twin\.nuc --room 127\.0\.0\.1:1"):
        RoomClient("127.0.0.1:1", timeout_s=0.2).connect()
    with pytest.raises(RobotConfigError, match="'here' is not host:port"):
        RoomClient("here")
    unconnected = RoomClient(nuc.room)
    unconnected.close()
    with pytest.raises(RobotError, match="call connect"):
        unconnected.object_poses()


def test_the_hand_moves_grasps_stops_and_homes_as_deoxys_does(client: PlainClient, room: RoomClient) -> None:
    def width() -> float:
        return float(client.hand_states[-1].width)

    client.wait(lambda: len(client.hand_states) > 0 and abs(width() - 0.08) < 0.001, "the hand starts open")
    assert client.hand_states[-1].max_width == 0.08
    move = lambda: client.hand("Move", width=0.03, speed=0.1)  # noqa: E731
    client.wait(lambda: abs(width() - 0.03) < 0.001, "the hand moves", move)  # the first may come before it listens
    count = len(client.hand_states)
    client.hand("Stop", stop=True)
    closed = lambda: any(state.width < 0.001 for state in client.hand_states[count:])  # noqa: E731
    client.wait(closed, "a stop homes: closes")
    client.wait(lambda: width() > 0.079, "and opens")
    client.hand("Homing", homing=True)  # which Deoxys does not understand
    start = room.snapshot().O_T_EE
    room.place(cubes_at(start, on_table(0.42, 0.12), start))  # falls out of an open hand, at first
    grasp = lambda: client.hand(  # noqa: E731
        "Grasp", width=-0.01, speed=0.5, force=30.0, epsilon_inner=0.08, epsilon_outer=0.08
    )
    client.wait(lambda: client.hand_states[-1].is_grasped, "something is held", grasp)  # lost while it still opens
    room.place(cubes_at(on_table(0.42, -0.12), on_table(0.42, 0.12), start))
    client.hand("Move", width=0.08, speed=0.1)
    client.wait(lambda: not client.hand_states[-1].is_grasped and width() > 0.079, "the hand opens")


def test_cameras_see_the_room_and_what_changes_in_it(nuc: NucProcess, room: RoomClient) -> None:
    info = room.info()
    if not info["frames_port"]:
        pytest.skip(info["cameras_error"])
    start = room.snapshot().O_T_EE
    room.place(cubes_at(on_table(0.42, -0.12), on_table(0.42, 0.12), start))
    cameras = {name: make_camera("room", name, device=nuc.room) for name in ("wrist", "third_person")}
    for camera in cameras.values():
        camera.connect()
    try:
        before = {name: camera.read() for name, camera in cameras.items()}
        room.place(cubes_at(on_table(0.60, -0.05), on_table(0.60, 0.05), start))
        # A frame after the next one was drawn of the new room.
        _wait_for_frames(cameras, {name: frame.sequence + 3 for name, frame in before.items()})
        for name, camera in cameras.items():
            frame = camera.read()
            assert frame.image.shape == (camera.height, camera.width, 3)
            assert np.abs(frame.image.astype(float) - before[name].image).mean() > 1.0, name
    finally:
        for camera in cameras.values():
            camera.close()
    overview = room.render(160, 120)
    assert overview.shape == (120, 160, 3)
    assert np.abs(overview.astype(float) - room.render(160, 120, "close")).mean() > 5.0
    with pytest.raises(RobotConfigError, match=r"unknown camera 'overvew'.*'overview'"):
        room.render(160, 120, "overvew")


def _wait_for_frames(cameras: dict[str, Any], sequences: dict[str, int]) -> None:
    deadline_s = time.monotonic() + HANG_S
    while any(cameras[name].read().sequence < sequence for name, sequence in sequences.items()):
        assert time.monotonic() < deadline_s, "new images come"
        time.sleep(0.02)


def test_a_dead_camera_process_is_noticed_and_the_rest_goes_on(nuc: NucProcess, room: RoomClient) -> None:
    children = psutil.Process(nuc.process.pid).children()
    if not children:
        pytest.skip(room.info()["cameras_error"])
    os.kill(children[0].pid, signal.SIGKILL)
    psutil.wait_procs(children, HANG_S)
    steps = room.info()["physics_steps"]
    while not (info := room.info())["cameras_error"]:
        assert info["physics_steps"] < steps + 5000, "the end of the child is noticed"
    assert "exit code -9" in info["cameras_error"]
    with pytest.raises(RobotError, match=r"draws nothing: .*exit code -9"):
        room.render(160, 120)


def test_our_own_driver_inserts_the_peg_and_resets_out_of_the_hole(tmp_path: Path) -> None:
    nuc = NucProcess("peg_in_hole", tmp_path, "--camera-fps", "0")
    hole = translation(0.5, 0.02, RIM_M)
    over_hole = make_pose(O_R_DOWN, (0.5, 0.02, RIM_M + PEG_LENGTH_M + 0.03))
    placement = ScenePlacement(O_T_EE=over_hole, objects={"hole": hole, "peg": translation(0.0, 0.0, PEG_LENGTH_M)})
    backend = DeoxysBackend("peg_in_hole", DeoxysOptions(network=nuc.network, lift_m=0.04, reset_speed_m_s=0.2))
    try:
        with RoomClient(nuc.room, scene="peg_in_hole") as room:
            backend.connect()
            backend.reset(placement)
            room.place(placement)
            _insert(backend, room, hole)
            assert room.object_poses()["peg"][2, 3] == pytest.approx(RIM_M - HOLE_DEPTH_M, abs=0.002)
            state = backend.reset(placement)
            assert state.O_T_EE == pytest.approx(over_hole, abs=0.02)
            assert room.object_poses()["peg"][2, 3] > RIM_M
    finally:
        backend.close()
        nuc.close()


def _insert(backend: DeoxysBackend, room: RoomClient, hole: Array) -> None:
    """Push down, staying over the hole and upright, until the peg is at the bottom."""
    deadline_s, force_N = time.monotonic() + HANG_S, 0.0
    while (inverse(hole) @ room.object_poses()["peg"])[2, 3] > -HOLE_DEPTH_M + 0.001 or force_N < 1.0:
        assert time.monotonic() < deadline_s, "the peg reaches the bottom, which pushes back"
        state = backend.read_state()
        measured, force_N = state.O_T_EE, state.O_F_ext_hat_K[2]
        sideways = hole[:3, 3] - measured[:3, 3]
        turn = np.cross(measured[:3, 2], [0.0, 0.0, -1.0])
        backend.send_command(
            RobotCommand(delta_position=np.array([*np.clip(sideways[:2], -0.01, 0.01), -0.015]), delta_rotation=turn)
        )
        time.sleep(0.05)
