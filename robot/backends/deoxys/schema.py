"""Deoxys' protobuf schema, built in a descriptor pool of its own.

Deoxys' message names have no package, so that a second copy in the default pool (Deoxys' own generated code, in the
same process) would be refused. Only fields in use are declared; the others are skipped. Enumerations are declared as
int32, which is the same on the wire.
"""

from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

# libfranka's errors, in the order of their field numbers from 1.
ERROR_NAMES = (
    "joint_position_limits_violation",
    "cartesian_position_limits_violation",
    "self_collision_avoidance_violation",
    "joint_velocity_violation",
    "cartesian_velocity_violation",
    "force_control_safety_violation",
    "joint_reflex",
    "cartesian_reflex",
    "max_goal_pose_deviation_violation",
    "max_path_pose_deviation_violation",
    "cartesian_velocity_profile_safety_violation",
    "joint_position_motion_generator_start_pose_invalid",
    "joint_motion_generator_position_limits_violation",
    "joint_motion_generator_velocity_limits_violation",
    "joint_motion_generator_velocity_discontinuity",
    "joint_motion_generator_acceleration_discontinuity",
    "cartesian_position_motion_generator_start_pose_invalid",
    "cartesian_motion_generator_elbow_limit_violation",
    "cartesian_motion_generator_velocity_limits_violation",
    "cartesian_motion_generator_velocity_discontinuity",
    "cartesian_motion_generator_acceleration_discontinuity",
    "cartesian_motion_generator_elbow_sign_inconsistent",
    "cartesian_motion_generator_start_elbow_invalid",
    "cartesian_motion_generator_joint_position_limits_violation",
    "cartesian_motion_generator_joint_velocity_limits_violation",
    "cartesian_motion_generator_joint_velocity_discontinuity",
    "cartesian_motion_generator_joint_acceleration_discontinuity",
    "cartesian_position_motion_generator_invalid_frame",
    "force_controller_desired_force_tolerance_violation",
    "controller_torque_discontinuity",
    "start_elbow_sign_inconsistent",
    "communication_constraints_violation",
    "power_limit_violation",
    "joint_p2p_insufficient_torque_for_planning",
    "tau_j_range_violation",
    "instability_detected",
    "joint_move_in_wrong_direction",
)

# Message -> field -> (number, type). A trailing * marks a repeated field; what is not a scalar is a message.
_SCHEMA: dict[str, dict[str, tuple[int, str]]] = {
    "Goal": {"is_delta": (1, "bool")} | {n: (i, "double") for i, n in enumerate(("x", "y", "z", "ax", "ay", "az"), 2)},
    "JointGoal": {"is_delta": (1, "bool")} | {f"q{joint}": (joint + 1, "double") for joint in range(1, 8)},
    "ExponentialSmoothingConfig": {
        name: (number, "double") for number, name in enumerate(("alpha_q", "alpha_dq", "alpha_eef", "alpha_eef_vel"), 1)
    },
    "FrankaStateEstimatorMessage": {
        "is_estimation": (1, "bool"),
        "estimator_type": (2, "int32"),
        "config": (5, "google.protobuf.Any"),
    },
    "FrankaOSCControllerConfig": {"residual_mass_vec": (1, "double*")},
    "FrankaOSCPoseControllerMessage": {
        "goal": (1, "Goal"),
        "translational_stiffness": (2, "double*"),
        "rotational_stiffness": (3, "double*"),
        "termination": (4, "bool"),
        "config": (5, "FrankaOSCControllerConfig"),
    },
    "FrankaJointPositionControllerMessage": {"goal": (1, "JointGoal"), "speed_factor": (4, "double")},
    "FrankaDummyControllerMessage": {"goal": (1, "Goal"), "termination": (2, "bool")},
    "FrankaControlMessage": {
        "termination": (1, "bool"),
        "controller_type": (2, "int32"),
        "traj_interpolator_type": (3, "int32"),
        "traj_interpolator_time_fraction": (4, "double"),
        "control_msg": (5, "google.protobuf.Any"),
        "timeout": (6, "double"),
        "state_estimator_msg": (7, "FrankaStateEstimatorMessage"),
    },
    "FrankaGripperHomingMessage": {"homing": (1, "bool")},
    "FrankaGripperMoveMessage": {"width": (1, "double"), "speed": (2, "double")},
    "FrankaGripperStopMessage": {"stop": (1, "bool")},
    "FrankaGripperGraspMessage": {
        "width": (1, "double"),
        "speed": (2, "double"),
        "force": (3, "double"),
        "epsilon_inner": (4, "double"),
        "epsilon_outer": (5, "double"),
    },
    "FrankaGripperControlMessage": {"termination": (1, "bool"), "control_msg": (2, "google.protobuf.Any")},
    "Duration": {"toSec": (1, "double"), "toMSec": (2, "uint64")},
    "Errors": {name: (number, "bool") for number, name in enumerate(ERROR_NAMES, 1)},
    "FrankaGripperStateMessage": {
        "width": (1, "double"),
        "max_width": (2, "double"),
        "is_grasped": (3, "bool"),
        "temperature": (4, "uint32"),
        "time": (5, "Duration"),
    },
    "FrankaRobotStateMessage": {
        "O_T_EE": (1, "double*"),
        "O_T_EE_d": (2, "double*"),
        "F_T_EE": (3, "double*"),
        "tau_J": (21, "double*"),
        "q": (24, "double*"),
        "q_d": (25, "double*"),
        "dq": (26, "double*"),
        "O_F_ext_hat_K": (34, "double*"),
        "K_F_ext_hat_K": (35, "double*"),
        "current_errors": (42, "Errors"),
        "last_motion_errors": (43, "Errors"),
        "control_command_success_rate": (44, "double"),
        "robot_mode": (45, "int32"),
        "time": (46, "Duration"),
        "frame": (48, "uint64"),
    },
}


def _message_classes() -> dict[str, Any]:
    field_type = descriptor_pb2.FieldDescriptorProto
    scalars = {
        "double": field_type.TYPE_DOUBLE,
        "bool": field_type.TYPE_BOOL,
        "int32": field_type.TYPE_INT32,
        "uint32": field_type.TYPE_UINT32,
        "uint64": field_type.TYPE_UINT64,
    }
    file = descriptor_pb2.FileDescriptorProto(name="deoxys.proto", syntax="proto3")
    file.dependency.append(any_pb2.DESCRIPTOR.name)
    for message_name, fields in _SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for name, (number, declared) in fields.items():
            kind = declared.rstrip("*")
            label = field_type.LABEL_REPEATED if declared.endswith("*") else field_type.LABEL_OPTIONAL
            field = message.field.add(name=name, number=number, label=label)
            field.type = scalars.get(kind, field_type.TYPE_MESSAGE)
            if kind not in scalars:
                field.type_name = f".{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in _SCHEMA}


MESSAGES: dict[str, Any] = _message_classes()  # by Deoxys' name for them
