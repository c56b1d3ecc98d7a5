"""Children on Slurm and on Ray, for real: a controller and a node; hosts that lose their power or their cable."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cluster
import pytest
from kit import ROOT, call, experiment, history, make_dataset, weights

from params import Params
from search.engines import ray_task
from search.engines.base import Task
from search.engines.ray import read_options
from search.engines.registry import ENGINES
from utils import UserError, num_cores

CHILD = {
    "arch": "simple_cnn",
    "arch_args": {"n_filters": 4},
    "batch_size": 8,
    "observers": [],
    "precision": "fp32",
    "checkpoint_minutes": 0.003,
}
STEPS = 60  # of an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "colours", per_class=160)


def until(condition: Callable[[], object], process: subprocess.Popen | None = None, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        assert process is None or process.poll() is None, process and process.communicate()[0]
        time.sleep(0.1)


def parent(folder: Path, engine: str, rates: int, parallel: int, epochs: int, **options: object) -> Path:
    """A search of `rates` learning rates."""
    search = {"engine": engine, "parallel": parallel, engine: options}
    space = {"learning_rate": [round(0.002 * (n + 1), 3) for n in range(rates)]}
    return experiment(folder, **CHILD | {"num_epochs": epochs, "threads": 1}, hyper_search=space, search=search)


def start(data: Path, folder: Path, environ: dict[str, str], host: str = "") -> subprocess.Popen:
    words = [sys.executable, str(ROOT / "search_hyperparams.py"), "--data_dir", str(data), "--parent_dir", str(folder)]
    words = ["ip", "netns", "exec", host, *words] if host else words
    return subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def step_of(child: Path) -> int:
    try:
        return json.loads((child / "checkpoints/manifest.json").read_text())["last"]["step"]
    except (OSError, ValueError):
        return 0


def sees_middle(child: Path) -> bool:
    """Whether a child has committed in the middle of an epoch."""
    return step_of(child) % STEPS > 0


def continued(child: Path) -> list[int]:
    """The steps at which a child went on."""
    return [int(step) for step in re.findall(r"continuing at epoch \d+, step (\d+)", (child / "train.log").read_text())]


def states(folder: Path) -> list[str]:
    return [json.loads(path.read_text())["state"] for path in sorted(folder.glob("*/record/status.json"))]


def trained_alone(data: Path, child: Path, folder: Path) -> Path:
    """The same run, undisturbed."""
    values = json.loads((child / "params.json").read_text()) | {"observers": []}
    assert call("train", "--data_dir", data, "--model_dir", experiment(folder, **values))[0] == 0
    return folder


# --- what is asked for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"adress": "auto"}, "unknown key 'adress'; did you mean 'address'?"),
        ({"num_gpus": -1}, "search.ray.num_gpus: -1 given; Input should be greater than or equal to 0"),
        ({"retries": "3"}, "search.ray.retries: '3' given"),
        ({"resources": {"tpu": "x"}}, "search.ray.resources: 'x' given"),
    ],
)
def test_a_wrong_option_of_ray_is_one_line(given, said):
    with pytest.raises(UserError, match=re.escape(said)):
        read_options(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"partitoin": "gpu"}, "unknown key 'partitoin'; did you mean 'partition'?"),
        ({"job_name": "x"}, "unknown key 'job_name'"),  # the queue is searched by it
        ({"tasks_per_node": 2}, "unknown key 'tasks_per_node'"),  # each would train the same folder
        ({"additional_parameters": "x"}, "additional_parameters: 'x' given; possible: an object"),
        ({"requeues": -1}, "requeues: -1 given; possible: a whole number, 0 or more"),
        ({"signal_delay_s": 1.5}, "signal_delay_s: 1.5 given; possible: a whole number"),
    ],
)
def test_a_wrong_option_of_slurm_is_one_line(given, said, tmp_path):
    pytest.importorskip("submitit")
    from engine.use.submit import SlurmQueue

    with pytest.raises(UserError, match=re.escape(said)):
        SlurmQueue(tmp_path, given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "package"), [("ray", "Ray"), ("slurm", "submitit")])
def test_an_absent_extra_is_named(name, package, data, tmp_path):
    code = (
        f"import sys; sys.modules[{package.lower()!r}] = None; sys.argv[1:] = sys.argv[1:]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script, folder = str(ROOT / "search_hyperparams.py"), parent(tmp_path / "p", name, 2, 1, 1)
    code = code.replace("sys.argv[1:] = sys.argv[1:]", "sys.argv = sys.argv[1:]")
    words = [sys.executable, "-c", code, script, "--data_dir", str(data), "--parent_dir", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: --engine {name} needs {package}: pip install -r requirements-extras.txt\n",
    )


def test_children_on_a_cluster_take_the_cores_they_ask_for():
    def cores(**search) -> int:
        options = Params.model_validate({"search": search}).search
        return ENGINES[options.engine].cores_per_task(options, 2)

    assert cores() == max(1, num_cores() // 2)
    assert cores(engine="ray") == 1
    assert cores(engine="slurm") == 1
    assert cores(engine="ray", ray={"num_cpus": 4}) == 4
    assert cores(engine="slurm", slurm={"cpus_per_task": 3}) == 3


def test_options_can_be_given_on_the_command_line(tmp_path):
    import params

    folder = experiment(tmp_path / "e", search={"slurm": {"partition": "a", "timeout_min": 5}})
    loaded = params.load(folder, params.parse_overrides(["--search.slurm.partition=b", "--search.ray.num_cpus=2"]))
    assert loaded.search.slurm == {"partition": "b", "timeout_min": 5}
    assert loaded.search.ray == {"num_cpus": 2}


# --- the claim on a folder ------------------------------------------------------------------------------------

WORKER = """
import signal, sys, time
def end(*_):
    time.sleep(0.7)  # saves
    print("end", time.time(), flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("begin", time.time(), flush=True)
time.sleep(float(sys.argv[1]))
print("end", time.time(), flush=True)
"""
ATTEMPT = """
import sys
sys.path.insert(0, sys.argv[1])
from search.engines import ray_task
ray_task.SILENCE = float(sys.argv[2])
print(ray_task.run_train(sys.argv[3:5], ".", sys.argv[5], "child", ["PATH"]))
"""


@pytest.fixture
def attempt(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Attempts at one task, each a process, as on hosts that share a folder and no lock."""
    started: list[subprocess.Popen] = []
    (tmp_path / "work.py").write_text(WORKER)

    def begin(seconds: float, silence: float = 30) -> subprocess.Popen:
        words = ["-c", ATTEMPT, str(ROOT), str(silence), str(tmp_path / "work.py"), str(seconds), str(tmp_path)]
        started.append(subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True))
        return started[-1]

    with cluster.ended(started):
        yield begin


