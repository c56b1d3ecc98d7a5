"""The tasks of a search on Ray: an existing cluster, or one on this machine that is started and stopped here.

A task is a Ray task that runs train.py as a process of its own; see ray_task.py. When its node is lost, Ray
begins it again elsewhere, and it continues from its folder. Ray notices late when a node goes silent, as in a
power cut (after 7 minutes with the defaults of its connections): a task without a sign of life for a minute is
given up here, and the search begins it again.
"""

import os
import secrets
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from types import ModuleType

from pydantic import Field, ValidationError

from engine.use.submit import FORWARDED
from include import JOBS
from params import Positive, SearchKeys, Strict, Text
from search.engines import ray_task
from search.engines.base import Task, TaskEnd, recorded_exit_code
from utils import UserError, nearest

JOIN = 60.0  # seconds that a node may take to join
LOST = 60.0  # seconds without a sign of life after which a task is given up
CONNECT = 10.0  # seconds to reach the cluster
DEFAULT_SLOTS = 64  # tasks at a time, when search.parallel does not say


class RayOptions(Strict):
    """search.ray."""

    address: Text | None = Field(None, description="HOST:PORT, or auto; null: $RAY_ADDRESS, else this machine.")
    num_cpus: Positive = Field(1, description="CPUs of a task.")
    num_gpus: float | None = Field(None, ge=0, description="GPUs of a task; null: 1 where there are GPUs.")
    resources: dict[str, float] = Field({}, description="Other resources of a task, by the cluster's names.")
    retries: int = Field(3, ge=0, description="How often a task begins again after its node was lost.")


def read_options(options: Mapping[str, object]) -> RayOptions:
    """UserError for an unknown key or a wrong value."""
    try:
        return RayOptions.model_validate(dict(options))
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        name = str(mistake["loc"][0])
        if name not in RayOptions.model_fields:
            raise UserError(f"search.ray: unknown key {name!r}; {nearest(name, RayOptions.model_fields)}") from None
        raise UserError(f"search.ray.{name}: {mistake['input']!r} given; {mistake['msg']}") from None


