"""Translate the names of other projects' weights into ours, one function per layout.

A layout is the naming scheme of a project's state dict; `recognise_layout` finds it by the names, and `LAYOUTS` holds
its function. `weights.load_weights` copies the translated tensors into a network.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.models.aspp import ASPPSum
from deeplab_lightning.models.backbone import Backbone, VGGBackbone
from deeplab_lightning.models.dilation import DilationRule

Layout = Literal["auto", "own", "torchvision", "smp", "caffe_resnet", "first", "vgg", "backbone"]
State = Mapping[str, Tensor]
"""Tensors by name."""
_CLASSIFIERS = re.compile(r"^(fc|classifier|head|last_linear|conv_head|norm_head|bn2|norm|pre_logits|num_features)\b")
_SMP_EFFICIENTNET = r"(encoder\.)?_conv_stem\.weight"
_VGG_FC = {  # names of fc6 and fc7 in VGG classifiers of torchvision, timm and Caffe
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "pre_logits.fc1": "fc6",
    "pre_logits.fc2": "fc7",
    "fc6": "fc6",
    "fc7": "fc7",
}


@dataclass
class Translation:
    """Hold the tensors of a source under our names.

    Attributes:
        tensors: Our name -> the source's tensor, converted if necessary.
        origins: Our name -> the source's name.
        ignored: Names of the source that need not fit into the network.
        required: Prefix of our names that the source must fill.
        dilation: Rule by which the source's backbone was dilated; None if the names do not show it.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    required: str = ""
    dilation: DilationRule | None = None

    def add(self, own: str, origin: str, tensor: Tensor) -> None:
        """Add a tensor under our name and the source's name."""
        self.tensors[own], self.origins[own] = tensor, origin


def recognise_layout(state: State) -> str:
    """Find the layout of a state dict by its names; `backbone` if no other layout matches."""
    marks = {
        "own": r"head\..*",
        "first": r"classifier\.conv3x3_dilate\d+\.0\.weight",
        "caffe_resnet": r"((scale|base)\.)?layer2\.block1\.reduce\.conv\.weight",
        "torchvision": r"classifier\.0\.convs\.0\.0\.weight",
        "smp": r"decoder\.(aspp|0)\..*",
        "vgg": r"features\.0\.weight|conv1_1\.weight",
    }
    for name, mark in marks.items():
        found = any(re.fullmatch(mark, key) for key in state)
        if name == "own" and found:
            found = any(key.startswith("backbone.") for key in state)
        if name == "vgg" and found:
            found = any(key.rsplit(".", 1)[0] in _VGG_FC for key in state) and not any(".conv." in k for k in state)
        if found:
            return name
    return "backbone"


def _own(state: State, net: nn.Module) -> Translation:
    """Translate a network of this package, whose names stay."""
    translation = Translation()
    for key, tensor in state.items():
        translation.add(key, key, tensor)
    return translation


def _torchvision(state: State, net: nn.Module) -> Translation:
    """Translate torchvision's DeepLabV3."""
    aspp = r"classifier\.0\.convs\.(\d+)"
    translation = _renamed_v3(
        state, "backbone", aspp, r"classifier\.0\.project", r"classifier\.1", r"classifier\.2", "classifier.4"
    )
    # Its ResNets keep the dilation of a stage's first layer, its MobileNets, whose parts have numbers, do not.
    translation.dilation = "torchvision" if "backbone.conv1.weight" in state else "smp"
    return translation


