"""Nets by name: counts, heads, stems, initialisation, layer groups, freezing, weights, mistakes."""

import copy
import hashlib
import subprocess
import sys
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from golden import GOLDEN, count, on_meta, parameter_counts
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import params as params_module
from engine.use.published import Shelf
from include import IMAGENET_MEAN, IMAGENET_STD, ROOT
from model.net import NETS, make_net
from model.nets.backbones import list_torchvision_nets
from model.nets.freezing import Freezer
from model.nets.groups import layer_depths, layer_groups, optimizer_groups
from model.nets.published import published_normalisation
from model.nets.weights import load_tensors
from params import Params
from utils import UserError, read_json

SHELF = Shelf(Path("nowhere"))  # holds no copies


def make_params(folder: Path = ROOT, **keys: Any) -> Params:
    return params_module.from_resolved({"im_sz": 32} | keys, folder)


def build(params: Params, num_classes: int, weights: dict[str, torch.Tensor] | None = None) -> nn.Module:
    return make_net(params, num_classes, weights, published=SHELF)[0]


# --- counts, heads, stems ---------------------------------------------------------------------------


def test_parameter_counts_are_the_golden_ones_and_the_published_ones():
    from torchvision.models import get_model, get_model_weights

    counts = parameter_counts()
    assert counts == read_json(GOLDEN)
    with on_meta():  # published with its auxiliary head, which the kit leaves out
        auxiliary = count(get_model("inception_v3", init_weights=False).AuxLogits)
    for name in list_torchvision_nets():
        published = get_model_weights(name).DEFAULT.meta["num_params"]
        assert counts[name]["1000"] == published - (auxiliary if name == "inception_v3" else 0), name


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("im_sz", [8, 32, 64])
def test_own_nets_give_logits_at_any_small_size(name, im_sz):
    net, weights_report = make_net(make_params(arch=name, im_sz=im_sz, ps=0.5), 7)
    assert net.training
    assert weights_report is None
    assert net(torch.randn(4, 3, im_sz, im_sz)).shape == (4, 7)


def test_simple_cnn_step_by_step():
    """Two times convolution, norm, ReLU, then pooling, three times; the mean over the pixels; a linear layer."""
    net = build(make_params(arch="simple_cnn", arch_args={"n_filters": 4}), 7).eval()
    tensors = iter(net.state_dict().values())
    images = x = torch.randn(2, 3, 16, 16)
    for _ in range(3):
        for _ in range(2):
            kernel, gain, shift, mean, variance, _ = (next(tensors) for _ in range(6))
            x = F.conv2d(x, kernel, padding=1)
            x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
            x = (x * gain[:, None, None] + shift[:, None, None]).clamp(min=0)
        x = F.max_pool2d(x, 2)
    logits = x.mean(dim=(2, 3)) @ next(tensors).T + next(tensors)
    torch.testing.assert_close(net(images), logits, rtol=1e-5, atol=1e-5)


def test_resnet9_step_by_step():
    net = build(make_params(arch="resnet9", arch_args={"widths": [32, 32, 40]}), 7).eval()
    tensors = net.state_dict()
    images = torch.randn(2, 3, 32, 32)
    # The stem: a cosine transform of 2x2 patches, as scipy has it, of opponent colours; both signs.
    colours = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).numpy()  # (B, 3, H, W, 2, 2)
    cosines = scipy.fft.dctn(patches, axes=(4, 5), norm="ortho")
    x = torch.from_numpy(np.einsum("kc,bchwyx->bkyxhw", colours, cosines).reshape(2, 12, 31, 31)).float()
    x = F.gelu(torch.cat([x, -x], dim=1) / (1 + 1e-5) ** 0.5)

    def conv_norm_act(x: torch.Tensor, name: str, halve: bool = False) -> torch.Tensor:
        kernel = tensors[f"{name}.conv.weight"]
        x = F.conv2d(x, kernel, padding=1)
        x = F.max_pool2d(x, 2) if halve else x
        return F.gelu(x / (1 + 1e-5) ** 0.5)  # an untrained norm

    for stage, num_layers in enumerate((1, 1, 2)):
        x = y = conv_norm_act(x, f"stages.{stage}.0", halve=True)
        for layer in range(num_layers):
            y = conv_norm_act(y, f"stages.{stage}.1.layers.{layer}")
        x = x + y
    logits = (x.amax(dim=(2, 3)) @ tensors["head.3.weight"].T + tensors["head.3.bias"]) / 9
    torch.testing.assert_close(net(images), logits, rtol=1e-4, atol=1e-5)


