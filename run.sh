#!/usr/bin/env bash
# Set up, train, evaluate, and print the table.
#   ./run.sh                                   digits, experiments/quickstart
#   ./run.sh --data_dir D --model_dir M ...    anything that train.py takes
#   ./run.sh --detach [...]                    in the background, with TensorBoard on 127.0.0.1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

detach=0 words=()
for word in "$@"; do
    case "$word" in
        --detach) detach=1 ;;
        -h | --help) sed -n '2,5p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//'; exit 0 ;;
        *) words+=("$word") ;;
    esac
done
./setup.sh
# shellcheck source=/dev/null
[ ! -f env.sh ] || . ./env.sh
python=.venv/bin/python
[ ! -x .conda/bin/python ] || [ -x "$python" ] || python=.conda/bin/python

value_of() { # value_of FLAG -> its value among the words, or nothing
    local number
    for number in "${!words[@]}"; do
        case "${words[$number]}" in
            "$1") echo "${words[$((number + 1))]:-}"; return ;;
            "$1="*) echo "${words[$number]#*=}"; return ;;
        esac
    done
}

if [ ${#words[@]} -eq 0 ]; then
    "$python" build_dataset.py --source digits --data_dir data/digits
    words=(--data_dir data/digits --model_dir experiments/quickstart)
fi
model_dir="$(value_of --model_dir)"
[ -n "$model_dir" ] || model_dir="${words[0]}"

everything() {
    "$python" train.py "${words[@]}"
    data_dir="$(value_of --data_dir)"
    split="test"
    [ -z "$data_dir" ] || [ -d "$data_dir/test" ] || split=valid
    "$python" evaluate.py ${data_dir:+--data_dir "$data_dir"} --model_dir "$model_dir" --split "$split"
    "$python" synthesize_results.py "$model_dir"
}

if [ "$detach" = 0 ]; then
    everything
    exit
fi

mkdir -p logs
name="$(basename "$model_dir")"
log="logs/$name.log"
export -f everything value_of
# A function cannot be started with nohup: the words travel as arguments of a small shell.
nohup setsid bash -c 'set -euo pipefail; python="$1"; model_dir="$2"; shift 2; words=("$@"); everything' \
    run "$python" "$model_dir" "${words[@]}" >"$log" 2>&1 </dev/null &
train_pid=$!
echo "$train_pid" >"logs/$name.pid"
port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
nohup setsid "$python" -m tensorboard.main --logdir "$model_dir" --host 127.0.0.1 --port "$port" \
    >"logs/$name.tensorboard.log" 2>&1 </dev/null &
board_pid=$!
echo "$board_pid" >"logs/$name.tensorboard.pid"
cat <<TEXT
training in the background: $model_dir
follow    tail -f $(printf %q "$log")
curves    http://127.0.0.1:$port
stop      kill -- -$train_pid      (saved; the same command continues)
          kill $board_pid       (TensorBoard)
TEXT
