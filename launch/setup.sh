#!/usr/bin/env bash
# Create or update .venv with the versions of constraints.txt. Usage: launch/setup.sh [learner] [robot] [sim] [cluster] [dev]
# Returns at once when nothing changed. Set PYTHON to choose the interpreter (3.11 or 3.12).
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/setup.stamp
log=.venv/setup.log

say() { printf 'set-up: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.11 python3.12; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "needs Python 3.11 or 3.12, found $(python3 --version 2>&1 || true). Install one: sudo apt-get install python3.11 python3.11-venv"
}

# Install Debian packages where we may, else print the one command. Usage: debian_packages PURPOSE PACKAGE...
debian_packages() {
  local purpose=$1
  shift
  if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    say "installing Debian packages for $purpose: $*"
    if { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } >>"$log" 2>&1; then
      return
    fi
    say "that failed; see $log"
  fi
  say "$purpose needs: sudo apt-get install $*"
}

can_draw() {
  local libraries
  libraries=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p)
  grep -q 'libEGL\.so\.1' <<<"$libraries" || return 1
  grep -q 'libEGL_nvidia' <<<"$libraries" && return
  grep -q 'libEGL_mesa' <<<"$libraries" && compgen -G '/usr/lib/*/dri/*swrast_dri.so' >/dev/null
}

can_load() { # Usage: can_load LIBRARY...
  local libraries library
  libraries=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p)
  for library; do grep -qF "$library" <<<"$libraries" || return 1; done
}

# evdev, for gamepads and among gym-hil's dependencies, is compiled on installation. So is policy/fast/native.c, which pip
# leaves out where that fails: updates on a CPU then take longer.
can_compile() {
  command -v gcc >/dev/null && [[ -e /usr/include/linux/input.h ]] &&
    [[ -e $(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]]
}

mkdir -p .venv
exec 9>.venv/setup.lock
flock 9 # a learner and an actor may be started at the same moment

# Of all that an installation depends on; what is compiled is compiled again when there is a compiler at last.
fingerprint() {
  local compiler=none
  can_compile && compiler=gcc
  printf '%s %s %s' "$(cat pyproject.toml constraints.txt policy/fast/native*.[ch] | sha256sum | cut -c1-16)" "$compiler" "$PWD"
}

installed=""
[[ -e $stamp ]] && installed=$(sed -n 2p "$stamp")
extras=$(printf '%s\n' $installed "$@" | sort -u | xargs)
if [[ -x .venv/bin/python && -e $stamp && $(<"$stamp") == "$(fingerprint)"$'\n'"$extras" ]]; then
  exit 0
fi

started=$SECONDS
rm -f "$stamp"
if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
  python=$(find_python)
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module. Install it: sudo apt-get install python3-venv"
  say "creating .venv with $("$python" --version)"
  "$python" -m venv .venv
fi
can_compile || debian_packages "what is compiled" gcc libc6-dev linux-libc-dev python3-dev
if [[ " $extras " == *" sim "* ]]; then
  can_draw || debian_packages "drawing videos" libegl1 libegl-mesa0 libgl1-mesa-dri
fi
if [[ " $extras " == *" robot "* ]]; then
  can_load libusb-1.0.so.0 || debian_packages "RealSense cameras" libusb-1.0-0
  can_load libhidapi-hidraw.so.0 || debian_packages "a SpaceMouse" libhidapi-hidraw0
fi
say "installing pinned packages${extras:+ for $extras}; the first time takes some minutes (details: $log)"
.venv/bin/python -m pip install -c constraints.txt -e ".${extras:+[${extras// /,}]}" >>"$log" 2>&1 || {
  tail -n 15 "$log" >&2
  fail "pip could not install the packages; the whole log is $log"
}
printf '%s\n%s\n' "$(fingerprint)" "$extras" >"$stamp"
say "done in $((SECONDS - started)) s"