def test_convolutions_of_resnet9_begin_as_the_identity():
    net = build(make_params(arch="resnet9", arch_args={"widths": [32, 32, 40]}), 7)
    x = torch.randn(1, 24, 5, 5)
    assert torch.equal(net.stages[0][0].conv(x)[:, :24], x)
    assert all(
        not m.weight.requires_grad and m.bias.requires_grad
        for m in net.stages.modules()
        if isinstance(m, nn.BatchNorm2d)
    )
    tiny = net.stages[0][0].eval()
    assert tiny(torch.randn(1, 24, 1, 1)).shape == (1, 32, 1, 1)  # nothing to halve


def test_arch_args_reach_the_constructor():
    assert build(make_params(arch="lenet", arch_args={"n_filters": 10}), 10).features[0].out_channels == 10
    assert build(make_params(arch="resnet9", arch_args={"widths": [8, 8, 16]}), 10).head[-1].in_features == 16
    net = build(make_params(arch="resnet18", arch_args={"zero_init_residual": True}), 10)
    assert net.layer1[0].bn2.weight.eq(0).all()


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "vit_b_16", "efficientnet_b0"],
)
def test_head_dropout_is_ps_under_torchvisions_own_names(name):
    from torchvision.models import get_model

    with on_meta():
        net = build(make_params(arch=name, ps=0.25, im_sz=224), 5)
        own = get_model(name, num_classes=5)
    assert net.state_dict().keys() == own.state_dict().keys()
    rates = [getattr(m, "p", getattr(m, "dropout", 0)) for m in net.modules() if "Dropout" in type(m).__name__]
    assert rates[-1] == 0.25


def test_head_dropout_acts_in_training_only():
    net = build(make_params(arch="resnet18", ps=0.9), 5)
    features = torch.ones(4, 512)
    assert not net.fc(features).equal(net.fc(features))
    net.eval()
    assert net.fc(features).equal(net.fc(features))


def test_resnets_keep_small_images_large():
    small, large = (build(make_params(arch="resnet18", im_sz=size), 10) for size in (64, 65))
    assert small.conv1.kernel_size == (3, 3)
    assert small.conv1.stride == (1, 1)
    assert isinstance(small.maxpool, nn.Identity)
    assert large.conv1.kernel_size == (7, 7)
    assert count(large) - count(small) == 64 * 3 * (49 - 9)


def test_timm_nets():
    timm = pytest.importorskip("timm")
    net = build(make_params(arch="timm/resnet18", ps=0.5), 10)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert net.drop_rate == 0.5
    assert build(make_params(arch="timm/vit_tiny_patch16_224", im_sz=32), 3).pos_embed.shape[1] == 5
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        build(make_params(arch="timm/resnet18x"), 10)
    with pytest.raises(UserError, match="n_filter"):
        build(make_params(arch="timm/resnet18", arch_args={"n_filter": 1}), 10)
    unpublished = next(name for name in timm.list_models() if not timm.models.is_model_pretrained(name))
    with pytest.raises(UserError, match="publishes no weights"):
        build(make_params(arch=f"timm/{unpublished}", pretrain=1), 10)


def test_own_nets_do_not_import_torchvision():
    code = (
        "import sys; from params import Params; from model.net import make_net\n"
        "make_net(Params(im_sz=32), 10)\n"
        "sys.exit('torchvision' in sys.modules)"
    )
    paths = {"PYTHONPATH": ":".join(sys.path), "PATH": ""}
    assert subprocess.run([sys.executable, "-c", code], env=paths, cwd=ROOT).returncode == 0


# --- initialisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NETS, "resnet18", "mobilenet_v3_small"])
def test_initialisation_is_a_function_of_the_seed_alone(name):
    before = torch.get_rng_state()
    first = build(make_params(arch=name), 10).state_dict()
    assert torch.get_rng_state().equal(before)
    torch.rand(3)
    again = build(make_params(arch=name), 10).state_dict()
    other = build(make_params(arch=name, seed=1), 10).state_dict()
    assert all(first[key].equal(again[key]) for key in first)
    assert any(not first[key].equal(other[key]) for key in first)


