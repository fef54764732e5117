"""RobotEnv on the fake backend."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

import actor.env
from actor.camera_rig import CameraRig
from actor.config import CamerasConfig
from actor.env import HOLD_AFTER_LATE_PERIODS, RobotEnv, connect_backend
from actor.rate import RateKeeper
from actor.tasks import make_task
from actor.tasks.base import TaskOptions
from policy.errors import ConfigError, WireError
from robot.backends.fake import FakeBackend
from robot.errors import CameraStaleError
from robot.interface import CameraFrame, RobotCommand

ENV_IDS = [
    "cgpo/PegInHole-v0",
    "cgpo/PegInHoleFake-v0",
    "cgpo/PegInHoleRotation-v0",
    "cgpo/PegInHoleRotationFake-v0",
    "cgpo/Reach-v0",
    "cgpo/ReachFake-v0",
    "cgpo/PegInHoleBlindFake-v0",
    "cgpo/PegInHolePixelsFake-v0",
    "cgpo/CubeStackingFake-v0",
    "cgpo/CubeStackingPixelsFake-v0",
]


class RecordingBackend(FakeBackend):
    """A fake that remembers what was sent."""

    def __init__(self, scene: str) -> None:
        super().__init__(scene)
        self.sent: list[RobotCommand] = []
        self.stops = 0

    def send_command(self, command: RobotCommand) -> None:
        self.sent.append(command)
        super().send_command(command)

    def stop(self) -> None:
        self.stops += 1
        super().stop()

    def render(self, width: int, height: int, camera: str = "overview") -> NDArray[np.uint8]:
        return np.full((height, width, 3), {"overview": 1, "close": 2}[camera], np.uint8)


class StubCamera:
    """An image of one colour, which the test ages."""

    def __init__(self, width: int, height: int, colour: int) -> None:
        self.width, self.height, self.colour = width, height, colour
        self.arrived_s, self.sequence = 0.0, 0

    def connect(self) -> None: ...

    def read(self) -> CameraFrame:
        image = np.full((self.height, self.width, 3), self.colour, np.uint8)
        return CameraFrame(image=image, sequence=self.sequence, received_monotonic_s=self.arrived_s)

    def close(self) -> None: ...


class PixelEnv:
    """Reach with pixels on the recording fake, its cameras and their clock."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.cameras = {"wrist": StubCamera(672, 376, 50), "third_person": StubCamera(640, 480, 60)}
        rig = CameraRig(self.cameras, CamerasConfig(image_size_px=32), clock=lambda: self.now_s)
        self.backend = RecordingBackend("reach")
        self.env = RobotEnv(make_task("reach", TaskOptions(pixels=True, image_size_px=32)), self.backend, cameras=rig)


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend("reach")


@pytest.fixture
def env(backend: RecordingBackend) -> RobotEnv:
    return RobotEnv(make_task("reach"), backend)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_registered_environments_pass_gymnasiums_checker(env_id: str) -> None:
    env = gymnasium.make(env_id)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        # Bounds scale the network's input and do not bound measurements, so the observation space is unbounded.
        warnings.filterwarnings("ignore", message=".*Box observation space.*")
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_what_is_recorded_is_what_was_sent(env: RobotEnv, backend: RecordingBackend) -> None:
    """Against the workspace's wall the gate shortens a step; the executed action must say so."""
    env.reset(seed=0)
    outward = np.array([1.0, 0.5, 0.0], np.float32)
    reasons: list[str] = []
    for _ in range(env.task.max_episode_steps):
        *_, info = env.step(outward)
        np.testing.assert_allclose(info["executed_action"], backend.sent[-1].delta_position / 0.02, atol=1e-6)
        if info["clip_reasons"]:
            reasons = list(info["clip_reasons"])
            assert info["executed_action"][0] < 0.9
            assert info["executed_action"][1] == pytest.approx(0.5)
            break
    assert reasons
    assert reasons[0].startswith("workspace")


def test_time_limit_truncates_and_success_terminates(env: RobotEnv) -> None:
    env.reset(seed=0)
    hold = np.zeros(3, np.float32)
    ends = [env.step(hold)[2:4] for _ in range(env.task.max_episode_steps)]
    assert ends[-1] == (False, True)
    assert set(ends[:-1]) == {(False, False)}

    env.reset(seed=0)
    operator = env.task.make_operator()
    while True:
        _, reward, terminated, truncated, info = env.step(operator.act(env.state, env.objects))
        if terminated or truncated:
            break
    assert (reward, terminated, truncated, info["is_success"]) == (1.0, True, False, True)


