#!/usr/bin/env bash
# Record demonstrations on the robot PC. All options: launch/record.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
launch/robot_pc.sh "$@"
source launch/env.sh
exec python -m actor.record "$@"