# --- layer groups and freezing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [*NETS, "resnet18", "resnext50_32x4d", "alexnet", "vgg11_bn", "densenet121", "squeezenet1_0", "googlenet"]
    + [
        "inception_v3",
        "mobilenet_v3_small",
        "efficientnet_b0",
        "convnext_tiny",
        "vit_b_16",
        "swin_t",
        "maxvit_t",
    ]
    + ["regnet_y_400mf", "shufflenet_v2_x0_5", "mnasnet0_5", "timm/resnet18", "timm/vit_tiny_patch16_224"],
)
def test_layer_groups_hold_each_parameter_once(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with on_meta():
        net = build(make_params(arch=name, im_sz=64 if name == "sign_net" else 224), 13)
    groups = layer_groups(net)
    names = {id(parameter): key for key, parameter in net.named_parameters()}
    assert sorted(names[id(p)] for group in groups for p in group) == sorted(names.values())
    assert len(groups) == 3
    assert all(groups)
    assert any(p.shape[0] == 13 for p in groups[2])
    assert not any(p.shape[0] == 13 for p in groups[0] + groups[1])
    sizes = [sum(p.numel() for p in group) for group in groups]
    assert min(sizes[:2]) > 0.005 * sum(sizes[:2]), sizes


def test_layer_groups_of_a_resnet():
    net = build(make_params(arch="resnet18"), 10)
    names = {id(parameter): key.split(".")[0] for key, parameter in net.named_parameters()}
    tops = [list(dict.fromkeys(names[id(p)] for p in group)) for group in layer_groups(net)]
    assert tops == [["conv1", "bn1", "layer1", "layer2"], ["layer3", "layer4"], ["fc"]]


def test_layer_groups_of_the_kits_own_nets():
    """The body is divided in the middle of its blocks; of an odd number, the early half gets one more."""
    expected = {
        "simple_cnn": [{"blocks.0", "blocks.1"}, {"blocks.2"}, {"head.1"}],
        "resnet9": [{"stages.0", "stages.1"}, {"stages.2"}, {"head.3"}],
        "lenet": [{"features.0", "features.3"}, {"hidden.0", "hidden.2"}, {"head.1"}],
    }
    for arch, groups in expected.items():
        net = build(make_params(arch=arch), 10)
        names = {id(p): ".".join(key.split(".")[:2]) for key, p in net.named_parameters()}
        assert [{names[id(p)] for p in group} for group in layer_groups(net)] == groups, arch


def test_layer_groups_of_odd_nets():
    assert [len(group) for group in layer_groups(nn.Linear(4, 2))] == [0, 0, 2]
    assert [len(group) for group in layer_groups(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))] == [0, 0, 2]
    mlp = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [len(group) for group in layer_groups(mlp)] == [2, 2, 2]

    class Own(nn.Linear):
        def layer_groups(self) -> list[list[nn.Parameter]]:
            return [[self.weight]]

    with pytest.raises(UserError, match="exactly once"):
        layer_groups(Own(4, 2))


def freezer(net: nn.Module, groups: int, epochs: float = 1) -> Freezer:
    return Freezer(net, make_params(freeze={"groups": groups, "epochs": epochs}))


