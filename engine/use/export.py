"""A trained net as a folder that works without this kit: model, labels, predict.py, model card, parity.json."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scipy.stats import binomtest
from tabulate import tabulate
from torch import Tensor

from engine.use.inference import Trained
from engine.use.onnx_graph import Probabilities, export_net, join, preprocessing, quantise
from folder.folder import Folder, now
from include import EVALUATION, TEST_LOOKS, VERSION
from report.json_files import count_looks
from utils import JsonObject, UserError, sync_folder, to_json

Format = Literal["onnx", "torch", "safetensors"]
Predictor = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 -> (K,) probabilities

EXPORTED = Path(__file__).with_name("exported")  # what is copied or filled in
MODEL_FILES: dict[str, str] = {"onnx": "model.onnx", "torch": "model.pt2", "safetensors": "model.safetensors"}
LABELS, PREDICT, CARD, PARITY = "labels.txt", "predict.py", "model_card.md", "parity.json"
CALIBRATION_IMAGES = 512  # training images that give int8 activations their ranges
BATCH = 64  # images that go through the net at once
PARITY_IMAGES = 500  # validation images on which the exported model is compared with the net
NOT_SHOWN = {"pinned", "hyper_search", "search", "data_dir"}  # of record/resolved.json, in the card
TOLERANCE = 1e-3  # allowed difference of a probability


@dataclass(frozen=True)
class Images:
    """Images of a split and the numbers of their classes; read when they are asked for."""

    paths: Sequence[Path]
    labels: Sequence[int]
    read: Callable[[Path], np.ndarray]  # (H, W, 3) uint8

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[np.ndarray]:
        return map(self.read, self.paths)

    def sample(self, at_most: int) -> Images:
        """At most that many of the images, evenly spaced."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(at_most, len(self))).round().astype(int)).tolist()
        return Images([self.paths[index] for index in chosen], [self.labels[index] for index in chosen], self.read)


@dataclass(frozen=True)
class Exportable:
    """A trained net, and what is needed to write and to check its export."""

    trained: Trained
    base: int  # side of the image that the net's centre crop is taken from, px
    to_base: Callable[[np.ndarray], np.ndarray]  # (H, W, 3) -> (base, base, 3) uint8
    to_batch: Callable[[Sequence[np.ndarray]], Tensor]  # base images -> the input of the net
    train: Images | None  # None where the data is not there
    valid: Images | None

    def probabilities(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """N times (H, W, 3) uint8 -> (N, K) probabilities, as predict.py computes them."""
        return self.trained(self.to_batch([self.to_base(image) for image in images])).softmax(dim=1).numpy()


@dataclass(frozen=True)
class Parity:
    """What a comparison of the exported model with the net found."""

    images: int
    same_class: int
    max_difference: float  # of a probability
    accuracy: float | None
    exported_accuracy: float | None

    def describe(self) -> str:
        if not self.images:
            return "Not compared with the net: the validation images were not there."
        line = f"On {self.images} validation images the exported model names the same class as the trained net for "
        line += f"{self.same_class}; no probability differs by more than {self.max_difference:.1e}."
        return line + f" Accuracy there: {self.exported_accuracy:.4f}, of the net in fp32: {self.accuracy:.4f}."


def compare(given: Exportable, exported: Predictor, images: Images | None) -> Parity:
    """The net, in batches, and its export, image by image."""
    if not images:
        return Parity(0, 0, 0.0, None, None)
    decoded = iter(images)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    while group := list(islice(decoded, BATCH)):
        parts.append((given.probabilities(group), np.stack([exported(image) for image in group])))
    expected, answers = (np.concatenate(values) for values in zip(*parts, strict=True))  # (N, K)
    labels = np.asarray(images.labels)
    return Parity(
        images=len(images),
        same_class=int((expected.argmax(1) == answers.argmax(1)).sum()),
        max_difference=float(np.abs(expected - answers).max()),
        accuracy=float((expected.argmax(1) == labels).mean()),
        exported_accuracy=float((answers.argmax(1) == labels).mean()),
    )


# --- the formats --------------------------------------------------------------------------------------


def write_onnx(given: Exportable, out: Path, int8: bool) -> Predictor:
    """model.onnx; with `int8`, its activations are calibrated on training images. Returns what runs it."""
    import onnx  # pyright: ignore[reportMissingImports] # an extra
    import onnxruntime  # pyright: ignore[reportMissingImports] # an extra

    net = export_net(Probabilities(given.trained).eval(), given.base)
    if int8:
        assert given.train is not None
        with tempfile.TemporaryDirectory() as folder:
            net = quantise(net, calibration_batches(given, given.train), Path(folder))
    model = join(preprocessing(given.base, given.trained.kit["resize"]), net)
    onnx.helper.set_model_props(model, {"kit": json.dumps(given.trained.kit, sort_keys=True)})
    path = out / MODEL_FILES["onnx"]
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path)
    return lambda image: np.asarray(session.run(None, {"image": image[None]})[0])[0]


def calibration_batches(given: Exportable, images: Images) -> Iterator[np.ndarray]:
    """(B, base, base, 3) uint8 of training images."""
    chosen = [given.to_base(image) for image in images.sample(CALIBRATION_IMAGES)]
    for start in range(0, len(chosen), BATCH):
        yield np.stack(chosen[start : start + BATCH])


