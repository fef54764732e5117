#!/usr/bin/env bash
# Regenerate the committed protobuf code. Usage: launch/generate_proto.sh [OUTPUT_ROOT]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-proto}
python=${PYTHON:-.venv/bin/python}
"$python" -m grpc_tools.protoc -I proto --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" cgpo_proto/link.proto