def _smp(state: State, net: nn.Module) -> Translation:
    """Translate the DeepLabV3 of segmentation_models_pytorch.

    Raises:
        ValueError: If the weights are of its DeepLabV3Plus, or of its DeepLabV3 on an EfficientNet of its own.
    """
    if "decoder.block1.0.weight" in state:
        raise UserError(
            "these are weights of smp's DeepLabV3Plus, whose decoder differs (one 3x3 after the ASPP, one after the "
            "concatenation), so no network of this package can hold them. Their encoder can be loaded with layout "
            "`backbone`."
        )
    if any(re.fullmatch(_SMP_EFFICIENTNET, key) for key in state):
        raise UserError(
            "these are weights of smp's DeepLabV3 on an EfficientNet, where smp dilates other blocks than those behind "
            "the removed strides, so no network of this package computes the same. Their encoder can be loaded with "
            "layout `backbone`."
        )
    aspp = r"decoder\.(?:aspp|0)\.convs\.(\d+)"  # before 0.5 the parts had numbers
    project, conv, norm = r"decoder\.(?:aspp|0)\.project", r"decoder\.(?:conv|1)", r"decoder\.(?:bn|2)"
    translation = _renamed_v3(state, "encoder", aspp, project, conv, norm, "segmentation_head.0")
    # The encoders whose names begin with tu- are timm's, which dilates them itself.
    translation.dilation = "torchvision" if any(key.startswith("encoder.model.") for key in state) else "smp"
    return translation


def _renamed_v3(
    state: State, backbone: str, aspp: str, project: str, conv: str, norm: str, classifier: str
) -> Translation:
    """Translate a DeepLab v3 of torchvision's structure, by patterns of its parts' names."""
    branches = {int(m[1]) for key in state if (m := re.match(aspp, key))}
    pooling = max(branches, default=0)
    rules = [
        (rf"{backbone}\.model\.(.+)", r"backbone.net.\1"),  # smp's timm encoders
        (rf"{backbone}\.(.+)", r"backbone.net.\1"),
        (aspp.replace(r"(\d+)", str(pooling)) + r"\.1\.(.+)", rf"head.0.branches.{pooling}.project.\1"),
        (aspp.replace(r"(\d+)", str(pooling)) + r"\.2\.(.+)", rf"head.0.branches.{pooling}.norm.\1"),
        (aspp + r"\.(.+)", r"head.0.branches.\1.\2"),
        (project + r"\.(.+)", r"head.0.project.\1"),
        (conv + r"\.(.+)", r"head.1.0.\1"),
        (norm + r"\.(.+)", r"head.1.1.\1"),
        (re.escape(classifier) + r"\.(.+)", r"head.2.\1"),
        (r"aux_classifier\.([01])\.(.+)", r"auxiliary.0.\1.\2"),
        (r"aux_classifier\.4\.(.+)", r"auxiliary.2.\1"),
    ]
    translation = _renamed(state, rules)
    # Inference needs neither the auxiliary head nor the encoder's layers for classification.
    translation.ignored += [key for key in state if key.startswith("aux_classifier.")]
    translation.ignored += [key for key in state if _CLASSIFIERS.match(key.removeprefix(f"{backbone}."))]
    return translation


def _caffe_resnet(state: State, net: nn.Module) -> Translation:
    """Translate DeepLab v2 on a ResNet as kazuto1011/deeplab-pytorch names it."""
    rules = []
    for index_of_part, part in enumerate(("conv", "bn")):
        rules.append((rf"layer1\.conv1\.{part}\.(.+)", rf"backbone.net.{part}1.\1"))
        for layer in range(2, 6):
            source, own = rf"layer{layer}\.block(\d+)\.", rf"backbone.net.layer{layer - 1}."
            for index, word in enumerate(("reduce", "conv3x3", "increase"), start=1):
                rules.append((rf"{source}{word}\.{part}\.(.+)", rf"{own}<\1>.{part}{index}.\2"))
            rules.append((rf"{source}(?:proj|shortcut)\.{part}\.(.+)", rf"{own}<\1>.downsample.{index_of_part}.\2"))
    rules.append((r"aspp\.(?:stages\.)?c(\d+)\.(.+)", r"head.branches.\1.\2"))
    translation = _renamed(state, [(rf"(?:scale\.|base\.)?{a}", b) for a, b in rules])
    for key in [key for key in translation.tensors if "<" in key]:  # the source counts blocks from 1
        own = re.sub(r"<(\d+)>", lambda m: str(int(m[1]) - 1), key)
        translation.add(own, translation.origins.pop(key), translation.tensors.pop(key))
    if (first := "backbone.net.conv1.weight") in translation.tensors:
        translation.tensors[first] = translation.tensors[first].flip(1)  # BGR -> RGB
    return translation


