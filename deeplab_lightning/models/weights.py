"""Load weights of this and other projects into networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from timm.models import adapt_input_conv
from torch import Tensor, nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.models.pretrained import load_state_dict_file, read_class_names, read_statistics, torch_hub_file
from deeplab_lightning.models.saving import HubFolder, normalize_by
from deeplab_lightning.models.weight_layouts import LAYOUTS, Layout, State, Translation, recognise_layout


@dataclass(frozen=True)
class LoadReport:
    """Hold the names of the tensors that `load_weights` loaded and left out.

    Attributes:
        layout: Layout of the source, see `load_weights`.
        loaded: Names of the network whose tensors were filled.
        left: Names of the source whose tensors were not used.
        missing: Names of the network whose tensors keep their values.
    """

    layout: str
    loaded: list[str]
    left: list[str]
    missing: list[str]

    def __str__(self) -> str:
        text = f"layout {self.layout}: {len(self.loaded)} tensors loaded"
        for word, names in (("left", self.left), ("missing", self.missing)):
            text += f", {len(names)} {word}" + (f" ({_some(names)})" if names else "")
        return text


def load_weights(
    net: nn.Module, source: str | Path | State, *, layout: Layout = "auto", strict: bool = True
) -> LoadReport:
    """Load weights of this or another project into a DeepLab.

    With a checkpoint or a folder of this package, images are normalised as in its training.

    Args:
        net: Network of the member, backbone, `dilation` and output stride that the weights were trained with.
        source: Path of a safetensors file or of tensors by name that `torch.save` wrote, URL of such a file, or tensors
            by name. Nothing but tensors is unpickled.
        layout: Naming scheme of the source: `own` (this package, Lightning checkpoints included); `torchvision`
            (deeplabv3_*, auxiliary head included); `smp` (its DeepLabV3); `caffe_resnet` (DeepLab v2 on a ResNet by
            kazuto1011/deeplab-pytorch, BGR, for `caffe_resnet*`); `first` (v2 on VGG of this system's first version);
            `vgg` (a VGG classifier, whose fc6 and fc7 are subsampled into the heads of v1 and v2); `backbone` (a
            classifier of torchvision, timm or smp); `auto` recognises it by the names.
        strict: Raise an error if tensors are missing or differ in shape; false keeps the network's own values there. A
            first layer of 3 channels is then adapted to those of the network as timm does: repeated, and scaled so that
            the sum stays; one channel gets the sum.

    Returns:
        The names of the tensors that were loaded, left and missing.

    Raises:
        ValueError: If the layout is unknown, no tensor fits, or, with `strict`, a tensor that the layout should fill
            is missing or differs, or the backbone was dilated by another rule. The message names the tensors, the rules
            and the numbers of classes.
        FileNotFoundError: If the file does not exist.
        RuntimeError: If a URL cannot be reached within 2 seconds.
    """
    file = None if isinstance(source, Mapping) else _file(source)
    state = _without_prefixes(source if file is None else load_state_dict_file(file))  # type: ignore[arg-type]
    name = recognise_layout(state) if layout == "auto" else layout
    if name not in LAYOUTS:
        raise UserError(f"layout must be one of {', '.join(get_args(Layout))}, got {name!r}.")
    own = net.state_dict()
    translation = LAYOUTS[name](state, net)
    if not strict:
        _adapt_first_layer(translation.tensors, own)
    misshapen = [k for k, t in translation.tensors.items() if k in own and own[k].shape != t.shape]
    fitting = {k: t for k, t in translation.tensors.items() if k in own and k not in misshapen}
    used = {translation.origins[k] for k in fitting}
    report = LoadReport(
        layout=name,
        loaded=list(fitting),
        left=[k for k in state if k not in used],
        missing=[k for k in own if k not in fitting and not k.endswith("num_batches_tracked")],
    )
    if not any(not k.endswith("num_batches_tracked") for k in fitting):
        raise UserError(f"no tensor of the source (layout {name}) fits this network. It holds {_some(list(state))}.")
    misfit = _dilation_misfit(net, translation)
    if strict:
        _check(report, translation, own, misshapen, misfit)
    elif misfit:
        print(f"Note: {misfit}.", flush=True)
    net.load_state_dict(fitting, strict=False)
    statistics = read_statistics(file) if file is not None and name == "own" else None
    if statistics is not None and isinstance(net, HubFolder) and len(statistics[0]) == len(net.backbone.mean):
        normalize_by(net, *statistics)
    return report


def _adapt_first_layer(tensors: dict[str, Tensor], own: State) -> None:
    """Adapt the first convolution among tensors to the channels that the network has there, in place."""
    name = next((name for name, values in own.items() if values.ndim == 4), None)
    if name is None or name not in tensors:
        return
    given, wanted = tensors[name], own[name]
    if given.shape[1] == 3 != wanted.shape[1] and given.shape[::2] == wanted.shape[::2]:
        tensors[name] = adapt_input_conv(wanted.shape[1], given).to(given.dtype)
        print(f"The first layer of the weights is adapted from 3 to {wanted.shape[1]} channels.", flush=True)


@dataclass(frozen=True)
class StartingPoint:
    """Hold what a network starts from, until its classes can be compared with those of the data.

    Attributes:
        names: Names of the source's classes; None if it has none.
        score_layer: Loaded parameters of the layers that compute the scores, and their values before.
    """

    names: list[str] | None
    score_layer: list[tuple[nn.Parameter, Tensor]]


def start_from(net: nn.Module, source: str | None) -> None:
    """Load the weights that a training starts from, and print which tensors were loaded.

    Layers of another shape, such as the classifier for another number of classes, keep their values. A classifier for
    as many classes is compared by `compare_classes`, once the classes of the data are known.

    Args:
        net: Network to train.
        source: Path or URL of a file, or folder that `save_pretrained` wrote; None does nothing.

    Raises:
        ValueError: If the weights do not fill the whole backbone.
    """
    if source is None:
        return
    scores = {name: (parameter, parameter.detach().clone()) for name, parameter in _score_layer(net).items()}
    report = load_weights(net, source, strict=False)
    if missing := [name for name in report.missing if name.startswith("backbone.")]:
        raise UserError(
            f"{source} (layout {report.layout}) does not fill the backbone: {_some(missing)} are missing. Take the "
            "backbone that it was trained with."
        )
    print(f"Weights from {source}: {report}", flush=True)
    loaded = [scores[name] for name in report.loaded if name in scores]
    if loaded:
        net.starting_point = StartingPoint(read_class_names(_file(source)), loaded)  # type: ignore[assignment]


def compare_classes(net: nn.Module, names: Sequence[str]) -> None:
    """Let the score layer start anew if the weights that a network starts from have other classes than the data.

    What was done is printed. Nothing is done if the network did not start from weights, or its score layer did not.

    Args:
        net: Network that is going to be trained.
        names: Names of the data's classes.
    """
    start: StartingPoint | None = getattr(net, "starting_point", None)
    if start is None:
        return
    if start.names is None:
        print("The weights do not name their classes: the score layer keeps them, in their order.", flush=True)
    elif start.names == list(names):
        print("The weights have the classes of the data: the score layer keeps them.", flush=True)
    else:
        for parameter, values in start.score_layer:
            parameter.data.copy_(values)
        print(
            f"The weights have other classes ({_some(start.names)}) than the data ({_some(list(names))}): the score "
            "layer starts anew.",
            flush=True,
        )
    net.starting_point = None  # type: ignore[assignment]


def _score_layer(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the layers behind the backbone that have one output per class, by name."""
    layers = {
        name: layer
        for name, layer in net.named_modules()
        # Only the layers that compute scores have a bias, and those of the VGGs' heads, which are wider.
        if isinstance(layer, nn.Conv2d) and layer.bias is not None and layer.out_channels == net.num_classes
        if not name.startswith("backbone.")
    }
    return {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.named_parameters()}


def _dilation_misfit(net: nn.Module, translation: Translation) -> str | None:
    """Say that the source's backbone was dilated by another rule, with which its weights compute other maps."""
    backbone = getattr(net, "backbone", None)
    used, wanted = getattr(backbone, "dilation", None), translation.dilation
    if used is None or wanted is None or used == wanted:
        return None
    return f"the weights were trained with dilation {wanted!r}, the network has {used!r}: set dilation to {wanted!r}"


def _check(report: LoadReport, translation: Translation, own: State, misshapen: list[str], misfit: str | None) -> None:
    """Raise an error that names the tensors that do not fit, or what else does not, if anything."""
    problems = [misfit] if misfit else []
    problems += [
        f"{translation.origins[k]} has shape {tuple(translation.tensors[k].shape)}, {k} has {tuple(own[k].shape)}"
        for k in misshapen
    ]
    biases = [k for k in misshapen if own[k].dim() == 1 and not k.startswith("backbone.")]
    if biases:  # of the classifier
        problems.append(
            f"the weights have {len(translation.tensors[biases[0]])} classes, the network {len(own[biases[0]])}"
        )
    missing = [k for k in report.missing if k.startswith(translation.required) and k not in misshapen]
    if missing:
        problems.append(f"the network's {_some(missing)} are missing")
    known = {*translation.ignored, *(translation.origins[k] for k in misshapen)}
    left = [k for k in report.left if k not in known and not k.endswith("num_batches_tracked")]
    if left:
        problems.append(f"the source's {_some(left)} do not occur in the network")
    if problems:
        raise UserError(
            f"the weights (layout {report.layout}) do not fit: {'; '.join(problems[:8])}. Build the network that they "
            "were trained with, or set strict=False to keep its own values there."
        )


def _file(source: str | Path) -> Path:
    is_url = str(source).startswith(("http://", "https://"))
    path = torch_hub_file(str(source)) if is_url else Path(source)
    return path / "model.safetensors" if path.is_dir() else path


def _without_prefixes(state: State) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers such as DataParallel and LightningModule add to the names."""
    plain = dict(state)
    for prefix in ("module.", "net.", "model.", "_orig_mod."):
        inside = {k: v for k, v in plain.items() if k.startswith(prefix)}
        # Our Lightning checkpoints also hold counts, and those of other modules weights of a loss.
        if inside and (prefix == "net." or (prefix == "model." and len(inside) > len(plain) / 2)):
            plain = inside
        if len(inside) == len(plain):
            plain = {k.removeprefix(prefix): v for k, v in inside.items()}
    return plain


def _some(names: list[str]) -> str:
    """Join the first four names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
