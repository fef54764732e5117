#!/usr/bin/env bash
# Evaluate a policy, or two against each other, on the robot PC. All options: launch/evaluate.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
launch/robot_pc.sh "$@"
source launch/env.sh
exec python -m actor.evaluate "$@"
