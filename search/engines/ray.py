"""Ray: the tasks of a search on a cluster that exists, or on one of this machine that is started and stopped here.

A task is a Ray task that runs train.py as a process of its own; see ray_task.py. When its node is lost, Ray
begins it again elsewhere, and its folder knows how far it was. Of a node that goes silent, as by a power cut, Ray
learns late (7 minutes were seen, by the defaults of its connections): a task that has shown no sign of life for a
minute is given up here, and the search begins it again.
"""

import os
import secrets
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from params import Positive, Strict, Text
from search.engines import ray_task as remote
from search.engines.base import KEPT, LOGS, Ended, Task, end_of
from utils import UserError, nearest

JOIN, LOST = 60.0, 60.0  # seconds: that a node may take to join; without a sign of life


class Options(Strict):
    """search.ray."""

    address: Text | None = Field(None, description="HOST:PORT, or auto; null: $RAY_ADDRESS, else this machine.")
    num_cpus: Positive = Field(1, description="CPUs of a task.")
    num_gpus: float | None = Field(None, ge=0, description="GPUs of a task; null: 1 where there are GPUs.")
    resources: dict[str, float] = Field({}, description="Other resources of a task, by the cluster's names.")
    retries: int = Field(3, ge=0, description="Times that a task begins again after its node was lost.")


def read_options(given: Mapping[str, Any]) -> Options:
    """UserError for an unknown key or a wrong value."""
    try:
        return Options.model_validate(dict(given))
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        name = str(mistake["loc"][0])
        if name not in Options.model_fields:
            raise UserError(f"search.ray: unknown key {name!r}; {nearest(name, Options.model_fields)}") from None
        raise UserError(f"search.ray.{name}: {mistake['input']!r} given; {mistake['msg']}") from None


class RayEngine:
    """See search/engines/base.py. Who loses this process has its children save and end."""

    def __init__(self, code: Path, parent: Path, parallel: int, options: Mapping[str, Any]):
        self.num_slots = parallel
        self.script, self.jobs = str((code / "train.py").absolute()), (parent / LOGS).absolute()
        self.under_way: dict[futures.Future[int], tuple[Any, Task]] = {}  # with Ray's references
        self.beats: dict[str, tuple[str, float]] = {}  # the last of a task, and when it changed; 0: it is an old one
        self.options = read_options(options)
        self.address = self.options.address or os.environ.get("RAY_ADDRESS") or "local"
        self.ray = import_ray(self.address == "local")
        self._connect()
        self.needs = {"num_cpus": self.options.num_cpus, "num_gpus": self._gpus(), "resources": self.options.resources}
        try:
            self._check_fit()
        except UserError:
            self.ray.shutdown()
            raise
        self.ray.cloudpickle.register_pickle_by_value(remote)
        self.carry_out = self.ray.remote(remote.carry_out)

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
        if self.address == "local":
            num_cpus = max(1, round(self.num_slots * self.options.num_cpus))
            quiet |= {"num_cpus": num_cpus, "include_dashboard": False}
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        host, _, port = self.address.rpartition(":")
        try:
            if port.isdigit() and "/" not in host:  # Ray would try for minutes
                socket.create_connection((host.strip("[]"), int(port)), 10).close()
            self.ray.init(address=self.address, **quiet)
        except (OSError, RuntimeError, ValueError, self.ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"no Ray cluster at {self.address} that takes us: {reason}") from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray has put its own there

    def _gpus(self) -> float:
        has_some = self.ray.cluster_resources().get("GPU", 0) >= 1
        return float(has_some) if self.options.num_gpus is None else self.options.num_gpus

    def _check_fit(self) -> None:
        """UserError when no node could run a task, and none that can joins the cluster within a minute."""
        wanted = {"CPU": self.needs["num_cpus"], "GPU": self.needs["num_gpus"], **self.options.resources}
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
        for task in tasks:
            remote.stop_file(self.jobs, task.name).unlink(missing_ok=True)
            there = self.carry_out.options(
                **self.needs, max_retries=self.options.retries, scheduling_strategy="SPREAD", name=task.name
            )
            reference = there.remote([self.script, *task.argv], os.getcwd(), str(self.jobs), task.name, KEPT)
            self.under_way[reference.future()] = reference, task
            self.beats[task.name] = self._beat(task), 0.0

    def wait(self, seconds: float) -> list[Ended]:
        if not self.under_way:
            time.sleep(seconds)
            return []
        # Not ray.wait(): what a signal handler raises in there comes out as something else.
        done, _ = futures.wait(self.under_way, seconds, futures.FIRST_COMPLETED)
        return [self._end(future) for future in done] + self._lost()

    def _end(self, future: futures.Future[int]) -> Ended:
        _, task = self.under_way.pop(future)
        if error := future.exception():  # its node or its worker was lost too often
            return Ended(task.name, -signal.SIGKILL, " ".join(str(error).split())[:200])
        return Ended(task.name, future.result())

    def _beat(self, task: Task) -> str:
        return remote.read(remote.beat_file(self.jobs, task.name))

    def _lost(self) -> list[Ended]:
        """The tasks that beat no more. One on a host that is cut off may have ended well: its folder says so."""
        lost, now = [], time.monotonic()
        for future, (reference, task) in list(self.under_way.items()):
            (last, since), beat = self.beats[task.name], self._beat(task)
            if beat != last:
                self.beats[task.name] = beat, now
            elif since and now - since > LOST:
                del self.under_way[future]
                self.ray.cancel(reference, force=True)
                lost.append(Ended(task.name, end_of(task.folder), f"no sign of life for {LOST:g} s"))
        return lost

    def stop(self, name: str) -> None:
        if any(task.name == name for _, task in self.under_way.values()):
            remote.stop_file(self.jobs, name).touch()

    def close(self) -> None:
        for _, task in self.under_way.values():
            remote.stop_file(self.jobs, task.name).touch()
        futures.wait(self.under_way, remote.PATIENCE)
        self.ray.shutdown()
        for _, task in self.under_way.values():
            remote.stop_file(self.jobs, task.name).unlink(missing_ok=True)
        self.under_way.clear()


def import_ray(is_local: bool) -> Any:
    """Ray; it reads its environment when it is imported. UserError where it is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if is_local:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux too: loopback is the only network it uses
        os.environ["RAY_enable_metrics_collection"] = "0"  # whose ports listen to the world
        os.environ["RAY_AUTH_MODE"] = "token"
        if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install -r requirements-extras.txt") from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return ray
