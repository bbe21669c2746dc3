#!/usr/bin/env bash
# Starts a llama-server in the background for each model of MODEL_PATHS that is enabled, and waits until all are ready.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ ! -d .venv ] || PATH="$PWD/.venv/bin:$PATH"

exec corral engine start "$@"
