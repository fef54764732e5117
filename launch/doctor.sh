#!/usr/bin/env bash
# Check this machine and all that is attached to it, before a run. All options: launch/doctor.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
case " $* " in
  *" --role learner "* | *" --role=learner "*) launch/setup.sh learner ;;
  *) launch/robot_pc.sh "$@" ;;
esac
source launch/env.sh
exec python -m actor.doctor "$@"
