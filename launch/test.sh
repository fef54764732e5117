#!/usr/bin/env bash
# Every check of this repository, in the order of their speed; the first failure ends it. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
launch/setup.sh learner robot sim dev
source launch/env.sh

step() {
  local name=$1 started=$SECONDS
  shift
  printf '== %s\n' "$name"
  "$@" || { printf '== %s FAILED: %s\n' "$name" "$*" >&2; exit 1; }
  printf '== %s passed in %d s\n\n' "$name" $((SECONDS - started))
}

step "lint" ruff check .
step "format" ruff format --check .
step "types" mypy
step "import contracts" lint-imports --no-logo
step "known vulnerabilities" python -m launch.audit
step "tests" pytest "$@"
