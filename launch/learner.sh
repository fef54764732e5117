#!/usr/bin/env bash
# Start the learner on the workstation: one process takes in transitions, one trains. All options: launch/learner.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup.sh learner
source launch/env.sh
exec python -m learner "$@"