def _first(state: State, net: nn.Module) -> Translation:
    """Translate DeepLab v2 on VGG-16 of this system's first version.

    Its backbone holds slices of torchvision's features, `conv1.0`, `conv1.2`, ..., and own layers `conv5_1.0`. The
    classifier that they were taken from, `pretrained_model`, is part of the same module and of no use here.
    """
    rates = sorted({int(m[1]) for key in state if (m := re.match(r"classifier\.conv3x3_dilate(\d+)\.", key))})
    translation = Translation()
    _add_vgg(translation, state, net, r"backbone\.conv(\d)(?:_(\d))?\.(\d+)\.(weight|bias)")
    translation.ignored = [key for key in state if key.startswith("backbone.pretrained_model.")]
    for kind in ("weight", "bias"):
        names = {
            f"classifier.conv3x3_dilate{rate}.0.{kind}": f"head.branches.{i}.0.{kind}" for i, rate in enumerate(rates)
        }
        names |= {
            f"classifier.conv1x1.{kind}": f"head.heads.0.0.{kind}",
            f"classifier.score.{kind}": f"head.heads.0.3.{kind}",
        }
        for key, own in names.items():
            if key in state:
                translation.add(own, key, state[key])
    return translation


def _vgg(state: State, net: nn.Module) -> Translation:
    """Translate a VGG classifier: its features into the backbone, its fc6 and fc7 into the head of v1 or v2."""
    if not isinstance(net.backbone, VGGBackbone):
        return _backbone(state, net)
    translation = Translation(required="backbone.")
    if "conv1_1.weight" in state:
        _add_vgg(translation, state, net, r"conv(\d)_(\d)\.(weight|bias)")
        _convert_caffe_pixels(translation, net.backbone)
    else:
        _add_vgg(translation, state, net, r"(?:encoder\.)?features\.(\d+)()\.(weight|bias|running_mean|running_var)")
    others = r"(classifier|pre_logits|fc\d|head|decoder|segmentation_head)\b"
    translation.ignored += [key for key in state if re.match(others, key)]
    head = net.head
    if not isinstance(head, ASPPSum) or isinstance(head.heads[0], nn.Identity):
        return translation
    for key in translation.ignored:
        layer = _VGG_FC.get(key.rsplit(".", 1)[0])
        if layer is None:
            continue
        kind = key.rsplit(".", 1)[1]
        targets, parts = ("branches", head.branches) if layer == "fc6" else ("heads", head.heads)
        for index in range(len(parts)):
            name = f"{targets}.{index}.0"
            shape = head.get_submodule(name).get_parameter(kind).shape
            translation.add(f"head.{name}.{kind}", key, _subsampled(state[key], shape))
    return translation


def _backbone(state: State, net: nn.Module) -> Translation:
    """Translate a classifier of torchvision, timm or smp by the names of our backbone."""
    if isinstance(net.backbone, VGGBackbone):  # whose names differ
        return _vgg(state, net)
    own = [key for key in net.state_dict() if key.startswith("backbone.")]
    if any(re.match(_SMP_EFFICIENTNET, key) for key in state):
        return _smp_efficientnet(state, net)
    best = Translation(required="backbone.")
    for prefix in ("", "encoder.model.", "encoder.", "model.", "backbone.", "features."):
        translation = Translation(required="backbone.")
        for mine in own:
            bare = mine.removeprefix("backbone.net.")
            # timm's feature extractors flatten the first level: stages.0.x is stages_0.x there, stem.conv1 stem_conv1.
            for key in (prefix + bare, prefix + re.sub(r"^([a-z]+)_", r"\1.", bare)):
                if key in state:
                    translation.add(mine, key, state[key])
                    break
        if len(translation.tensors) > len(best.tensors):
            translation.ignored = [k for k in state if _CLASSIFIERS.match(k.removeprefix(prefix))]
            translation.ignored += [k for k in state if prefix and not k.startswith(prefix)]
            best = translation
    if best.origins:  # layers behind the deepest map
        used, names = set(best.origins.values()), list(state)
        best.ignored += names[max(map(names.index, used)) :]
    return best


