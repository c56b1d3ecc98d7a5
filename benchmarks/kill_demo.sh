#!/usr/bin/env bash
# Nothing lost: a quickstart killed three times with kill -9 gives the same bytes as one that was left alone.
#   benchmarks/kill_demo.sh
# About a minute. Writes to a temporary folder alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[ -x "$python" ] || python=python
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$python" build_dataset.py --source digits --data_dir "$work/digits" >/dev/null
for name in alone killed; do
    mkdir "$work/$name"
    cp experiments/quickstart/params.json "$work/$name/"
done
train() { "$python" train.py --data_dir "$work/digits" --model_dir "$work/$1" --checkpoint_minutes=0.005 >>"$work/$1.txt" 2>&1; }

echo "left alone ..."
train alone
for kill in 1 2 3; do
    train killed &
    pid=$!
    epochs=$((kill * 4))
    # Somewhere in the epoch after the one that has just been written down.
    until [ -f "$work/killed/history.csv" ] && [ "$(wc -l <"$work/killed/history.csv")" -gt "$epochs" ]; do sleep 0.05; done
    sleep "0.$((RANDOM % 4))"
    pkill -9 -P "$pid" 2>/dev/null || true
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
    echo "killed  $(tail -1 "$work/killed/history.csv" | cut -d, -f1,2 | sed 's/\(.*\),\(.*\)/after epoch \1, step \2/')"
done
echo "finishing ..."
train killed
grep -h "continuing at" "$work/killed/train.log" | sed 's/^[^ ]* [^ ]* /        /'
echo
for name in alone killed; do
    (cd "$work/$name" && sha256sum weights/best.safetensors weights/last.safetensors metrics_val_best_weights.json |
        sed "s/^\(.\{16\}\)[^ ]*/$name	\1/")
    cut -d, -f1-7 "$work/$name/history.csv" | sha256sum | sed "s/^\(.\{16\}\).*/$name	\1  history without seconds/"
done
cmp "$work/alone/weights/best.safetensors" "$work/killed/weights/best.safetensors"
cmp "$work/alone/weights/last.safetensors" "$work/killed/weights/last.safetensors"
echo "byte-identical"
