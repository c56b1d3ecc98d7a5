"""The types of keys, and the sections: keys whose value is an object with keys of its own."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

# --- types ------------------------------------------------------------------------------------------

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Switch = Annotated[
    Literal[0, 1],
    BeforeValidator(lambda value: int(value) if isinstance(value, bool) else value),
    WithJsonSchema({"enum": [0, 1, True, False]}),
]
Pair = Annotated[list[Positive], Field(min_length=2, max_length=2)]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]  # one number per colour
MeanAndStd = Annotated[list[Channels], Field(min_length=2, max_length=2)]
Fold = Annotated[list[Count], Field(min_length=2, max_length=2)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=1)]
Numbers = Annotated[list[Positive], Field(min_length=1)]
FreezeSteps = Annotated[list[Pair], Field(min_length=1)]  # [[number of groups, until epoch], ...]
Transforms = list[Text | dict[str, Any]]


class Strict(BaseModel):
    """No unknown keys, no conversions (but a whole number may stand for a float), no changes, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# --- sections: keys whose value is an object -----------------------------------------------------------


class FreezeKeys(Strict):
    groups: int = Field(ge=1, description="Number of layer groups to freeze, earliest first.")
    epochs: Positive = Field(description="Number of epochs they stay frozen.")


class EarlyStoppingKeys(Strict):
    patience: int = Field(10, ge=1, description="Number of epochs without improvement after which the run stops.")
    monitor_metric: Text = Field("loss", description="Validation metric to watch.")
    min_delta: float = Field(0.0, ge=0, description="Smallest change that counts as an improvement.")
    minimize: Switch | None = Field(
        None, description="1: lower is better. 0: higher is better. null: the metric's own direction."
    )


class ProgressiveKeys(Strict):
    initial_scale: float = Field(0.5, gt=0, le=1, description="Initial image size as a fraction of im_sz.")
    delay_fraction: float = Field(
        0.4, ge=0, le=1, description="Fraction of the epochs, from the start, that keep the initial size."
    )
    finetune_fraction: float = Field(
        0.2, ge=0, le=1, description="Fraction of the epochs, at the end, that use the full size."
    )
    size_increment: int = Field(4, ge=1, description="Image sizes are rounded to a multiple of this many pixels.")


class SearchKeys(Strict):
    sampler: Literal["grid", "random", "tpe"] = Field("grid", description="How the values to try are chosen.")
    num_trials: int | None = Field(None, ge=1, description="Total number of trials, for random and tpe.")
    pruner: Literal["none", "median", "asha", "hyperband"] = Field(
        "none", description="Rule that stops unpromising trials early."
    )
    eta: int = Field(3, ge=2, description="For asha and hyperband: the best 1/eta of the trials of a rung continue.")
    min_epochs: int = Field(1, ge=1, description="For asha and hyperband: number of epochs of the first rung.")
    seeds: Count | Seeds = Field(1, description="Number of seeds to train each trial with, or a list of seeds.")
    metric: Text = Field("val_accuracy", description="Metric that ranks the trials.")
    parallel: int = Field(
        1,
        ge=1,
        description="Number of children that train at a time; if not given: one per GPU, 64 on a cluster, else 1.",
    )
    engine: Literal["local", "ray", "slurm"] = Field("local", description="What runs the children.")
    slurm: dict[str, Any] = Field(
        {}, description="Options of engine slurm, and of train.py --engine slurm; see docs/cluster.md."
    )
    ray: dict[str, Any] = Field({}, description="Options of engine ray; see docs/cluster.md.")
    restore_file: Text | None = Field(None, description="Weights that every child starts from; null: none.")
    folds: int | None = Field(None, ge=2, description="k of a k-fold cross-validation; null: no cross-validation.")
    epochs: Positive | None = Field(None, description="Budget of the whole search in epochs; null: no limit.")
    minutes: Positive | None = Field(None, description="Budget of the whole search in minutes; null: no limit.")
