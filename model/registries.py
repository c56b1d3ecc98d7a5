"""Are the names that params.json gives known? No torch until that is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from utils import UserError, lookup, nearest

if TYPE_CHECKING:
    from params import Params


def check_names(params: Params, registries: Mapping[str, Mapping[str, object]]) -> None:
    """UserError, as the building of a run would raise it, for a name that its registry lacks. Runs no code of a file.

    `registries`: those of the caller, by parameter.
    """
    from model.data_loader import DATASETS
    from model.metric import METRICS
    from model.net import NETS
    from model.nets.backbones import list_torchvision_nets

    given = [(params.dataset, "dataset", DATASETS)]
    given += [(getattr(params, key), key, registry) for key, registry in registries.items()]
    given += [(name, "metrics", METRICS) for name in ("loss", *params.metrics, params.best_metric)]
    for name, key, registry in given:
        if ".py:" not in name:
            lookup(registry, name, key)
    nets = [*NETS, *list_torchvision_nets()]
    if params.arch not in nets and ".py:" not in params.arch and not params.arch.startswith("timm/"):
        raise UserError(f"arch: unknown net {params.arch!r}; {nearest(params.arch, nets)}")