def write_torch(given: Exportable, out: Path) -> Predictor:
    """model.pt2, a program of torch.export: base images (B, base, base, 3) uint8 -> probabilities (B, K)."""
    net = Probabilities(given.trained).eval()
    example = torch.zeros(2, given.base, given.base, 3, dtype=torch.uint8)
    sizes = {"pixels": {0: torch.export.Dim("batch", min=1)}}
    try:
        program = torch.export.export(net, (example,), dynamic_shapes=sizes)
    except Exception as error:  # a net of the user's own may do anything
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"torch.export refuses this net: {type(error).__name__}: {reason}") from error
    torch.export.save(program, out / MODEL_FILES["torch"])
    module = torch.export.load(out / MODEL_FILES["torch"]).module()

    def predict(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(given.to_base(image))[None])[0].numpy()

    return predict


def write_safetensors(given: Exportable, out: Path) -> Predictor:
    """model.safetensors: the weights file as it is in the experiment, its metadata included."""
    shutil.copyfile(given.trained.path, out / MODEL_FILES["safetensors"])
    return lambda image: given.probabilities([image])[0]


# --- the folder ---------------------------------------------------------------------------------------


def export(given: Exportable, folder: Folder, out: Path, *, form: Format, int8: bool) -> Parity:
    """Write the folder `out`: whole or not at all. UserError where `out` holds something that is not an export."""
    if out.exists() and any(out.iterdir()) and not (out / PARITY).is_file():
        raise UserError(f"--out: {out} holds other files; give a new folder")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.absolute().parent))
    try:
        # The model, and how it compares with the net: int8 on every image, the others on some.
        writers = {"torch": write_torch, "safetensors": write_safetensors}
        exported = write_onnx(given, unfinished, int8) if form == "onnx" else writers[form](given, unfinished)
        images = given.valid if int8 or given.valid is None else given.valid.sample(PARITY_IMAGES)
        parity = compare(given, exported, images)
        # Its labels, a program that uses it, the card and the record of the comparison.
        names = [" ".join(name.split("\n")) for name in given.trained.classes]
        (unfinished / LABELS).write_text("\n".join([*names, ""]), encoding="utf-8")
        if form == "onnx":
            shutil.copyfile(EXPORTED / f"{PREDICT}.txt", unfinished / PREDICT)
        form_name = f"{form}, {'int8' if int8 else 'fp32'}"
        (unfinished / CARD).write_text(model_card(given, folder, parity, form, form_name), encoding="utf-8")
        digest = hashlib.sha256((unfinished / MODEL_FILES[form]).read_bytes()).hexdigest()
        record = {"model": MODEL_FILES[form], "sha256": digest, "form": form_name, "kit": VERSION}
        record |= {"weights": given.trained.kit["digest"], "tolerance": TOLERANCE} | asdict(parity)
        (unfinished / PARITY).write_text(to_json(record), encoding="utf-8")
        _replace_folder(out, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return parity


def _replace_folder(out: Path, new: Path) -> None:
    """Give `new` the name `out`; an older export goes when the new one is in its place."""
    new.chmod(0o755)
    old = new.with_name(f"{new.name}-old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    sync_folder(out.absolute().parent)
    shutil.rmtree(old, ignore_errors=True)


# --- the model card -----------------------------------------------------------------------------------


def model_card(given: Exportable, folder: Folder, parity: Parity, form: Format, form_name: str) -> str:
    kit, resolved, meta = given.trained.kit, folder.resolved(), folder.meta()
    environment = Environment(loader=FileSystemLoader(EXPORTED), undefined=StrictUndefined, keep_trailing_newline=True)
    looks = count_looks(str(folder.path / TEST_LOOKS))
    return environment.get_template(f"{CARD}.j2").render(
        title=folder.path.resolve().name,
        version=VERSION,
        date=now()[:10],
        arch=kit["arch"],
        num_parameters=meta.get("num_parameters"),
        im_sz=kit["im_sz"],
        resize=kit["resize"],
        classes=kit["classes"],
        tta=given.trained.tta,
        weights=f"{given.trained.name} (epoch {given.trained.epoch or '?'})",
        form=form_name,
        form_key=form,
        base=given.base,
        data=Path(str(meta.get("data_dir", ""))).name,
        metrics=metrics_table(folder, given.trained, given.valid),
        looks=f"Looks at the test set so far: {looks}.",
        parity=parity.describe(),
        precision=resolved["precision"],
        params=json.dumps({key: value for key, value in resolved.items() if key not in NOT_SHOWN}, indent=2),
    )


def metrics_table(folder: Folder, trained: Trained, valid: Images | None) -> str:
    """Metrics on valid and test; of an accuracy the 95 % interval of Wilson (1927) for the number of images."""
    lines = []
    for split, num_images in (("val", len(valid) if valid else 0), ("test", count_images(folder, trained.name))):
        name = f"metrics_{split}_{trained.name}{'_weights' if split == 'val' else ''}.json"
        metrics: JsonObject = folder.read(name, {})
        if metrics.get("epoch") != trained.epoch:
            continue  # of other weights, or measured before an extension
        for key, value in metrics.items():
            if key == "epoch" or value is None:
                continue
            interval = ""
            if key == "accuracy" and num_images:
                test = binomtest(round(value * num_images), num_images)
                low, high = test.proportion_ci(method="wilson")
                interval = f"{low:.4f} to {high:.4f}"
            lines.append(["valid" if split == "val" else split, key, f"{value:.4f}", interval, num_images or ""])
    return tabulate(lines, ["split", "metric", "value", "95 % interval", "images"], "github", disable_numparse=True)


def count_images(folder: Folder, weights: str) -> int:
    """Number of test images of the last evaluation, 0 when there is none."""
    path = folder.path / f"{EVALUATION}{'' if weights == 'best' else f'_{weights}'}" / "per_class.csv"
    with contextlib.suppress(OSError, ValueError, KeyError), open(path, encoding="utf-8", newline="") as file:
        return sum(int(line["images"]) for line in csv.DictReader(file))
    return 0
