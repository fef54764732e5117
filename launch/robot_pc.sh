#!/usr/bin/env bash
# Set up the machine of an actor that is started with these arguments. A robot needs no simulator: it is installed
# unless the arguments, or the preset that they name, choose the backend deoxys.
set -euo pipefail
cd "$(dirname "$0")/.."

last_value() { # Usage: last_value OPTION ARGUMENT... Prints what OPTION was last given, as --option X or --option=X.
  local option=$1 value="" argument previous=""
  shift
  for argument; do
    if [[ $previous == "$option" ]]; then value=$argument; fi
    if [[ $argument == "$option="* ]]; then value=${argument#*=}; fi
    previous=$argument
  done
  printf '%s' "$value"
}

backend=$(last_value --backend "$@")
preset=$(last_value --preset "$@")
for file in "$preset" "launch/presets/$preset.toml"; do
  if [[ -z $backend && -f $file ]]; then
    backend=$(sed -nE 's/^backend *= *"([^"]*)".*/\1/p' "$file")
  fi
done
if [[ $backend == deoxys ]]; then
  exec launch/setup.sh robot
fi
exec launch/setup.sh robot sim
