# Sourced by the launchers, from the repository root: the environment of every process.
export PATH="$PWD/.venv/bin:$PATH"
export PYTHONUNBUFFERED=1               # episode lines appear when they happen, also through a pipe
export MUJOCO_GL="${MUJOCO_GL:-egl}"    # draws without a display
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # small networks: more threads only fight over the cores
export GRPC_ENABLE_FORK_SUPPORT=0       # we fork only to start other programs, which needs none and warns otherwise