def test_the_arm_holds_while_the_control_loop_is_late(backend: RecordingBackend) -> None:
    """Steps computed from measurements that are several periods old must not reach a robot."""
    now_s = 0.0

    def sleep(duration_s: float) -> None:
        nonlocal now_s
        now_s += duration_s

    env = RobotEnv(make_task("reach"), backend, RateKeeper(0.1, 1.0, clock=lambda: now_s, sleep=sleep))
    env.reset(seed=0)
    action = np.ones(3, np.float32)
    for _ in range(HOLD_AFTER_LATE_PERIODS):
        now_s += 0.2  # a slow policy
        *_, info = env.step(action)
        assert info["clip_reasons"] == ()
    *_, info = env.step(action)  # in time again, but nobody knew before
    np.testing.assert_array_equal(info["executed_action"], np.zeros(3))
    assert (len(backend.sent), backend.stops) == (HOLD_AFTER_LATE_PERIODS, 1)
    assert info["clip_reasons"][0].startswith("overrun")
    *_, info = env.step(action)
    assert info["clip_reasons"] == ()


def test_a_broken_measurement_is_an_error_not_an_observation(
    env: RobotEnv, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    env.reset(seed=0)

    def broken(*_: Any) -> dict[str, Any]:
        return {"target": np.full((4, 4), np.nan)}

    monkeypatch.setattr(backend, "object_poses", broken)
    with pytest.raises(WireError, match=r"EE_to_target.*not finite"):
        env.step(np.zeros(3, np.float32))


def test_stepping_before_reset_says_so(env: RobotEnv) -> None:
    with pytest.raises(ConfigError, match="call reset"):
        env.step(np.zeros(3, np.float32))


def test_an_unknown_backend_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown robot backend 'twinn'.*Did you mean 'twin'.*fake, twin"):
        connect_backend("twinn", make_task("reach"))


def test_importing_twice_registers_once() -> None:
    before = gymnasium.registry["cgpo/Reach-v0"]
    actor.env._register()
    assert gymnasium.registry["cgpo/Reach-v0"] is before


def test_pixels_replace_the_objects_and_fit_the_declared_space() -> None:
    env = PixelEnv().env
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    assert set(observation) == {
        "O_p_EE", "O_rotvec_EE", "O_twist_EE", "gripper_width", "wrist", "third_person"
    }  # fmt: skip
    assert {
        name: (observation[name].dtype, observation[name].shape) for name in ("wrist", "third_person")
    } == dict.fromkeys(("wrist", "third_person"), (np.dtype(np.uint8), (32, 32, 3)))
    assert (observation["wrist"] == 50).all()
    assert (observation["third_person"] == 60).all()


def test_a_task_with_pixels_needs_cameras(backend: RecordingBackend) -> None:
    with pytest.raises(ConfigError, match="'reach' with pixels needs cameras"):
        RobotEnv(make_task("reach", TaskOptions(pixels=True)), backend)


def test_a_stale_image_is_flagged_in_its_step_and_too_old_a_one_stops_the_arm() -> None:
    pixel = PixelEnv()
    env, backend = pixel.env, pixel.backend
    env.reset(seed=0)
    action = np.zeros(3, np.float32)
    assert env.step(action)[-1]["stale_cameras"] == ()
    pixel.now_s = 0.3
    pixel.cameras["wrist"].arrived_s, pixel.cameras["wrist"].sequence = 0.3, 1
    assert env.step(action)[-1]["stale_cameras"] == ("third_person",)
    assert backend.stops == 0
    pixel.now_s = 0.6
    with pytest.raises(CameraStaleError, match="third_person"):
        env.step(action)
    assert backend.stops == 1


def test_the_video_frame_shows_what_the_policy_sees() -> None:
    env = PixelEnv().env
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (384, 1216, 3)
    assert all(size % 16 == 0 for size in frame.shape[:2])
    colours = [frame[y, x, 0] for y, x in ((0, 0), (383, 511), (0, 512), (383, 1023))]
    assert colours == [1, 1, 2, 2]
    assert (frame[:192, 1024:] == 50).all()
    assert (frame[192:, 1024:] == 60).all()


def test_on_a_robot_the_video_frame_is_what_the_policy_sees() -> None:
    env = PixelEnv().env
    env._world = None
    env._objects = {"target": np.eye(4)}  # what only a simulator knows; the task's verdict needs it
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (384, 192, 3)
    assert (frame[:192] == 50).all()
    assert (frame[192:] == 60).all()


def test_without_pixels_the_video_frame_has_no_room_for_them(env: RobotEnv) -> None:
    env.reset(seed=0)
    assert env.render().shape == (384, 1024, 3)
