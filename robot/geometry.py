"""Sizes of the objects that simulated scenes and tasks agree on. Metres."""

PEG_RADIUS_M = 0.012
HOLE_RADIUS_M = 0.013  # 1 mm radial clearance
HOLE_DEPTH_M = 0.03
PEG_LENGTH_M = 0.07  # from the EE frame's origin between the finger tips to the peg's tip, nominal in-hand pose

CUBE_EDGE_M = 0.045
GRIPPER_OPEN_M = 0.085  # Robotiq 2F-85 data sheet: its stroke
GRIPPER_SPEED_M_S = 0.15  # of the width; 2F-85 data sheet: 0.02 to 0.15
FINGER_TIP_M = 0.015  # from EE's origin to the end of the tips, with the pads a cube's edge apart
