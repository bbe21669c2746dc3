#!/usr/bin/env bash
# Runs one llama-server for MODEL_PATH at LLAMA_BASE_URL, in the foreground.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ ! -d .venv ] || PATH="$PWD/.venv/bin:$PATH"

exec corral engine run "$@"
