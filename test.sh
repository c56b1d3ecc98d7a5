#!/usr/bin/env bash
# Set up and run the tests: what CI runs. Arguments go to pytest; ./test.sh -m slow runs the long proofs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./setup.sh --dev
# shellcheck source=/dev/null
[ ! -f env.sh ] || . ./env.sh
export OMP_NUM_THREADS=1
if [ $# -eq 0 ]; then
    set -- -m "not slow" -n 2 --dist loadfile
fi
exec .venv/bin/python -m pytest -q "$@"
