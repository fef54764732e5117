"""Objects put in place around a simulated arm that moves on."""

import numpy as np
import pytest

from robot.backends.twin.osc import OscConfig
from robot.backends.twin.simulation import Simulation
from robot.errors import RobotError
from robot.geometry import CUBE_EDGE_M, PEG_LENGTH_M
from robot.interface import Array, ScenePlacement
from robot.pose import O_R_DOWN, make_pose, rotation_from_rotvec, translation

START = make_pose(O_R_DOWN, (0.5, 0.0, 0.3))
HOLE = translation(0.5, 0.02, 0.06)


def moving(scene: str, objects: dict[str, Array]) -> Simulation:
    """Return a simulation in the middle of a motion."""
    simulation = Simulation(scene, OscConfig())
    simulation.reset(ScenePlacement(O_T_EE=START, objects=objects))
    for _ in range(100):
        simulation.step(translation(0.05, 0.05, 0.05) @ START)
    assert np.abs(simulation.dq).max() > 0.05
    return simulation


def test_hole_and_peg_are_placed_while_the_arm_and_its_clock_go_on() -> None:
    simulation = moving("peg_in_hole", {"hole": HOLE, "peg": translation(0.0, 0.0, PEG_LENGTH_M)})
    q, dq, time_s = simulation.q.copy(), simulation.dq.copy(), simulation.time_s
    hole = make_pose(rotation_from_rotvec((0.0, 0.0, 0.3)), (0.45, -0.03, 0.06))
    EE_T_peg = make_pose(rotation_from_rotvec((0.02, 0.0, 0.0)), (0.001, 0.0, PEG_LENGTH_M))
    simulation.place_objects(ScenePlacement(O_T_EE=START, objects={"hole": hole, "peg": EE_T_peg}))
    np.testing.assert_array_equal(simulation.q, q)
    np.testing.assert_array_equal(simulation.dq, dq)
    assert simulation.time_s == time_s
    np.testing.assert_allclose(simulation.object_pose("hole"), hole, atol=1e-9)
    np.testing.assert_allclose(simulation.object_pose("peg"), simulation.O_T_EE() @ EE_T_peg, atol=1e-9)


def test_a_placed_scene_behaves_as_one_that_was_built_so() -> None:
    """The contact solver's constants follow the peg: the same push against the table gives the same force."""
    EE_T_peg = make_pose(rotation_from_rotvec((0.0, 0.1, 0.0)), (0.002, 0.0, PEG_LENGTH_M))
    over_table = make_pose(O_R_DOWN, (0.5, 0.2, PEG_LENGTH_M + 0.01))
    wanted = ScenePlacement(O_T_EE=over_table, objects={"hole": HOLE, "peg": EE_T_peg})
    built, placed = Simulation("peg_in_hole", OscConfig()), Simulation("peg_in_hole", OscConfig())
    built.reset(wanted)
    placed.reset(ScenePlacement(O_T_EE=over_table, objects={"hole": HOLE, "peg": translation(0, 0, PEG_LENGTH_M)}))
    placed.place_objects(wanted)
    for _ in range(300):
        for simulation in (built, placed):
            simulation.step(translation(0.0, 0.0, -0.03) @ over_table)
    assert built.external_wrench()[2] > 1.0
    np.testing.assert_allclose(placed.external_wrench(), built.external_wrench(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(placed.q, built.q, atol=1e-9)


def test_a_refused_placement_changes_nothing() -> None:
    on_table = CUBE_EDGE_M / 2
    objects = {"cube_top": translation(0.4, -0.1, on_table), "cube_bottom": translation(0.4, 0.1, on_table)}
    simulation, untouched = moving("cube_stacking", objects), moving("cube_stacking", objects)
    in_the_hand = simulation.O_T_EE() @ translation(0.0, 0.03, 0.0)
    with pytest.raises(RobotError, match=r"would put cube_top and .*_finger [\d.]+ mm into each other \(limit 1 mm\)"):
        simulation.place_objects(ScenePlacement(O_T_EE=START, objects={**objects, "cube_top": in_the_hand}))
    for _ in range(100):
        simulation.step(START)
        untouched.step(START)
    np.testing.assert_array_equal(simulation.data.qpos, untouched.data.qpos)
    np.testing.assert_array_equal(simulation.data.qvel, untouched.data.qvel)


def test_joint_angles_are_followed_closely_and_held_against_gravity() -> None:
    simulation = moving("reach", {"target": translation(0.5, 0.0, 0.3)})
    start, goal = simulation.q.copy(), simulation.q + 0.2
    for index in range(500):
        share = index / 500
        simulation.step_joints(start + share * (goal - start), (goal - start) / 1.0)
        if index > 200:
            assert np.abs(simulation.q - (start + share * (goal - start))).max() < 0.01
    for _ in range(500):
        simulation.step_joints(goal, np.zeros(7))
    assert np.abs(simulation.q - goal).max() < 1e-4
