"""Several machines on one: network namespaces as hosts, a Ray cluster over them, a Slurm of this machine alone."""

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# A requeued job waits for cred_expire seconds; 120 unless stated.
SLURM_CONF = """ClusterName=kit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={top}/munge/socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmUser=root
SlurmdUser=root
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd.pid
SlurmctldLogFile={top}/slurmctld.log
SlurmdLogFile={top}/slurmd.log
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=8
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def need(*programs: str, packages: tuple[str, ...] = ()) -> None:
    """Skip where this is not root, or something is not installed."""
    missing = [name for name in programs if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]
    missing += [name for name in packages if importlib.util.find_spec(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs {', '.join(missing)}" if missing else "needs root")


@contextlib.contextmanager
def ended(processes: list[subprocess.Popen]) -> Iterator[None]:
    """What is started is ended, the last first."""
    try:
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def slurm() -> Iterator[Path]:
    """A controller and a node with 8 CPUs; what it yields is for SLURM_CONF."""
    need("munged", "slurmctld", "slurmd", "sbatch", packages=("submitit",))
    with tempfile.TemporaryDirectory(prefix="kit-slurm-", ignore_cleanup_errors=True) as top:
        yield from start_slurm(Path(top))


def start_slurm(top: Path) -> Iterator[Path]:
    started: list[subprocess.Popen] = []
    for name in ("munge", "state", "spool"):
        (top / name).mkdir()
    top.chmod(0o755)
    (top / "munge").chmod(0o755)
    (top / "munge/key").write_bytes(secrets.token_bytes(128))
    (top / "munge/key").chmod(0o600)
    with contextlib.ExitStack() as sockets:
        ports = [sockets.enter_context(socket.socket()) for _ in range(2)]
        for port in ports:
            port.bind(("127.0.0.1", 0))
        numbers = [port.getsockname()[1] for port in ports]
    conf, host = top / "slurm.conf", socket.gethostname().split(".")[0]
    conf.write_text(SLURM_CONF.format(host=host, ports=numbers, top=top))
    munge = [
        f"--{word}={top}/munge/{file}"
        for word, file in (
            ("key-file", "key"),
            ("socket", "socket"),
            ("pid-file", "pid"),
            ("log-file", "log"),
            ("seed-file", "seed"),
        )
    ]
    environ = os.environ | {"SLURM_CONF": str(conf), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    with ended(started), open(top / "out", "wb") as out:
        for words in (["munged", "--foreground", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            started.append(subprocess.Popen(words, env=environ, stdout=out, stderr=out, start_new_session=True))
            time.sleep(0.5)
        end = time.monotonic() + 30
        while (
            "idle"
            not in subprocess.run(["sinfo", "-h", "-o", "%T"], env=environ, capture_output=True, text=True).stdout
        ):
            if time.monotonic() > end:
                pytest.skip(f"Slurm does not start here: {(top / 'out').read_text()[-300:]}")
            time.sleep(0.3)
        try:
            yield conf
        finally:
            subprocess.run(["scancel", "--user=root"], env=environ, capture_output=True)
            time.sleep(1)


# --- hosts ------------------------------------------------------------------------------------------


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def hosts(number: int) -> Iterator[list[str]]:
    """Namespaces 10.77.0.1, .2, ... on one switch, which is in the first. They share the file system."""
    need("ip")
    names = [f"kit{os.getpid()}h{n}" for n in range(1, number + 1)]
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", names[0], "link", "add", "switch", "type", "bridge")
            ip("-n", names[0], "addr", "add", "10.77.0.1/24", "dev", "switch")
            ip("-n", names[0], "link", "set", "switch", "up")
            for n, name in enumerate(names[1:], start=2):
                ip("link", "add", "eth", "netns", name, "type", "veth", "peer", "name", f"port{n}", "netns", names[0])
                ip("-n", names[0], "link", "set", f"port{n}", "master", "switch", "up")
                ip("-n", name, "addr", "add", f"10.77.0.{n}/24", "dev", "eth")
                ip("-n", name, "link", "set", "eth", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield names
    finally:
        for name in names:
            kill_host(name)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def processes_on(host: str) -> list[int]:
    return [
        int(word)
        for word in subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout.split()
    ]


def cut(host: str) -> None:
    """Nothing reaches it any more, and nobody is told."""
    ip("-n", host, "link", "set", "eth", "down")


def kill_host(host: str) -> None:
    """As if its power were cut; see also cut()."""
    for _ in range(3):
        for pid in processes_on(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def training_on(host: str) -> dict[str, int]:
    """name of the experiment folder -> process of train.py, on a host."""
    found = {}
    for pid in processes_on(host):
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if words[1].endswith("train.py"):
                found[Path(words[words.index("--model_dir") + 1]).name] = pid
    return found


@contextlib.contextmanager
def ray_cluster(cpus: tuple[int, ...] = (0, 2, 2)) -> Iterator[tuple[list[str], dict[str, str], str]]:
    """(hosts, environment of whoever uses the cluster, its address): a head, and workers that are missed after 5 s."""
    need(packages=("ray",))
    with tempfile.TemporaryDirectory(prefix="kr", dir="/tmp", ignore_cleanup_errors=True) as top:
        yield from start_ray(top, cpus)


def start_ray(top: str, cpus: tuple[int, ...]) -> Iterator[tuple[list[str], dict[str, str], str]]:
    address = "10.77.0.1:6399"
    words = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    environ = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_health_check_failure_threshold": "4",
    }
    started: list[subprocess.Popen] = []
    with hosts(len(cpus)) as names, ended(started), open(f"{top}/out", "wb") as out:
        for n, (name, number) in enumerate(zip(names, cpus, strict=True), start=1):
            role = ["--address", address]
            if n == 1:
                role = ["--head", "--port", "6399", "--include-dashboard", "false", "--temp-dir", top]
            here = ["--node-ip-address", f"10.77.0.{n}", "--num-cpus", str(number), "--num-gpus", "0"]
            command = ["ip", "netns", "exec", name, *words, *role, *here]
            started.append(subprocess.Popen(command, env=environ, stdout=out, stderr=out, start_new_session=True))
            wait_for_runtimes(n, Path(top, "out"), started[-1])
        yield names, environ, address


def wait_for_runtimes(number: int, out: Path, process: subprocess.Popen, seconds: float = 90) -> None:
    """Until so many nodes are up; two that start at once on one machine get into each other's files."""
    end = time.monotonic() + seconds
    while out.read_text(errors="replace").count("Ray runtime started") < number:
        assert time.monotonic() < end, out.read_text(errors="replace")[-2000:]
        assert process.poll() is None, out.read_text(errors="replace")[-2000:]
        time.sleep(0.3)


# --- processes --------------------------------------------------------------------------------------


def stop_tree(pid: int, go_on: bool = False) -> None:
    """Freeze a process and its children, or let them go on: a host that nobody reaches for a while."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for one in [pid, *map(int, children)]:
        os.kill(one, signal.SIGCONT if go_on else signal.SIGSTOP)


def ray_processes() -> set[int]:
    """Processes of Ray on this machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and (b"/ray/core/src/ray/" in words or words.startswith(b"ray::")):
                found.add(int(path.parent.name))
    return found


def open_ports(pids: set[int]) -> list[str]:
    """The lines of `ss` for sockets of these processes that others than this machine can reach."""
    lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True).stdout.splitlines()
    mine = [line for line in lines if any(f"pid={pid}," in line for pid in pids)]
    return [line for line in mine if "127.0.0.1" not in line.split()[3] and "::1" not in line.split()[3]]