class RayEngine:
    """See search/engines/base.py. If this process dies, its tasks save and end."""

    def __init__(self, code: Path, parent: Path, num_slots: int, options: SearchKeys):
        self.num_slots = num_slots
        self.script = str((code / "train.py").absolute())
        self.jobs = (parent / JOBS).absolute()
        self.running: dict[futures.Future[int], tuple[object, Task]] = {}  # with Ray's reference
        self.beats: dict[str, tuple[str, float]] = {}  # task -> last sign of life, when it came (0: before the start)
        self.options = read_options(options.ray)
        self.address = self.options.address or os.environ.get("RAY_ADDRESS") or "local"
        self.ray = import_ray(self.address == "local")
        self._connect()
        self.num_gpus = self._gpus_per_task()
        try:
            self._check_fit()
        except UserError:
            self.ray.shutdown()
            raise
        self.ray.cloudpickle.register_pickle_by_value(ray_task)  # so that the nodes need none of the kit
        self.run_train = self.ray.remote(ray_task.run_train)

    def _connect(self) -> None:
        """Join the cluster, or start one. UserError when that fails."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        host, _, port = self.address.rpartition(":")
        try:
            if port.isdigit() and "/" not in host:  # where nobody listens Ray would try for minutes
                socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()
            quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
            self.ray.init(address=self.address, **quiet, **self._size())
        except (OSError, RuntimeError, ValueError, self.ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"no Ray cluster at {self.address} that takes us: {reason}") from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray has put its own there

    def _size(self) -> dict[str, object]:
        """Arguments of ray.init for a Ray of this machine: as many CPUs as its tasks need, whatever it has."""
        if self.address != "local":
            return {}
        return {"num_cpus": max(1, round(self.num_slots * self.options.num_cpus)), "include_dashboard": False}

    def _gpus_per_task(self) -> float:
        has_some = self.ray.cluster_resources().get("GPU", 0) >= 1
        return float(has_some) if self.options.num_gpus is None else self.options.num_gpus

    def _check_fit(self) -> None:
        """UserError unless a node can run a task, or one that can joins the cluster within a minute."""
        wanted = {"CPU": self.options.num_cpus, "GPU": self.num_gpus, **self.options.resources}
        end = time.monotonic() + (0 if self.address == "local" else JOIN)
        while True:
            nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            if any(all(node.get(name, 0) >= number for name, number in wanted.items()) for node in nodes):
                return
            if time.monotonic() >= end:
                asked = ", ".join(f"{number:g} {name}" for name, number in wanted.items() if number)
                most = ", ".join(f"{max(node.get(name, 0) for node in nodes):g} {name}" for name in wanted)
                raise UserError(f"search.ray: no node has {asked} for a task; the most that one has: {most}")
            time.sleep(0.5)

    def start(self, tasks: Sequence[Task]) -> None:
        self.jobs.mkdir(parents=True, exist_ok=True)
        needs = {"num_cpus": self.options.num_cpus, "num_gpus": self.num_gpus, "resources": self.options.resources}
        for task in tasks:
            ray_task.stop_file(self.jobs, task.name).unlink(missing_ok=True)
            function = self.run_train.options(
                **needs, max_retries=self.options.retries, scheduling_strategy="SPREAD", name=task.name
            )
            words = [self.script, *task.argv]
            reference = function.remote(words, os.getcwd(), str(self.jobs), task.name, FORWARDED)
            self.running[reference.future()] = reference, task
            self.beats[task.name] = self._last_beat(task), 0.0

    def wait(self, seconds: float) -> list[TaskEnd]:
        if not self.running:
            time.sleep(seconds)
            return []
        # Not ray.wait(): it would turn what a signal handler raises into an error of its own.
        done, _ = futures.wait(self.running, seconds, futures.FIRST_COMPLETED)
        return [self._conclude(future) for future in done] + self._give_up_silent()

    def _conclude(self, future: futures.Future[int]) -> TaskEnd:
        _, task = self.running.pop(future)
        if error := future.exception():  # its node or its worker was lost too often
            return TaskEnd(task.name, -signal.SIGKILL, " ".join(str(error).split())[:200])
        return TaskEnd(task.name, future.result())

    def _last_beat(self, task: Task) -> str:
        return ray_task.read(ray_task.beat_file(self.jobs, task.name))

    def _give_up_silent(self) -> list[TaskEnd]:
        """Give up tasks without a sign of life. One on a host that is cut off may have ended well: its folder says."""
        lost = []
        now = time.monotonic()
        for future, (reference, task) in list(self.running.items()):
            last, since = self.beats[task.name]
            beat = self._last_beat(task)
            if beat != last:
                self.beats[task.name] = beat, now
            elif since and now - since > LOST:
                del self.running[future]
                self.ray.cancel(reference, force=True)
                lost.append(TaskEnd(task.name, recorded_exit_code(task.folder), f"no sign of life for {LOST:g} s"))
        return lost

    def stop(self, name: str) -> None:
        if any(task.name == name for _, task in self.running.values()):
            ray_task.stop_file(self.jobs, name).touch()

    def close(self) -> None:
        for _, task in self.running.values():
            ray_task.stop_file(self.jobs, task.name).touch()
        futures.wait(self.running, ray_task.PATIENCE)
        self.ray.shutdown()
        for _, task in self.running.values():
            ray_task.stop_file(self.jobs, task.name).unlink(missing_ok=True)
        self.running.clear()


def default_slots() -> int:
    return DEFAULT_SLOTS


def cores_per_task(options: SearchKeys, num_slots: int) -> int:
    """As many as are asked of Ray, however many tasks run."""
    cores = options.ray.get("num_cpus", 1)
    return max(1, int(cores)) if isinstance(cores, int | float) else 1


def import_ray(is_local: bool) -> ModuleType:
    """Import Ray, which reads its environment at import. UserError where it is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if is_local:
        # closed to the world: loopback is the only network it uses (on Linux, too), no metrics ports, a token
        closed = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_enable_metrics_collection": "0"}
        os.environ.update(closed | {"RAY_AUTH_MODE": "token"})
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        import ray  # pyright: ignore[reportMissingImports] # an extra
        import ray.exceptions  # pyright: ignore[reportMissingImports] # an extra
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install -r requirements-extras.txt") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray has put its own there
    return ray