def log(folder: Path) -> list[tuple[str, float]]:
    path = folder / "child.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(word, float(moment)) for word, moment in map(str.split, lines)]


def test_the_latest_attempt_trains_and_the_one_before_it_saves_first(attempt, tmp_path):
    first = attempt(60)
    until(lambda: log(tmp_path))
    second = attempt(0.5)
    assert first.communicate(timeout=30)[0] == "143\n"
    assert second.communicate(timeout=30)[0] == "0\n"
    assert [word for word, _ in log(tmp_path)] == ["begin", "end", "begin", "end"]
    assert not (tmp_path / "child.beat").exists()


def test_a_silent_attempt_is_waited_for_and_then_overtaken(attempt, tmp_path):
    first = attempt(60)
    until(lambda: log(tmp_path))
    began = time.monotonic()
    cluster.stop_tree(first.pid)
    second = attempt(0.1, silence=3)
    assert second.communicate(timeout=30)[0] == "0\n"
    assert time.monotonic() - began > 3
    assert [word for word, _ in log(tmp_path)] == ["begin", "begin", "end"]
    cluster.stop_tree(first.pid, go_on=True)  # its host is back: it finds the claim of another
    assert first.communicate(timeout=30)[0] == "143\n"


def test_who_runs_a_task_takes_it_along(attempt, tmp_path):
    """A worker that is killed outright leaves no process that trains on."""
    first = attempt(60)
    until(lambda: log(tmp_path))
    first.kill()
    until(lambda: [word for word, _ in log(tmp_path)] == ["begin", "end"], seconds=20)


def test_a_task_that_was_stopped_before_its_turn_does_not_begin(attempt, tmp_path):
    ray_task.stop_file(tmp_path, "child").touch()
    assert attempt(1).communicate(timeout=30)[0] == "143\n"
    assert not log(tmp_path)


# --- Slurm ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """The environment in which a Slurm of our own answers."""
    with cluster.slurm() as conf, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        yield dict(os.environ)


