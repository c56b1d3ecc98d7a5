#!/usr/bin/env bash
# Set up what the kit needs. A second run takes seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'TEXT'
./setup.sh [--torch default|cpu|existing] [--no-venv] [--conda] [--dev] [--dataset NAME]

  --torch default    torch and torchvision from the ordinary package index (on Linux: with CUDA)
  --torch cpu        the CPU builds, much smaller (through uv, which knows where they are)
  --torch existing   use the torch that this machine's Python has (clusters, Colab)
  --no-venv          install into the current Python instead of .venv
  --conda            a conda environment in .conda, from environment.yml
  --dev              also what the tests need
  --dataset NAME     also build data/NAME (digits, cifar10, mnist, ...)
TEXT
}

fail() { echo "error: $*" >&2; exit 2; }

torch=default venv=1 conda=0 dev=0 dataset=
while [ $# -gt 0 ]; do
    case "$1" in
        --torch) torch="${2:-}"; shift; case "$torch" in default | cpu | existing) ;; *) fail "--torch: default, cpu or existing is wanted" ;; esac ;;
        --no-venv) venv=0 ;;
        --conda) conda=1 ;;
        --dev) dev=1 ;;
        --dataset) dataset="${2:-}"; [ -n "$dataset" ] || fail "--dataset needs a name"; shift ;;
        -h | --help) usage; exit 0 ;;
        *) fail "setup.sh: unknown flag $1; see ./setup.sh --help" ;;
    esac
    shift
done
# shellcheck source=/dev/null
[ ! -f env.sh ] || . ./env.sh

find_python() {
    for name in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
        [ -n "$name" ] && command -v "$name" >/dev/null || continue
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$name"; return; }
    done
    return 1
}

if [ "$conda" = 1 ]; then
    command -v conda >/dev/null || fail "--conda: conda is not installed; leave --conda out to use a virtual environment"
    [ -d .conda ] && verb=update || verb=create
    conda env "$verb" --prefix ./.conda --file environment.yml
    python=.conda/bin/python
elif [ "$venv" = 1 ]; then
    if [ ! -x .venv/bin/python ]; then
        base="$(find_python)" || fail "Python 3.11 or newer is wanted and was not found (PYTHON=/path/to/python ./setup.sh names one)"
        flags=(); [ "$torch" != existing ] || flags=(--system-site-packages)
        "$base" -m venv "${flags[@]+"${flags[@]}"}" .venv || fail "$base cannot make a virtual environment (on Debian: apt install python3-venv)"
    fi
    python=.venv/bin/python
else
    python="$(find_python)" || fail "Python 3.11 or newer is wanted and was not found"
fi

files=(requirements.txt); [ "$dev" = 0 ] || files+=(requirements-dev.txt)
stamp="$("$python" -c 'import sys; print(sys.prefix)')/.experiment-folders-$dev"
digest="$(cat "${files[@]}" | cksum) $torch"
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$digest" ]; then
    wanted="$(mktemp)"; trap 'rm -f "$wanted"' EXIT
    cat "${files[@]}" > "$wanted"
    have_torch() { "$python" -c 'import torch, torchvision' 2>/dev/null; }
    if [ "$torch" = existing ]; then
        have_torch || fail "--torch existing: this Python has no torch and torchvision"
    elif [ "$torch" = cpu ]; then
        "$python" -m pip install --quiet --disable-pip-version-check uv
        "$python" -m uv pip install --quiet --python "$python" --torch-backend cpu torch torchvision ||
            fail "--torch cpu: the CPU builds cannot be reached; ./setup.sh --torch default takes the ordinary ones"
    fi
    if [ "$torch" != default ] || { [ "$venv" = 0 ] && have_torch; }; then
        sed -i.bak -E '/^(torch|torchvision)==/d' "$wanted"; rm -f "$wanted.bak"
    fi
    echo "installing (a few minutes the first time) ..."
    "$python" -m pip install --quiet --disable-pip-version-check -r "$wanted"
    echo "$digest" > "$stamp" 2>/dev/null || true
fi
if [ -n "$dataset" ]; then
    "$python" build_dataset.py --source "$dataset" --data_dir "data/$dataset"
fi
