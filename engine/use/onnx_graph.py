"""A trained net as an ONNX model that takes decoded images of any size. Needs onnx; checked with onnxruntime.

The model is two graphs in a row. The first is written here: resize and crop, as model/images/decode.py does. The
second is the net as torch exports it, with normalisation before it and softmax behind it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from engine.use.inference import Trained
from include import VERSION
from utils import UserError

if TYPE_CHECKING:  # an extra
    import onnx  # pyright: ignore[reportMissingImports] # an extra

OPSET = 20

# Height and width of the resized image, by the `resize` of params.json; `shape` is (height, width) of the image.
# Round goes to the nearest even number, as Python's round().
RESIZED = {
    "squash": "resized_shape = Identity(base)",
    "crop": """
        short = ReduceMin <keepdims = 1> (shape)
        scaled = Mul(shape, base)
        resized_shape = Div(scaled, short)""",
    "letterbox": """
        long = ReduceMax <keepdims = 1> (shape)
        exact_long = Cast <to = 11> (long)
        exact_base = Cast <to = 11> (base)
        exact_shape = Cast <to = 11> (shape)
        scale = Div(exact_base, exact_long)
        exact = Mul(exact_shape, scale)
        rounded = Round(exact)
        whole = Cast <to = 7> (rounded)
        one = Constant <value_ints = [1]> ()
        resized_shape = Max(whole, one)""",
}
# The resized image -> base x base pixels.
FITTED = {
    "squash": "fitted = Identity(resized)",
    "crop": """
        excess = Sub(resized_shape, base)
        exact_excess = Cast <to = 11> (excess)
        half = Constant <value = double {0.5}> ()
        middle = Mul(exact_excess, half)
        rounded_middle = Round(middle)
        corner = Cast <to = 7> (rounded_middle)
        end = Add(corner, base)
        height_and_width = Constant <value_ints = [2, 3]> ()
        fitted = Slice(resized, corner, end, height_and_width)""",
    "letterbox": """
        rest = Sub(base, resized_shape)
        two = Constant <value_ints = [2]> ()
        before = Div(rest, two)
        after = Sub(rest, before)
        zeros = Constant <value_ints = [0, 0]> ()
        margins = Concat <axis = 0> (zeros, before, zeros, after)
        grey = Constant <value = uint8 {128}> ()
        fitted = Pad(resized, margins, grey)""",
}
# Resize of onnxruntime is within one level of Pillow's for uint8 alone, and with exclude_outside.
PREPROCESSING = """
<ir_version: 10, opset_import: ["" : %(opset)d]>
preprocess (uint8[batch, height, width, 3] image) => (uint8[batch, %(base)d, %(base)d, 3] pixels)
{
        base = Constant <value_ints = [%(base)d, %(base)d]> ()
        channels_first = Transpose <perm = [0, 3, 1, 2]> (image)
        batch_and_channels = Shape <start = 0, end = 2> (channels_first)
        shape = Shape <start = 2> (channels_first)
        %(resized)s
        sizes = Concat <axis = 0> (batch_and_channels, resized_shape)
        resized = Resize <mode = "linear", antialias = 1, exclude_outside = 1> (channels_first, , , sizes)
        %(fitted)s
        pixels = Transpose <perm = [0, 2, 3, 1]> (fitted)
}
"""


def preprocessing(base: int, resize: str) -> onnx.ModelProto:
    """image (B, H, W, 3) uint8 RGB of any size -> pixels (B, base, base, 3) uint8; see `resize` in params.json."""
    import onnx  # pyright: ignore[reportMissingImports] # an extra
    import onnx.parser  # pyright: ignore[reportMissingImports] # an extra

    parts = {"base": base, "opset": OPSET, "resized": RESIZED[resize], "fitted": FITTED[resize]}
    model = onnx.parser.parse_model(PREPROCESSING % parts)
    onnx.checker.check_model(model)
    return model


# --- the net ------------------------------------------------------------------------------------------


class Probabilities(nn.Module):
    """Base images (B, S, S, 3) uint8 -> probabilities (B, K) float32: centre crop, normalisation, net, softmax."""

    def __init__(self, trained: Trained):
        super().__init__()
        self.net = trained.net
        self.tta = trained.tta
        self.average_views = trained.average_views
        self.im_sz = int(trained.kit["im_sz"])
        normalisation = trained.kit["normalisation"]
        self.mean = nn.Buffer(torch.tensor(normalisation["mean"]).mul(255)[:, None, None])
        self.scale = nn.Buffer(torch.tensor(normalisation["std"]).mul(255).reciprocal()[:, None, None])

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, 3, im_sz, im_sz) float32."""
        corner = (pixels.shape[1] - self.im_sz) // 2
        centre = slice(corner, corner + self.im_sz)
        return (pixels[:, centre, centre].permute(0, 3, 1, 2).float() - self.mean) * self.scale

    def forward(self, pixels: Tensor) -> Tensor:
        images = self.normalise(pixels)
        if predict := getattr(self.net, "predict", None):
            return self.average_views(predict, images, self.tta)
        return self.average_views(self.net, images, self.tta).softmax(dim=1)


def export_net(net: Probabilities, base: int) -> onnx.ModelProto:
    """pixels (B, base, base, 3) uint8 -> probabilities (B, K). UserError for a net that torch cannot export."""
    example = torch.zeros(2, base, base, 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["pixels"],
                output_names=["probabilities"],
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}},
                verbose=False,
            )
    except Exception as error:  # a net of the user's own may do anything
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"this net cannot be exported to ONNX: {type(error).__name__}: {reason}") from error
    assert program is not None
    return program.model_proto


def join(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """The two graphs as one model: image -> probabilities."""
    import onnx  # pyright: ignore[reportMissingImports] # an extra
    import onnx.compose  # pyright: ignore[reportMissingImports] # an extra

    first.ir_version = second.ir_version
    versions = {entry.domain: entry.version for entry in second.opset_import}
    if versions[""] != OPSET:
        raise ValueError(f"the exported net has opset {versions['']}, not {OPSET}")
    model = onnx.compose.merge_models(
        onnx.compose.add_prefix(first, "image_", rename_inputs=False, rename_outputs=False),
        second,
        io_map=[("pixels", "pixels")],
        producer_name="Experiment Folders",
        producer_version=VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


# --- int8 ---------------------------------------------------------------------------------------------


def quantise(model: onnx.ModelProto, batches: Iterable[np.ndarray], folder: Path) -> onnx.ModelProto:
    """The net of `model` in int8: weights per channel, activations in the ranges that `batches` give them.

    `batches`: (B, base, base, 3) uint8 each, of training images. `folder`: for temporary files.
    """
    import onnx  # pyright: ignore[reportMissingImports] # an extra
    import onnx.shape_inference  # pyright: ignore[reportMissingImports] # an extra
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # pyright: ignore[reportMissingImports] # an extra

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, np.ndarray]:
            return next(({"pixels": batch} for batch in self.batches), {})

    prepared, result = folder / "prepared.onnx", folder / "int8.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), prepared)
    logging.disable(logging.WARNING)  # onnxruntime's advice is for those who write such a function
    try:
        quantize_static(
            prepared,
            result,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(result)