def queue(form: str = "%F %K %T %j") -> list[str]:
    words = ["squeue", "--noheader", "--array", "--states=all", f"--format={form}"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


HOLD = '''"""Where there is a file "hold", waits in the middle of an epoch until a signal has come."""
import signal
import time


class Hold:
    def __init__(self, folder, params, step):
        self.file = folder / "hold"
        self.has_come = False

    def step(self, event):
        if event.step % %d == %d and self.file.exists():
            for number in (signal.SIGUSR1, signal.SIGTERM):
                self.listen(number, signal.getsignal(number))
            self.file.rename(self.file.with_name("held"))
            while not self.has_come:
                time.sleep(0.01)

    def listen(self, number, handler):
        def come(number, frame):
            self.has_come = True
            handler(number, frame)

        signal.signal(number, come)

    def epoch(self, event, history):
        pass

    def close(self):
        pass
'''.replace("%d", str(STEPS), 1).replace("%d", str(STEPS // 2), 1)
HELD = {"observers": ["hold.py:Hold"], "save_summary_steps": 1}


def saved(child: Path) -> list[int]:
    """The steps at which a child saved because a signal had come."""
    return [int(step) for step in re.findall(r"SIG\w+: saved at step (\d+)", (child / "train.log").read_text())]


def test_one_run_is_queued_once_and_comes_back_by_itself(slurm, data, tmp_path):
    folder = experiment(tmp_path / "e", **CHILD | {"num_epochs": 4, "threads": 1} | HELD)
    (folder / "hold.py").write_text(HOLD)
    (folder / "hold").touch()
    command = ["--data_dir", data, "--model_dir", folder, "--engine", "slurm"]
    code, said = call("train", *command, "--search.slurm.partitoin=main")
    assert code == 2
    assert "did you mean 'partition'?" in said
    code, said = call("train", *command, "--search.slurm.partition=gone")
    assert code == 2, said
    assert "Slurm refuses the job" in said, said
    assert "invalid partition" in said, said
    code, said = call("train", *command, "--seed=3")
    job = re.findall(r"job (\d+) is queued", said)[0]
    assert code == 0
    assert str(folder / "record/jobs/e.log") in said
    until((folder / "held").exists)
    code, again = call("train", *command)
    assert code == 0, again
    assert f"queued already: job {job} (RUNNING)" in again, again
    subprocess.run(["scancel", "--signal=USR1", job], check=True)  # what Slurm does before the time is over
    until(lambda: states(tmp_path) == ["interrupted"])
    code, again = call("train", *command)
    assert code == 0, again
    assert f"queued already: job {job} (" in again, again
    until(lambda: states(tmp_path) == ["done"])
    assert "SIGUSR1: saved" in (folder / "train.log").read_text()
    assert saved(folder) == continued(folder) == [STEPS // 2 + 1]  # the signal is seen after the next step
    until(lambda: "is done; nothing was submitted" in call("train", *command, "--seed=3")[1], seconds=30)
    alone = experiment(tmp_path / "alone", **CHILD | {"num_epochs": 4, "threads": 1, "seed": 3})
    assert call("train", "--data_dir", data, "--model_dir", alone)[0] == 0
    assert weights(folder) == weights(alone)
    assert history(folder) == history(alone)


def test_what_was_submitted_is_found_again_and_stopped_jobs_save(slurm, data, tmp_path, monkeypatch):
    """A search that is killed leaves its jobs to Slurm; the next engine submits none of them again."""
    from search.engines import slurm as module

    monkeypatch.setattr(module, "LOOK", 1.0)
    top = tmp_path / "p"
    children = [experiment(top / name, **CHILD | {"num_epochs": 2000, "threads": 1}) for name in ("a", "b")]
    tasks = [Task(c.name, c, ["--data_dir", str(data), "--model_dir", str(c)]) for c in children]
    options = Params.model_validate({"search": {"engine": "slurm", "slurm": {"cpus_per_task": 1}}}).search
    engines = [module.SlurmEngine(ROOT, top, 2, options) for _ in range(2)]
    before = len(queue())
    for engine in engines:
        for task in tasks:
            engine.start([task])
        assert engine.wait(0) == []
    assert len(queue()) == before + 2
    assert len({line.split()[0] for line in queue()[-2:]}) == 1
    until(lambda: all(map(sees_middle, children)))
    second = engines[1]
    second.stop("a")
    gone = []
    until(lambda: gone.extend(second.wait(1)) or gone)
    assert [end.name for end in gone] == ["a"]
    assert gone[0].code == 143
    assert "CANCELLED" in gone[0].message
    conf = Path(slurm["SLURM_CONF"]).read_text()
    (tmp_path / "dead.conf").write_text(re.sub("SlurmctldPort=.*", "SlurmctldPort=1", conf))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "dead.conf"))
    second.looked = -9.0
    assert second.wait(1) == []
    assert list(second.running) == ["b"]
    monkeypatch.undo()
    second.close()
    assert states(top) == ["interrupted", "interrupted"]


@pytest.mark.slow
def test_an_array_of_eight_one_of_them_requeued(slurm, data, tmp_path):
    folder = parent(tmp_path / "p", "slurm", 8, 8, 4, cpus_per_task=1)
    values = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(values | HELD))
    (folder / "hold.py").write_text(HOLD)
    assert call("search_hyperparams", "--data_dir", data, "--parent_dir", folder, "--dry_run")[0] == 0
    child = sorted(folder.glob("learning_rate_*"))[3]
    (child / "hold").touch()
    search = start(data, folder, slurm)
    until((child / "held").exists, search)
    number = re.findall(r"(\d+_\d+)_\d+_log", os.readlink(folder / f"record/jobs/{child.name}.log"))[0]
    subprocess.run(["scontrol", "requeue", number], check=True)
    printed = search.communicate(timeout=280)[0]
    assert search.returncode == 0, printed
    assert states(folder) == ["done"] * 8
    assert saved(child) == continued(child) == [STEPS // 2 + 1]  # the signal is seen after the next step
    others = [path for path in folder.glob("learning_rate_*") if path != child]
    array = [line for line in queue("%F") if line.strip() == number.split("_")[0]]
    assert not any(map(continued, others))
    assert len(array) == 8
    assert weights(child) == weights(trained_alone(data, child, tmp_path / "alone"))


# --- Ray ------------------------------------------------------------------------------------------------------


def test_a_local_ray_is_closed_to_the_world_and_ends_with_its_search(data, tmp_path):
    cluster.need(packages=("ray",))
    folder = parent(tmp_path / "p", "ray", 2, 2, 25)
    before = cluster.ray_processes()
    search = start(data, folder, dict(os.environ))
    until(
        lambda: len(children := list(folder.glob("learning_rate_*"))) == 2 and all(map(sees_middle, children)), search
    )
    assert cluster.ray_processes() - before
    assert not cluster.open_ports(cluster.ray_processes() - before)
    search.terminate()
    printed = search.communicate(timeout=60)[0]
    assert search.returncode == 143, printed
    assert "saving: the same command continues" in printed, printed
    assert states(folder) == ["interrupted"] * 2
    until(lambda: not cluster.ray_processes() - before, seconds=20)
    search = start(data, folder, dict(os.environ))
    printed = search.communicate(timeout=150)[0]
    assert search.returncode == 0, printed
    assert states(folder) == ["done"] * 2, printed
    assert all(len(continued(child)) == 1 for child in folder.glob("learning_rate_*"))


def test_a_ray_that_is_not_there_is_one_line(data, tmp_path):
    cluster.need(packages=("ray",))
    folder = parent(tmp_path / "p", "ray", 1, 1, 1, address="127.0.0.1:1")
    search = start(data, folder, dict(os.environ))
    printed = search.communicate(timeout=100)[0]
    assert search.returncode == 2, printed
    assert "no Ray cluster at 127.0.0.1:1 that takes us" in printed, printed
    assert printed.splitlines()[-1].startswith("error: ")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_when_a_host_dies_its_children_go_on_elsewhere(data, tmp_path):
    with cluster.ray_cluster() as (hosts, environ, address):
        folder = parent(tmp_path / "p", "ray", 12, 4, 4, address=address)
        search = start(data, folder, environ, hosts[0])
        until(lambda: any(sees_middle(folder / name) for name in cluster.training_on(hosts[2])), search, 240)
        victims = list(cluster.training_on(hosts[2]))
        moved = [name for name in victims if step_of(folder / name)]
        cluster.cut(hosts[2])
        cluster.kill_host(hosts[2])
        printed = search.communicate(timeout=600)[0]
        assert search.returncode == 0, printed
        assert states(folder) == ["done"] * 12, printed
    assert moved
    assert all(continued(folder / name) for name in moved)
    assert any(continued(folder / name)[0] % STEPS for name in moved)
    others = [path for path in folder.glob("learning_rate_*") if path.name not in victims]
    assert not any(map(continued, others))
    child = folder / moved[0]
    assert weights(child) == weights(trained_alone(data, child, tmp_path / "alone"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_when_a_cable_is_cut_no_child_trains_twice(data, tmp_path):
    """The host is alive, and what trains there has the folder: it ends well, and the search sees that."""
    with cluster.ray_cluster() as (hosts, environ, address):
        folder = parent(tmp_path / "p", "ray", 4, 4, 20, address=address)
        search = start(data, folder, environ, hosts[0])
        until(lambda: any(sees_middle(folder / name) for name in cluster.training_on(hosts[2])), search, 240)
        victims = cluster.training_on(hosts[2])
        cluster.cut(hosts[2])
        twice = []

        def look() -> bool:
            lost, here = cluster.training_on(hosts[2]), cluster.training_on(hosts[1])
            twice.extend(lost.keys() & here.keys())
            return search.poll() is not None

        until(look, seconds=600)
        printed = search.communicate()[0]
        assert search.returncode == 0, printed
        assert states(folder) == ["done"] * 4, printed
        assert victims
        assert not twice
        for child in folder.glob("learning_rate_*"):
            epochs = re.findall(r"epoch (\d+)/", (child / "train.log").read_text())
            assert epochs == [str(n + 1) for n in range(20)], epochs