def _smp_efficientnet(state: State, net: nn.Module) -> Translation:
    """Translate smp's EfficientNet, whose tensors have the order and shapes of timm's `tf_efficientnet_*`."""
    translation = Translation(required="backbone.")
    sources = [key for key in state if not key.endswith("num_batches_tracked") and "._fc." not in f".{key}"]
    sources = [key for key in sources if re.match(r"(encoder\.)?(_conv_stem|_bn0|_blocks)\.", key)]
    own = [key for key in net.state_dict() if key.startswith("backbone.") and not key.endswith("num_batches_tracked")]
    if len(own) != len(sources):
        raise UserError(
            f"the weights are of an EfficientNet with {len(sources)} tensors, the backbone has {len(own)}: take the "
            "backbone that they were trained with, such as efficientnet-b0."
        )
    for mine, key in zip(own, sources, strict=True):
        translation.add(mine, key, state[key])
    translation.ignored = list(state)
    return translation


def _add_vgg(translation: Translation, state: State, net: nn.Module, pattern: str) -> None:
    """Add a VGG's convolutions and norms in their order.

    The pattern matches their names: its groups are the numbers that give the order, and last the kind of the tensor.
    """
    order = ["weight", "bias", "running_mean", "running_var"]
    found = [(m, key) for key in state if (m := re.fullmatch(pattern, key))]
    found.sort(key=lambda item: (*(int(n or 0) for n in item[0].groups()[:-1]), order.index(item[0].groups()[-1])))
    own = [k for k in net.state_dict() if k.startswith("backbone.") and not k.endswith("num_batches_tracked")]
    if not isinstance(net.backbone, VGGBackbone) or len(own) != len(found):
        raise UserError(
            f"the weights are of a VGG with {len(found)} tensors, the backbone has {len(own)}: take the VGG that they "
            "were trained with, with or without BatchNorm."
        )
    for mine, (_, key) in zip(own, found, strict=True):
        translation.add(mine, key, state[key])


def _convert_caffe_pixels(translation: Translation, backbone: Backbone) -> None:
    """Convert the first convolution from BGR (0-255) less Caffe's mean to RGB normalised by mean and std."""
    weight, bias = "backbone.stages.0.0.weight", "backbone.stages.0.0.bias"
    caffe_mean = torch.tensor([123.68, 116.779, 103.939])
    mean, std = torch.tensor(backbone.mean) * 255, torch.tensor(backbone.std) * 255
    rgb = translation.tensors[weight].flip(1)
    shift = (rgb * (mean - caffe_mean).reshape(1, -1, 1, 1)).sum(dim=(1, 2, 3))
    translation.tensors[bias] = translation.tensors[bias] + shift
    translation.tensors[weight] = rgb * std.reshape(1, -1, 1, 1)


def _subsampled(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Subsample a fully connected layer to a smaller convolution.

    Outputs, inputs and kernel positions are evenly spaced. In DeepLab v1 (section 3.1), simple decimation reduces fc6
    from 7x7 to 3x3 and from 4096 to 1024 channels.
    """
    if tensor.dim() == 2:
        side = round((tensor.shape[1] / 512) ** 0.5) if len(shape) == 4 and shape[-1] > 1 else 1
        tensor = tensor.reshape(len(tensor), -1, side, side)
    if tensor.dim() != len(shape) or any(a < b for a, b in zip(tensor.shape, shape, strict=True)):
        return tensor  # `load_weights` reports the difference in shape
    for dim, (have, want) in enumerate(zip(tensor.shape, shape, strict=True)):
        step = (have - 1) // (want - 1) if dim > 1 and want > 1 else have // want
        tensor = tensor.index_select(dim, torch.arange(want) * step)
    return tensor


def _renamed(state: State, rules: list[tuple[str, str]]) -> Translation:
    """Rename tensors by the first rule (pattern, replacement) that matches the whole name; drop all others."""
    translation = Translation()
    for key, tensor in state.items():
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, key):
                translation.add(match.expand(replacement), key, tensor)
                break
    return translation


LAYOUTS: dict[str, Callable[[State, nn.Module], Translation]] = {
    "own": _own,
    "torchvision": _torchvision,
    "smp": _smp,
    "caffe_resnet": _caffe_resnet,
    "first": _first,
    "vgg": _vgg,
    "backbone": _backbone,
}