def test_frozen_groups_do_not_move_not_even_their_batch_norm():
    net = build(make_params(arch="simple_cnn", arch_args={"n_filters": 4}), 10)
    freeze = freezer(net, 2)
    net(torch.randn(8, 3, 32, 32)).sum().backward()
    freeze(0)
    before, groups = copy.deepcopy(net.state_dict()), layer_groups(net)
    assert all(p.grad is None for p in groups[0] + groups[1])  # else an optimizer would still move them
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, weight_decay=0.1)
    net(torch.randn(8, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    moved = {key for key, value in net.state_dict().items() if not value.equal(before[key])}
    assert moved == {"head.1.weight", "head.1.bias"}
    assert all(p.grad is None for p in groups[0])

    net.train()
    freeze.freeze_groups(1)  # the last block learns again
    net(torch.randn(8, 3, 32, 32))
    assert not net.blocks[0][0][1].training
    assert net.blocks[2][0][1].training
    assert [[p.requires_grad for p in group] for group in groups] == [
        [number > 0] * len(group) for number, group in enumerate(groups)
    ]


def test_freezing_ends_with_its_epochs():
    net = build(make_params(arch="simple_cnn", arch_args={"n_filters": 4}), 10)
    freeze, norm = freezer(net, 1, epochs=1.5), net.blocks[0][0][1]
    for epoch, is_frozen in ((0, True), (1, True), (2, False), (3, False), (0, True)):
        net.train()
        freeze(epoch)
        assert norm.training is not is_frozen
        assert norm.weight.requires_grad is not is_frozen
        assert net.blocks[2][0][1].training
        assert net.head[1].weight.requires_grad
    freeze(2)
    assert not norm.training  # train() puts it back
    assert all(module.training for module in net.train().modules())
    Freezer(net, make_params())(0)
    assert norm.training
    assert all(p.requires_grad for p in net.parameters())


def test_freezing_leaves_what_the_net_froze_itself_and_needs_something_to_train():
    net = build(make_params(), 10)
    net.head[1].bias.requires_grad_(False)
    freeze = freezer(net, 1)
    freeze(0)
    freeze(1)
    assert [key for key, p in net.named_parameters() if not p.requires_grad] == ["head.1.bias"]
    with pytest.raises(UserError, match="freeze.groups: 3 given, but the net has 3 layer groups.*possible: 1 to 2"):
        freezer(net, 3)


def test_steps_of_freezing_and_norms_without_parameters_of_their_own():
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
    )
    assert [len(group) for group in layer_groups(net)] == [6, 4, 2]
    freeze = Freezer(net, make_params(freeze=[[2, 1], [1, 2.5]]))
    for epoch, num_groups in ((0, 2), (1, 1), (2, 1), (3, 0)):
        net.train()
        freeze(epoch)
        before = copy.deepcopy(net.state_dict())
        net(torch.randn(8, 3, 32, 32))
        moved = [not before[f"{k}.1.running_mean"].equal(net[k][1].running_mean) for k in range(3)]
        assert moved == [num_groups < 1, num_groups < 1, num_groups < 2]


def test_depths_are_blocks_and_the_head():
    def depths(arch: str, **args) -> list[int]:
        return [sum(p.numel() for p in depth) for depth in layer_depths(build(make_params(arch=arch, **args), 10))]

    resnet = depths("resnet18", im_sz=224)
    assert len(resnet) == 1 + 8 + 1
    assert resnet[0] == 64 * 3 * 49 + 2 * 64
    assert resnet[-1] == 512 * 10 + 10
    vit = build(make_params(arch="vit_b_16", im_sz=224), 10)
    assert len(layer_depths(vit)) == 1 + 12 + 1  # as BEiT counts: the patches, the blocks, the head
    assert len(depths("simple_cnn")) == 6 + 1
    assert len(depths("vgg11", im_sz=64)) == 8 + 3
    groups = optimizer_groups(vit, make_params(learning_rate=0.1, layer_decay=0.5))
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates.keys() == {id(p) for p in vit.parameters()}
    assert rates[id(vit.heads.head.weight)] == 0.1
    assert rates[id(vit.encoder.ln.weight)] == rates[id(vit.encoder.layers[11].mlp[0].weight)] == 0.1 * 0.5
    assert rates[id(vit.conv_proj.weight)] == 0.1 * 0.5**13


# --- weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_local_file(tmp_path, suffix):
    source = build(make_params(arch="lenet", seed=5), 10)
    tensors = {f"_orig_mod.module.{key}": value for key, value in source.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save({"state_dict": tensors}, path)
    net, weights_report = make_net(make_params(tmp_path, arch="lenet", pretrain=path.name), 3)
    assert net.features[0].weight.equal(source.features[0].weight)
    line = str(weights_report)
    assert line.startswith(
        f"{path}: 8 of the net's 10 tensors loaded (99.6% of its numbers); other shape, not loaded: head"
    )
    assert "\n" not in line
    assert weights_report.record() == {
        "source": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "loaded": "8 of 10 tensors",
    }
    # Without a head, or with more than the net takes.
    del tensors["_orig_mod.module.head.1.bias"]
    report = load_tensors(source, tensors, "w")
    assert report.missing == ["head.1.bias"]
    assert not report.mismatched
    assert len(report.matched) == 9


def test_weights_that_fit_nowhere(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    for name, message in (("w.pth", "0 of the net's 38 tensors fit"), ("no.pth", "no such weights file")):
        with pytest.raises(UserError, match=message):
            build(make_params(tmp_path, pretrain=name), 10)


def test_the_stem_is_the_one_that_the_weights_were_trained_with(tmp_path):
    for im_sz, kernel in ((32, 3), (224, 7)):
        torch.save(build(make_params(arch="resnet18", im_sz=im_sz), 10).state_dict(), tmp_path / "w.pth")
        net, weights_report = make_net(make_params(tmp_path, arch="resnet18", im_sz=32, pretrain="w.pth"), 10)
        assert net.conv1.kernel_size == (kernel, kernel)
        assert "not loaded" not in str(weights_report)


def test_trained_weights_come_back_whole_and_without_pretrain():
    trained = build(make_params(arch="resnet18", im_sz=224, seed=3), 10).state_dict()  # a 7x7 stem, as pretrain 1 has
    given = make_params(arch="resnet18", im_sz=32, pretrain=1)
    net, weights_report = make_net(given, 10, weights=trained)
    assert weights_report is None
    assert all(net.state_dict()[key].equal(trained[key]) for key in trained)
    with pytest.raises(UserError, match="not of the net that params.json describes.*fc.weight"):
        build(given, 11, weights=trained)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch's download cache, empty, and no network."""

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


def test_published_weights_with_no_network_say_what_to_do(hub):
    with pytest.raises(UserError, match="no network, put https://.*resnet18-.*pth at .*or give a local file") as caught:
        build(make_params(arch="resnet18", pretrain=1), 10)
    assert str(hub) in str(caught.value)
    assert "\n" not in str(caught.value)
    for arch, message in (
        ("simple_cnn", "no published weights"),
        ("vit_b_16", "are for 224 px; set im_sz to 224"),
    ):
        with pytest.raises(UserError, match=message):
            build(make_params(arch=arch, pretrain=1), 10)


def test_published_weights_from_torchs_cache(hub):
    from torchvision.models import get_model, get_model_weights

    def put(name: str, old_names: bool = False) -> dict[str, torch.Tensor]:
        tensors = get_model(name, **({"init_weights": False} if name == "googlenet" else {})).state_dict()
        if old_names:
            renames = {f"{kind}{i}.": f"{kind}.{i}." for kind in ("norm", "conv") for i in (1, 2)}
            for new, old in renames.items():
                tensors = {
                    key.replace("." + new, "." + old) if "denselayer" in key else key: v for key, v in tensors.items()
                }
        torch.save(dict(tensors), hub / get_model_weights(name).DEFAULT.url.rsplit("/", 1)[1])
        return tensors

    tensors = put("resnet18")
    net, weights_report = make_net(make_params(arch="resnet18", pretrain=1, im_sz=32), 10, published=SHELF)
    assert net.conv1.weight.equal(tensors["conv1.weight"])
    assert net.fc.out_features == 10
    assert "120 of the net's 122 tensors loaded (99.9% of its numbers); other shape, not loaded: fc.weight" in str(
        weights_report
    )

    put("densenet121", old_names=True)
    _, report = make_net(make_params(arch="densenet121", pretrain=1, im_sz=64), 10, published=SHELF)
    assert "missing" not in str(report)
    assert "unexpected" not in str(report)
    put("googlenet")
    params = make_params(arch="googlenet", pretrain=1, im_sz=64)
    net, weights_report = make_net(params, 10, published=SHELF)
    again, _ = make_net(params, 10, weights=net.state_dict())  # as evaluate, predict and a resume make it
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(net.eval()(images), again.eval()(images))
    # The pixels that it gets are those that torchvision's own transform_input makes of ImageNet-normalised ones.
    pixels, (mean, std) = torch.rand(2, 3, 64, 64), published_normalisation("googlenet", "DEFAULT")
    ours = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    imagenet = (pixels - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    theirs = get_model("googlenet", init_weights=False, transform_input=True)._transform_input(imagenet)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert "missing" not in str(weights_report)
    assert "unexpected in the file: aux1" in str(weights_report)


def test_pixels_are_normalised_as_published_weights_want_them():
    pytest.importorskip("timm")
    half = ([0.5] * 3, [0.5] * 3)
    assert published_normalisation("timm/tf_efficientnet_lite0", "in1k") == half
    assert published_normalisation("timm/resnet18", "a1_in1k") == (list(IMAGENET_MEAN), list(IMAGENET_STD))
    assert published_normalisation("inception_v3", "DEFAULT") == half
    assert published_normalisation("resnet18", "DEFAULT") == (list(IMAGENET_MEAN), list(IMAGENET_STD))


# --- a net of the experiment's own ------------------------------------------------------------------

OWN = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, width, 3), nn.Linear(width, num_classes)
    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))

class Bare(Net):
    def forward(self, x):
        return self.conv(x)

def broken(num_classes):
    raise KeyError("inside")

def none(num_classes):
    pass

number = 3
"""


def test_nets_of_a_file(tmp_path):
    (tmp_path / "net.py").write_text(OWN)
    net = build(make_params(tmp_path, arch="net.py:Net", arch_args={"width": 6}), 5)
    assert net.conv.out_channels == 6
    for name, keys, message in (
        ("Bare", {}, r"gave shape \(2, 4, 30, 30\) for 2 images"),
        ("Net", {"im_sz": None, "arch_args": {"widht": 2}}, "did you mean 'width'"),
        ("Net", {"arch_args": {"width": -2}}, "net.py:Net cannot be built"),
        ("Net", {"ps": 0.5}, "takes no `dropout`"),
        ("broken", {}, "KeyError: 'inside'"),
        ("none", {}, "gave a NoneType, not a torch.nn.Module"),
        ("number", {}, "is a int, not a net's class"),
        ("Nte", {}, "did you mean 'Net'"),
    ):
        with pytest.raises(UserError, match=message):
            build(make_params(tmp_path, arch=f"net.py:{name}", **keys), 5)


# --- what users get wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"arch": "resnet19"}, "unknown net 'resnet19'; did you mean 'resnet"),
        ({"arch": "simple_cn"}, "did you mean 'simple_cnn'"),
        ({"arch": "net.py:Missing"}, "there is no file"),
        ({"arch_args": {"n_filter": 3}}, "SimpleCNN takes no 'n_filter'; did you mean 'n_filters'"),
        ({"arch_args": {"num_classes": 3}}, "takes no 'num_classes'"),
        (
            {"arch_args": {"n_filters": "many"}},
            "simple_cnn cannot be built with arch_args {'n_filters': 'many'}",
        ),
        ({"arch": "resnet9", "arch_args": {"widths": [1, 2]}}, "not enough values"),
        ({"arch": "sign_net", "im_sz": 30}, "30 is not a multiple of 8"),
        ({"arch": "resnet18", "arch_args": {"zero_init": 1}}, "ResNet takes no 'zero_init'"),
        ({"arch": "resnet18", "arch_args": {"weights": "DEFAULT"}}, "ResNet takes no 'weights'"),
        ({"arch": "resnet18", "arch_args": {"layers": [1]}}, "multiple values"),
        ({"arch": "convnext_tiny", "arch_args": {"foo": 1}}, "ConvNeXt takes no 'foo'"),
        ({"arch": "alexnet", "im_sz": 16}, "alexnet cannot take images of 16 px"),
        ({"arch": "vit_b_16", "im_sz": 30}, "vit_b_16 cannot be built.*patch size"),
    ],
)
def test_mistakes_are_one_line(keys, message):
    with pytest.raises(UserError, match=message) as caught:
        build(make_params(**keys), 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "im_sz", "grows", "tried"),
    [
        ("simple_cnn", 32, False, [32]),
        ("simple_cnn", 224, False, [224]),
        ("resnet18", 223, False, [223]),
        ("resnet18", 224, False, []),  # a library's net takes its usual size
        ("resnet18", 64, True, [32, 64]),
        ("resnet18", 256, True, [128]),
    ],
)
def test_the_sizes_that_a_net_is_tried_with(arch, im_sz, grows, tried, monkeypatch):
    sides = []
    monkeypatch.setattr("model.net.check_output", lambda net, arch, num_classes, side: sides.append(side))
    how = {"initial_scale": 0.5, "delay_fraction": 0.5, "finetune_fraction": 0.5} if grows else None
    make_net(make_params(arch=arch, im_sz=im_sz, num_epochs=4, progressive=how), 3)
    assert sides == tried


def test_progressive_sizes_that_the_net_cannot_take_are_one_line():
    """Found when the net is made, and not in the epoch that first has that size."""
    how = {"initial_scale": 0.5, "delay_fraction": 0.5, "finetune_fraction": 0.2}
    with pytest.raises(UserError, match="^arch: sign_net cannot take images of 32 px: "):
        build(Params(arch="sign_net", im_sz=64, num_epochs=4, progressive=how), 3)
    build(Params(arch="simple_cnn", im_sz=64, num_epochs=4, progressive=how), 3)
