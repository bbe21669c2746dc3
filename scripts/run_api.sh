#!/usr/bin/env bash
# Starts the gateway as .env, corral.yaml and the environment say; arguments go to `corral serve`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ ! -d .venv ] || PATH="$PWD/.venv/bin:$PATH"

exec corral serve "$@"
