"""Deoxys' own YAML files, as a lab has them."""

from pathlib import Path

import pytest

from robot.backends.deoxys.config import load_network, load_osc_gains
from robot.backends.deoxys.messages import Interpolator, OscGains
from robot.backends.deoxys.options import DeoxysOptions
from robot.errors import RobotConfigError

NETWORK = """
PC:
  NAME: "desk"
  IP: 10.0.0.1
NUC:
  NAME: "nuc"
  IP: 10.0.0.3
  PUB_PORT: 6556
  SUB_PORT: 6555
  GRIPPER_PUB_PORT: 6558
  GRIPPER_SUB_PORT: 6557
ROBOT:
  IP: 10.0.0.2
CONTROL:
  STATE_PUBLISHER_RATE: 100
  POLICY_RATE: 10
  TRAJ_RATE: 500
  ZMQ_NOBLOCK: true
ARM_LOGGER:
  CONSOLE: {LOGGER_NAME: "arm_logger", LEVEL: "info", USE: true}
"""
CONTROLLER = """
controller_type: OSC_POSE
is_delta: true
traj_interpolator_cfg:
  traj_interpolator_type: MIN_JERK_POSE
  time_fraction: 0.4
Kp:
  translation: [100.0, 110, 120.0]
  rotation: 200
action_scale:
  translation: 0.05
  rotation: 1.0
residual_mass_vec: [0.0, 0.0, 0.0, 0.0, 0.2, 0.3, 0.4]
state_estimator_cfg:
  is_estimation: true
  state_estimator_type: EXPONENTIAL_SMOOTHING
  alpha_q: 0.8
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "file.yml"
    path.write_text(text)
    return path


def test_a_network_file_names_the_ports_from_the_nucs_side(tmp_path: Path) -> None:
    network = load_network(written(tmp_path, NETWORK))
    assert (network.nuc_ip, network.pc_ip) == ("10.0.0.3", "10.0.0.1")
    assert (network.command_port, network.state_port) == (6555, 6556)
    assert (network.gripper_command_port, network.gripper_state_port) == (6557, 6558)
    assert (network.state_rate_hz, network.policy_rate_hz) == (100.0, 10.0)


def test_a_controller_file_sets_the_gains_and_deoxys_defaults_fill_the_rest(tmp_path: Path) -> None:
    assert load_osc_gains(written(tmp_path, CONTROLLER)) == OscGains(
        translational_stiffness=(100.0, 110.0, 120.0),
        rotational_stiffness=(200.0, 200.0, 200.0),
        residual_mass=(0.0, 0.0, 0.0, 0.0, 0.2, 0.3, 0.4),
        interpolator=Interpolator.MIN_JERK_POSE,
        time_fraction=0.4,
        is_estimation=True,
        smoothing=(0.8, 0.9, 1.0, 1.0),
    )
    assert load_osc_gains(written(tmp_path, "controller_type: OSC_POSE")) == load_osc_gains(None) == OscGains()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SUB_PORT: 6555", "SUB_PORT: x", r"NUC\.SUB_PORT = 'x' is not a port number"),
        ("SUB_PORT: 6555", "SUB_PORT: 6556", r"four ports .* are not all different"),
        ("IP: 10.0.0.3", "", r"NUC\.IP is missing"),
        ("POLICY_RATE: 10", "POLICY_RATE: 0", r"CONTROL\.POLICY_RATE = 0 is not a number from 1 to 1000"),
        ("CONTROL:", "CONTROL: 3\nOTHER:", r"CONTROL is 3, not a mapping"),
        ("NUC:", "NUC: [", "is not YAML"),
    ],
)
def test_a_wrong_network_file_is_named_with_key_value_and_remedy(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in NETWORK
    with pytest.raises(RobotConfigError, match=rf"(?s)file\.yml.*{message}.*deoxys\.network.*charmander\.yml"):
        load_network(written(tmp_path, NETWORK.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("OSC_POSE", "JOINT_IMPEDANCE", "controller_type is JOINT_IMPEDANCE, and only OSC_POSE"),
        ("rotation: 200", "rotation: [200.0]", r"Kp\.rotation = \[200\.0\] is not a list of 3 numbers, or one for all"),
        ("rotation: 200", "rotation: -1", r"Kp\.rotation = -1 is not a number from 0\.001 to inf"),
        ("0.4]", ".nan]", r"residual_mass_vec = nan"),
        ("MIN_JERK_POSE", "LINEAR_JOINT_POSITION", "LINEAR_JOINT_POSITION is none for poses: LINEAR_POSE"),
        ("time_fraction: 0.4", "time_fraction: 3", r"traj_interpolator_cfg\.time_fraction = 3"),
        ("is_estimation: true", "is_estimation: maybe", r"is_estimation = 'maybe' is neither true nor false"),
    ],
)
def test_a_wrong_controller_file_is_named_with_key_value_and_remedy(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in CONTROLLER
    with pytest.raises(RobotConfigError, match=rf"(?s)file\.yml.*{message}.*deoxys\.controller.*osc-pose"):
        load_osc_gains(written(tmp_path, CONTROLLER.replace(old, new, 1)))


def test_a_missing_file_is_named_with_the_option_that_points_to_it(tmp_path: Path) -> None:
    with pytest.raises(RobotConfigError, match=r"nowhere\.yml cannot be read: No such file.*deoxys\.network"):
        load_network(tmp_path / "nowhere.yml")


def test_options_that_make_no_sense_are_refused_with_their_value() -> None:
    with pytest.raises(RobotConfigError, match=r"home_q = .*0\.1 rad inside the joint limits"):
        DeoxysOptions(home_q=(0.0, 1.7, 0.0, -2.2, 0.0, 2.4, 0.8))
    with pytest.raises(RobotConfigError, match=r"reset_max_force_n = 150\.0 must be in \(0, 100\]"):
        DeoxysOptions(reset_max_force_n=150.0)
    with pytest.raises(RobotConfigError, match=r"stale_after_s = 0\.5"):
        DeoxysOptions(stale_after_s=0.5)
