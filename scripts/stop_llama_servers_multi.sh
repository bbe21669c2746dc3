#!/usr/bin/env bash
# Stops what run_llama_servers_multi.sh has started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ ! -d .venv ] || PATH="$PWD/.venv/bin:$PATH"

exec corral engine stop "$@"
