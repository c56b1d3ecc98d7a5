#!/usr/bin/env bash
cd "$(dirname "${BASH_SOURCE[0]}")/../.." && PATH="$PWD/.venv/bin:$PWD/.conda/bin:$PATH" || exit
[ -d data/digits ] || python build_dataset.py --source digits --data_dir data/digits || exit
exec python search_hyperparams.py --data_dir data/digits --parent_dir experiments/tune_lr "$@"
