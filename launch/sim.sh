#!/usr/bin/env bash
# Train on the simulated robot: learner and actor on this machine, then a report. All options: launch/sim.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup.sh learner robot sim
source launch/env.sh
exec python -m launch.sim "$@"
