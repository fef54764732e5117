"""The simulated Franka: MuJoCo physics, operational-space control, drawing. Only this folder imports mujoco."""
