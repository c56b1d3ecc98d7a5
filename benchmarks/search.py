"""Many short trainings: the search's warm pool, a process for each, and Ray Tune, two at a time.

    python benchmarks/search.py --data_dir data/digits --rounds 3

trivial: 24 trainings of a few steps, where only the overhead before and after them counts. Ray Tune calls the
same train.py in its own processes (it needs `ray[tune]`; without it that column is left out).
real: 12 trainings of a small net; two at a time with one thread each against one after another with two threads.
"""

import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from harness import ROOT, Report, against, alternate, arguments, link_images, python, ratio, spread

TRIVIAL = {"arch": "lenet", "im_sz": 28, "batch_size": 32, "num_epochs": 1, "observers": [], "threads": 1}
REAL = {"arch_args": {"n_filters": 8}, "num_epochs": 6, "observers": []}
POOL, PROCESSES, TUNE = "warm pool", "a process per trial", "Ray Tune"
PARALLEL, ONE_BY_ONE = "two at a time, a thread each", "one after another, two threads"

TUNE_CODE = """
import json, os, sys
from pathlib import Path
import ray
from ray import tune

root, data, work, num = sys.argv[1:4] + [int(sys.argv[4])]

def trial(config):
    import signal
    signal.signal = lambda *_: None  # Ray Tune calls this in a thread, where no handler can be set
    sys.path.insert(0, root)
    import train
    folder = Path(work) / f"t{config['number']}"
    train.main(["--data_dir", data, "--model_dir", str(folder)])
    tune.report({"done": 1})

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
tuner = tune.Tuner(tune.with_resources(trial, {"cpu": 1}), param_space={"number": tune.grid_search(list(range(num)))},
                   tune_config=tune.TuneConfig(max_concurrent_trials=2),
                   run_config=tune.RunConfig(storage_path=work + "/tune", verbose=0))
found = tuner.fit()
assert len(found) == num and not found.errors, found.errors
"""


def rates(num: int) -> list[float]:
    return [round(0.001 * (1 + number), 4) for number in range(num)]


def write_parent(folder: Path, params: dict, num: int, parallel: int) -> Path:
    folder.mkdir(parents=True)
    space = {"hyper_search": {"learning_rate": rates(num)}, "search": {"parallel": parallel}}
    (folder / "params.json").write_text(json.dumps(params | space))
    return folder


def write_children(folder: Path, params: dict, num: int) -> list[Path]:
    children = [folder / f"t{number}" for number in range(num)]
    for child, rate in zip(children, rates(num), strict=True):
        child.mkdir(parents=True)
        (child / "params.json").write_text(json.dumps(params | {"learning_rate": rate}))
    return children


def check_done(folder: Path, num: int) -> None:
    done = [json.loads(path.read_text())["state"] for path in folder.glob("*/record/status.json")]
    assert done == ["done"] * num, f"{folder}: {done}"


def programs(work: Path, data: Path, num: int) -> dict[str, Callable[[int], float]]:
    """What is timed on trivial trainings, by name: round -> seconds of the whole."""

    def pool(number: int) -> float:
        folder = write_parent(work / f"pool_{number}", TRIVIAL, num, 2)
        seconds = python(ROOT / "search_hyperparams.py", "--data_dir", data, "--parent_dir", folder)
        check_done(folder, num)
        return seconds

    def processes(number: int) -> float:
        folder = work / f"processes_{number}"
        children = write_children(folder, TRIVIAL, num)
        begun = time.perf_counter()
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda c: python(ROOT / "train.py", "--data_dir", data, "--model_dir", c), children))
        seconds = time.perf_counter() - begun
        check_done(folder, num)
        return seconds

    def ray_tune(number: int) -> float:
        folder = work / f"tune_{number}"
        write_children(folder, TRIVIAL, num)
        seconds = python("-c", TUNE_CODE, ROOT, data, folder, num)
        check_done(folder, num)
        return seconds

    found: dict[str, Callable[[int], float]] = {POOL: pool, PROCESSES: processes}
    return found | ({TUNE: ray_tune} if find_spec("ray") else {})


def real_programs(work: Path, data: Path, num: int) -> dict[str, Callable[[int], float]]:
    def run(parallel: int) -> Callable[[int], float]:
        def timed(number: int) -> float:
            folder = write_parent(work / f"real_{parallel}_{number}", REAL, num, parallel)
            seconds = python(ROOT / "search_hyperparams.py", "--data_dir", data, "--parent_dir", folder)
            check_done(folder, num)
            return seconds

        return timed

    return {PARALLEL: run(2), ONE_BY_ONE: run(1)}


def main() -> None:
    parser = arguments(__doc__, 3)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=24, help="of the trivial kind (24)")
    args = parser.parse_args()
    report = Report(args)
    with tempfile.TemporaryDirectory() as name:
        work, data = Path(name), args.data_dir.resolve()
        few = work / "few"
        link_images(data / "train", few, {"train": 64, "valid": 32})
        trivial = alternate(programs(work / "trivial", few, args.trials), args.rounds)
        real = alternate(real_programs(work / "real", data, args.trials // 2), args.rounds)
    rows = [(name, spread(seconds), f"{ratio(seconds, trivial[POOL]):.2f}x") for name, seconds in trivial.items()]
    report.show(f"{args.trials} trivial trainings, seconds", ["program", "seconds", "against the pool"], rows)
    for other in [name for name in trivial if name != POOL]:
        print(f"{other} / {POOL}: {against(ratio(trivial[other], trivial[POOL]), 8)}")
    rows = [(name, spread(seconds)) for name, seconds in real.items()]
    report.show(f"{args.trials // 2} trainings of a small net, seconds", ["search", "seconds"], rows)
    print(f"{ONE_BY_ONE} / {PARALLEL}: {against(ratio(real[ONE_BY_ONE], real[PARALLEL]), 1.3)}")
    report.write(trivial=trivial, real=real)


if __name__ == "__main__":
    main()
