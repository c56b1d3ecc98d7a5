"""Weights from elsewhere: they fit but for the head, or are refused; published ones by tag, from copies, or not at all."""

import hashlib
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine.use.published import SECONDS, Shelf
from model.net import make_net
from model.nets.published import torchvision_weights
from model.nets.weights import list_misfits
from params import Params, from_written
from utils import UserError

Tensors = dict[str, torch.Tensor]


def make_params(folder: Path | None = None, **values) -> Params:
    return from_written(values, folder or Path())


def tensors_of(num_classes: int = 5, **params) -> Tensors:
    """The state of a net with its own random weights; small ResNets have the 3x3 stem."""
    given = {"arch": "resnet18", "im_sz": 32, "seed": 9} | params
    return make_net(make_params(**given), num_classes)[0].state_dict()


def start(folder: Path, tensors: Tensors, num_classes: int = 5, **params):
    """make_net from a file that holds `tensors`."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "w.safetensors")
    given = {"arch": "resnet18", "im_sz": 32, "pretrain": "w.safetensors"} | params
    return make_net(make_params(folder, **given), num_classes)


# --- strict -------------------------------------------------------------------------------------------


def test_weights_of_another_net_are_refused_and_recognised(tmp_path):
    with pytest.raises(UserError) as caught:
        start(tmp_path, tensors_of(), arch="resnet34")
    line = str(caught.value)
    assert "does not fit resnet34: 122 of the net's 218 tensors fit, 80 missing (layer1.2.conv1.weight" in line
    assert 'It seems to be of resnet18: set "arch": "resnet18"' in line
    assert '"pretrain_partial": 1' in line
    assert "\n" not in line


def test_a_partial_fit_is_accepted_when_asked_for_and_says_how_much(tmp_path):
    net, report = start(tmp_path, tensors_of(), arch="resnet34", pretrain_partial=1)
    assert str(report).startswith(f"{tmp_path / 'w.safetensors'}: 122 of the net's 218 tensors loaded (52.5% of its")
    assert net.layer1[1].conv1.weight.equal(tensors_of()["layer1.1.conv1.weight"])
    with pytest.raises(UserError, match="0 of the net's 38 tensors fit"):
        start(tmp_path, tensors_of(), arch="simple_cnn", pretrain_partial=1)


def test_only_the_head_may_differ(tmp_path):
    tensors = tensors_of()
    # Another number of classes, no head at all, or a head of two layers.
    net, report = start(tmp_path, tensors, num_classes=7)
    assert net.fc.out_features == 7
    assert sorted(report.mismatched) == ["fc.bias", "fc.weight"]
    body = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    _, report = start(tmp_path, body)
    assert report.missing == ["fc.weight", "fc.bias"]
    _, report = start(tmp_path, body | {"fc.1.weight": torch.zeros(5, 512), "fc.1.bias": torch.zeros(5)})
    assert report.unexpected == ["fc.1.bias", "fc.1.weight"]
    # Batch norm's counters are no weights.
    _, report = start(tmp_path, {name: t for name, t in tensors.items() if "num_batches" not in name})
    assert len(report.missing) == 20
    # A tensor of the body too few, too many, or of another shape.
    for changed, words in (
        ({name: t for name, t in tensors.items() if name != "bn1.running_mean"}, r"1 missing \(bn1.running_mean\)"),
        (tensors | {"extra.weight": torch.zeros(2)}, r"1 unexpected \(extra.weight\)"),
        (tensors | {"layer1.0.conv1.weight": torch.zeros(64, 32, 3, 3)}, r"of another shape \(layer1.0.conv1.weight: "),
    ):
        with pytest.raises(UserError, match=words):
            start(tmp_path, changed)


def test_a_second_head_and_the_averages_of_a_training_are_no_misfits(tmp_path):
    class Distilled(nn.Module):
        def __init__(self, num_classes: int):
            super().__init__()
            self.body = nn.Linear(4, 6)
            self.head = nn.Linear(6, num_classes)
            self.head_dist = nn.Linear(6, num_classes)

    from model.nets.weights import compare_tensors

    tensors = Distilled(9).state_dict() | {"n_averaged": torch.ones(())}
    net = Distilled(3)
    assert list_misfits(net, tensors, compare_tensors(net, tensors, "w"), 3) == []
    tensors["body.weight"] = torch.zeros(6, 5)
    assert len(list_misfits(net, tensors, compare_tensors(net, tensors, "w"), 3)) == 1


def test_other_sizes_and_another_stem_are_said_in_their_own_words(tmp_path):
    cnn = tensors_of(arch="simple_cnn", arch_args={"n_filters": 8})
    with pytest.raises(UserError, match="names are those of simple_cnn, the sizes are not: set arch_args"):
        start(tmp_path, cnn, arch="simple_cnn")
    with pytest.raises(UserError, match="3x3 stem for images of up to 64 px: set im_sz to 64 or less"):
        start(tmp_path, tensors_of(), im_sz=96)


def test_a_pickled_net_is_one_line_and_nothing_in_it_runs(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(UserError, match=r"pickled objects, such as a whole net; save model.state_dict\(\)") as caught:
        make_net(make_params(tmp_path, pretrain="whole.pth"), 5)
    assert "\n" not in str(caught.value)


def test_the_random_head_of_an_efficientnet_is_no_larger_than_usual(tmp_path):
    tensors = tensors_of(num_classes=3, arch="efficientnet_b0", im_sz=64)
    net, report = start(tmp_path, tensors, num_classes=2, arch="efficientnet_b0", im_sz=64)
    usual = nn.Linear(1280, 2).weight.std()
    assert 0.9 < net.classifier[1].weight.std() / usual < 1.1
    assert "the new head's random weights were 25 times as large as usual: scaled" in str(report)
    # A head that is loaded stays as it is, and so does one of usual size.
    net, report = start(tmp_path, tensors, num_classes=3, arch="efficientnet_b0", im_sz=64)
    assert net.classifier[1].weight.equal(tensors["classifier.1.weight"])
    plain = make_net(make_params(arch="resnet18", im_sz=32), 7)[0]
    net, report = start(tmp_path, tensors_of(), num_classes=7)
    assert net.fc.weight.equal(plain.fc.weight)
    assert "usual" not in str(report)


# --- published ----------------------------------------------------------------------------------------


def test_torchvisions_tags():
    assert str(torchvision_weights("resnet50", "IMAGENET1K_V2")) == "ResNet50_Weights.IMAGENET1K_V2"
    assert str(torchvision_weights("resnet50", "DEFAULT")) == "ResNet50_Weights.IMAGENET1K_V2"
    assert str(torchvision_weights("resnet50", "ResNet50_Weights.IMAGENET1K_V1")) == "ResNet50_Weights.IMAGENET1K_V1"
    for tag in ("IMAGENET1K_V3", "ResNet18_Weights.IMAGENET1K_V1", "name"):
        with pytest.raises(UserError, match=f"'{tag}' given; resnet50 has the published weights IMAGENET1K_V1, "):
            make_net(make_params(arch="resnet50", pretrain=tag), 5)
    with pytest.raises(UserError, match="are for 384 px; set im_sz to 384"):
        make_net(make_params(arch="vit_b_16", pretrain="IMAGENET1K_SWAG_E2E_V1"), 5)
    with pytest.raises(UserError, match="simple_cnn has no published weights"):
        make_net(make_params(pretrain="IMAGENET1K_V1"), 5)


def put_on_shelf(folder: Path, name: str, tensors: Tensors) -> Shelf:
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "w.safetensors")
    shelf = Shelf(folder / "weights")
    shelf.add(name, folder / "w.safetensors")
    return shelf


def test_a_copy_on_the_shelf_needs_no_network_and_is_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    tensors = tensors_of(num_classes=1000, im_sz=224)
    shelf = put_on_shelf(tmp_path, "ResNet18_Weights.IMAGENET1K_V1", tensors)
    for pretrain in (1, "IMAGENET1K_V1"):
        net, report = make_net(make_params(arch="resnet18", im_sz=224, pretrain=pretrain), 5, published=shelf)
        assert net.conv1.weight.equal(tensors["conv1.weight"])
        assert report.source == "ResNet18_Weights.IMAGENET1K_V1"
        assert report.sha256 == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    (copy,) = shelf.folder.iterdir()
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="is damaged; delete it"):
        make_net(make_params(arch="resnet18", im_sz=224, pretrain=1), 5, published=shelf)


def test_timms_weights_by_tag_are_what_timm_itself_loads(tmp_path):
    timm = pytest.importorskip("timm")
    tensors = timm.create_model("resnet10t.c3_in1k").state_dict()
    shelf = put_on_shelf(tmp_path, "timm_resnet10t.c3_in1k", tensors)
    file = str(tmp_path / "w.safetensors")
    for arch, pretrain in (("resnet10t", "c3_in1k"), ("resnet10t.c3_in1k", 1), ("resnet10t", 1)):
        params = make_params(arch=f"timm/{arch}", im_sz=64, pretrain=pretrain)
        net, report = make_net(params, 5, published=shelf)
        theirs = timm.create_model("resnet10t", pretrained=True, num_classes=5, pretrained_cfg_overlay={"file": file})
        body = [name for name in theirs.state_dict() if not name.startswith("fc.")]
        assert all(net.state_dict()[name].equal(theirs.state_dict()[name]) for name in body)
        assert sorted(report.mismatched) == ["fc.bias", "fc.weight"]
    # The head is the one that the seed gives, whatever is loaded.
    plain, _ = make_net(make_params(arch="timm/resnet10t", im_sz=64), 5)
    assert net.fc.weight.equal(plain.fc.weight)


def test_timms_weights_that_do_not_fit_are_refused(tmp_path):
    timm = pytest.importorskip("timm")
    shelf = put_on_shelf(tmp_path, "timm_resnet10t.c3_in1k", timm.create_model("resnet10t").state_dict())
    deeper = make_params(arch="timm/resnet10t", im_sz=64, pretrain=1, arch_args={"layers": [2, 2, 2, 2]})
    with pytest.raises(UserError, match="published weights of timm/resnet10t do not fit it with arch_args"):
        make_net(deeper, 5, published=shelf)
    partial = deeper.replace(pretrain_partial=1)
    assert "of its numbers" in str(make_net(partial, 5, published=shelf)[1])
    for arch, tag, words in (
        ("resnet10t", "a1_in1k", "'a1_in1k' given.*timm has the weights c3_in1k of resnet10t"),
        ("resnet18.a1_in1k", "a2_in1k", "arch says a1_in1k"),
    ):
        with pytest.raises(UserError, match=words):
            make_net(make_params(arch=f"timm/{arch}", pretrain=tag), 5)


@pytest.mark.parametrize("arch", ["resnet18", "timm/resnet18"])
def test_a_network_that_answers_nothing_is_said_within_ten_seconds(arch, tmp_path, monkeypatch):
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    make_net(make_params(arch=arch), 5)  # what is imported once is not counted
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: time.sleep(30))
    begun = time.monotonic()
    with pytest.raises(UserError, match=f"no answer in {SECONDS:g} s.*or give a local file"):
        make_net(make_params(arch=arch, pretrain=1), 5, published=Shelf(tmp_path))
    assert time.monotonic() - begun < 10
