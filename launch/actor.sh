#!/usr/bin/env bash
# Start the actor on the robot PC. All options: launch/actor.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
launch/robot_pc.sh "$@"
source launch/env.sh
exec python -m actor "$@"
