"""The engines by name, and the properties of each that are needed before it is made."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from params import SearchKeys
from search.engines import local, ray, slurm
from search.engines.base import SearchEngine


@dataclass(frozen=True)
class EngineKind:
    make: Callable[[Path, Path, int, SearchKeys], SearchEngine]  # (frozen code, parent folder, slots, params.search)
    default_slots: Callable[[], int]  # tasks at a time, when search.parallel does not say
    cores_per_task: Callable[[SearchKeys, int], int]  # (params.search, slots)


ENGINES = {
    "local": EngineKind(local.LocalEngine, local.default_slots, local.cores_per_task),
    "slurm": EngineKind(slurm.SlurmEngine, slurm.default_slots, slurm.cores_per_task),
    "ray": EngineKind(ray.RayEngine, ray.default_slots, ray.cores_per_task),
}
