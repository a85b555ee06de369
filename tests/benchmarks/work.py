"""The work that the benchmarks measure: functions that build calls by name, each run in a process of its own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from lightning import Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.classification import MulticlassConfusionMatrix

import deeplab_lightning
from deeplab_lightning import SegmentationDataModule, SegmentationModule
from deeplab_lightning.data import Batch, ClassTable, MaskFolderDataset
from deeplab_lightning.export import InferenceModel, trace
from deeplab_lightning.export.formats import run_onnx, write_onnx
from deeplab_lightning.export.quantization import quantize
from deeplab_lightning.inference.engines import EngineName, EngineNet, Precision
from deeplab_lightning.kernels import open_door, speed_up
from deeplab_lightning.kernels.depthwise import use_depthwise_kernels
from deeplab_lightning.losses import CrossEntropyLoss
from deeplab_lightning.models.aspp import DEFAULT_ATROUS_RATES
from deeplab_lightning.resizing import resize, resized_argmax
from tests.benchmarks.measure import Call

NUM_CLASSES = 21
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp32": False, "bf16": True}
CAMVID = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]


def model(name: str, **arguments: Any) -> nn.Module:
    """Build a network of ours with random weights."""
    net: nn.Module = getattr(deeplab_lightning, name)(NUM_CLASSES, pretrained=False, **arguments)
    return net


def random_batch(count: int, side: int) -> Batch:
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    return Batch(images, torch.randint(0, NUM_CLASSES, (count, side, side)), ["a"] * count, [(side, side)] * count)


def step_of_module(net: nn.Module, batch: Batch, *, is_half: bool, is_open: bool) -> Call:
    """A training step of the module without its optimiser, as a trainer on a CPU runs it."""
    module = SegmentationModule(net, cpu_kernels=is_open).train()  # type: ignore[arg-type]
    module.door = open_door(module.net, torch.device("cpu"), is_wanted=is_open)

    def call() -> None:
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            loss, _ = module.compute_loss(batch)
        loss.backward()

    return call


def prediction_of_module(net: nn.Module, batch: Batch, *, is_half: bool, is_open: bool) -> Call:
    """Labels of a batch, as `predict` and validation compute them."""
    module = SegmentationModule(net, cpu_kernels=is_open).eval()  # type: ignore[arg-type]
    module.door = open_door(module.net, torch.device("cpu"), is_wanted=is_open)

    def call() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            module.predict_step([batch], 0)

    return call


def predictions_by_engines(member: str, arguments: dict[str, Any], count: int, side: int) -> dict[str, Call]:
    """Labels of a batch by PyTorch with our kernels, OpenVINO and ONNX Runtime, in each precision that they have."""
    batch, net = random_batch(count, side), model(member, **arguments)
    calls = {f"torch {d}": prediction_of_module(net, batch, is_half=half, is_open=True) for d, half in DTYPES.items()}
    chosen: list[tuple[EngineName, Precision]] = [("openvino", "fp32"), ("openvino", "bf16"), ("onnx", "fp32")]
    for engine, precision in chosen:
        found = EngineNet(net, engine, precision)  # type: ignore[arg-type]
        calls[f"{engine} {found.precision}"] = prediction_of_module(found, batch, is_half=False, is_open=False)
    return calls


def exported_files(member: str, arguments: dict[str, Any], count: int, side: int, folder: Path) -> dict[str, Call]:
    """Logits of a batch by an exported ONNX file in floats, and by its copy in 8 bits."""
    module = SegmentationModule(model(member, **arguments))  # type: ignore[arg-type]
    exported = InferenceModel(module, has_preprocessing=False, has_argmax=False)
    files = {"floats": folder / "floats.onnx", "8 bits": folder / "int8.onnx"}
    write_onnx(trace(exported), exported.metadata(), files["floats"])
    images = [exported.example_images(1, side, side + index) for index in range(4)]
    quantize(files["floats"], files["8 bits"], images)
    batch = exported.example_images(count, side, side)
    return {name: partial(run_onnx(file), batch) for name, file in files.items()}


def placed(net: nn.Module, images: Tensor, layout: str) -> Tensor:
    """Bring network and images to a memory layout."""
    net.to(memory_format=LAYOUTS[layout])
    return images.contiguous(memory_format=LAYOUTS[layout])


def inference(name: str, net: nn.Module, images: Tensor) -> dict[str, Call]:
    """Build a call per precision and layout."""
    net.eval()

    def call(layout: str, is_half: bool) -> object:
        given = placed(net, images, layout)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            return net(given)

    return {f"{name} {d} {layout}": partial(call, layout, half) for layout in LAYOUTS for d, half in DTYPES.items()}


def training(name: str, net: nn.Module, images: Tensor, loss: Callable[[Any, Tensor], Tensor]) -> dict[str, Call]:
    """Build a step without the optimiser, whose work is the same for all, per precision and layout."""
    net.train()
    mask = torch.randint(0, NUM_CLASSES, (len(images), *images.shape[2:]))

    def call(layout: str, is_half: bool) -> None:
        given = placed(net, images, layout)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            value = loss(net(given), mask)
        value.backward()

    return {f"{name} {d} {layout}": partial(call, layout, half) for layout in LAYOUTS for d, half in DTYPES.items()}


def cross_entropy(output: Any, mask: Tensor) -> Tensor:
    return F.cross_entropy(output["out"] if isinstance(output, dict) else output, mask)


def peers(output_stride: int) -> dict[str, nn.Module]:
    nets: dict[str, nn.Module] = {
        "smp": smp.DeepLabV3(
            "resnet50",
            encoder_weights=None,
            classes=NUM_CLASSES,
            encoder_output_stride=output_stride,
            decoder_atrous_rates=DEFAULT_ATROUS_RATES[output_stride],  # its own default is that of stride 8
        ),
    }
    if output_stride == 8:
        nets["torchvision"] = torchvision.models.segmentation.deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=NUM_CLASSES
        )
    return nets


def resnet50_inference(output_stride: int) -> dict[str, Call]:
    images = torch.randn(2, 3, 384, 384)
    net = model("DeepLabV3", backbone="resnet50", output_stride=output_stride)
    speed_up(net)
    calls = inference("ours", net, images)
    for name, peer in peers(output_stride).items():
        calls |= inference(name, peer, images)
    return calls


def resnet50_training(output_stride: int) -> dict[str, Call]:
    images = torch.randn(2, 3, 384, 384)
    calls = modules_step("ours", "DeepLabV3", {"backbone": "resnet50", "output_stride": output_stride}, 2, 384)
    for name, peer in peers(output_stride).items():
        calls |= training(name, peer, images, cross_entropy)
    return calls


def modules_step(name: str, member: str, arguments: dict[str, Any], count: int, side: int) -> dict[str, Call]:
    """Build a step of our module in each precision, with the door open."""
    batch = random_batch(count, side)
    return {
        f"{name} {d}": step_of_module(model(member, **arguments), batch, is_half=half, is_open=True)
        for d, half in DTYPES.items()
    }


def lite0_training() -> dict[str, Call]:
    arguments = {"backbone": "tf_efficientnet_lite0", "separable": True}
    return modules_step("ours", "DeepLabV3Plus", arguments, 4, 320)


def lite0_training_of_smp() -> dict[str, Call]:
    """smp as it is shipped: fp32, contiguous."""
    net = smp.DeepLabV3Plus("tu-tf_efficientnet_lite0", encoder_weights=None, classes=NUM_CLASSES)
    return {"smp": training("smp", net, torch.randn(4, 3, 320, 320), F.cross_entropy)["smp fp32 contiguous"]}


def vgg16(is_training: bool) -> dict[str, Call]:
    """DeepLab v2 on VGG-16 beside its plain formulation: four whole branches, fp32, contiguous."""
    net = model("DeepLabV2")
    images, head = torch.randn(1, 3, 321, 321), net.head

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            features = net.backbone(x)[-1]  # type: ignore[operator]
            logits = [head.heads[0](branch(features)) for branch in head.branches]  # type: ignore[operator, index, union-attr]
            return resize(torch.stack(logits).sum(dim=0), (321, 321))

    plain = Plain()
    plain.net = net
    if is_training:
        other = training("plain", plain, images, F.cross_entropy)["plain fp32 contiguous"]
        return {**modules_step("ours", "DeepLabV2", {}, 1, 321), "plain": other}
    return {**inference("ours", net, images), "plain": inference("plain", plain, images)["plain fp32 contiguous"]}


def doors(member: str, arguments: dict[str, Any], count: int, side: int, is_training: bool) -> dict[str, Call]:
    """Our module with the door to the kernels open and closed, in each precision."""
    batch, kind = random_batch(count, side), step_of_module if is_training else prediction_of_module
    return {
        f"{state} {d}": kind(model(member, **arguments), batch, is_half=half, is_open=state == "open")
        for state in ("open", "closed")
        for d, half in DTYPES.items()
    }


def module_calls(member: str, arguments: dict[str, Any], count: int, side: int) -> dict[str, Call]:
    """Training step and prediction of our module as it is run, in each precision."""
    batch, kinds = random_batch(count, side), {"training": step_of_module, "prediction": prediction_of_module}
    return {
        f"{name} {d}": kind(model(member, **arguments), batch, is_half=half, is_open=True)
        for name, kind in kinds.items()
        for d, half in DTYPES.items()
    }


def depthwise_layer(
    channels: int, side: int, kernel: int, stride: int, dilation: int, is_half: bool
) -> dict[str, Call]:
    """Values and gradients of a depthwise layer: ours, and PyTorch's in both layouts."""
    geometry: dict[str, Any] = {"stride": stride, "padding": dilation * (kernel // 2), "dilation": dilation}
    dtype = torch.bfloat16 if is_half else torch.float32
    plain = nn.Conv2d(channels, channels, kernel, groups=channels, bias=False, **geometry).to(dtype)
    ours = nn.Sequential(nn.Conv2d(channels, channels, kernel, groups=channels, bias=False, **geometry)).to(dtype)
    use_depthwise_kernels(ours)
    x = torch.randn(4, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)

    def call(layer: nn.Module, layout: str) -> None:
        given = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
        y = layer(given)
        y.backward(y.detach())

    return {"ours": partial(call, ours, "channels_last")} | {key: partial(call, plain, key) for key in LAYOUTS}  # type: ignore[return-value]


def tap_layer(dilation: int, channels: int = 2048) -> dict[str, Call]:
    """A convolution of large dilation in bf16: PyTorch's kernel and nine matrix products."""
    from deeplab_lightning.kernels.taps import convolve_by_taps

    x = torch.randn(2, channels, 48, 48).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, channels, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last)

    def stock() -> object:
        with torch.no_grad():
            return F.conv2d(x, weight, padding=dilation, dilation=dilation)

    def taps() -> object:
        with torch.no_grad():
            return convolve_by_taps(x, weight, dilation)

    return {"stock": stock, "taps": taps}


def losses(num_classes: int, side: int) -> dict[str, Call]:
    """The loss of logits before the resize, with its gradient: in tiles, and after a resize in both layouts."""
    mask, loss = torch.randint(0, num_classes, (2, 512, 512)), CrossEntropyLoss()
    logits = torch.randn(2, num_classes, side, side)

    def tiled() -> None:
        loss(logits.detach().requires_grad_(), mask).backward()

    def plain(layout: str) -> None:
        given = logits.contiguous(memory_format=LAYOUTS[layout]).detach().requires_grad_()
        F.cross_entropy(resize(given, (512, 512)), mask).backward()

    return {"tiles": tiled} | {layout: partial(plain, layout) for layout in LAYOUTS}  # type: ignore[return-value]


def labels(num_classes: int, side: int) -> dict[str, Call]:
    """Labels of logits before the resize: ours, some classes at a time, and plainly in both layouts."""
    logits, size = torch.randn(2, num_classes, side, side).contiguous(memory_format=torch.channels_last), (512, 512)

    def plain(layout: str) -> object:
        return resize(logits.contiguous(memory_format=LAYOUTS[layout]), size).argmax(dim=1)

    calls: dict[str, Call] = {"ours": partial(resized_argmax, logits, size)}
    return calls | {layout: partial(plain, layout) for layout in LAYOUTS}


def camvid_validation(data: str, precision: str, is_open: bool = True) -> dict[str, Call]:
    """From files to mIoU, one reading worker."""
    dataset = camvid(Path(data))
    net = deeplab_lightning.DeepLabV3(11, backbone="tf_efficientnet_lite0", pretrained=False)
    module = SegmentationModule(net, classes=dataset.classes, cpu_kernels=is_open)
    datamodule = SegmentationDataModule(dataset, val_dataset=dataset, split="official", batch_size=4, num_workers=1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", precision=precision, **quiet)  # type: ignore[arg-type]
    return {"ours": lambda: trainer.validate(module, datamodule, verbose=False)}


def camvid_validation_of_smp(data: str, is_half: bool) -> dict[str, Call]:
    """The loop that people write around smp and torchmetrics, one reading worker."""
    net = smp.DeepLabV3("tu-tf_efficientnet_lite0", encoder_weights=None, classes=11, encoder_output_stride=16).eval()

    def validate() -> None:
        confusion = MulticlassConfusionMatrix(11, ignore_index=255)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            for images, masks in DataLoader(_Images(camvid(Path(data))), batch_size=4, num_workers=1):
                logits = net(F.pad(images, (0, 0, 4, 4)))[..., 4:-4, :]  # it takes multiples of 16 only
                confusion.update(logits.float().argmax(dim=1), masks)
        confusion.compute()

    return {"smp": validate}


def camvid(data: Path) -> MaskFolderDataset:
    table = ClassTable(CAMVID, ignore_ids=[11])
    return MaskFolderDataset(str(data / "camvid"), "val", masks="valannot", classes=table)


class _Images(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Normalised floats, as torchvision's documentation shows it."""

    def __init__(self, dataset: MaskFolderDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torchvision.transforms.functional.to_tensor(Image.open(self.dataset.paths[index]).convert("RGB"))
        mask = np.array(Image.open(str(self.dataset.paths[index]).replace("/val/", "/valannot/")))
        image = torchvision.transforms.functional.normalize(image, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        return image, torch.from_numpy(np.where(mask == 11, 255, mask).astype(np.int64))


def forward_gflops(member: str, side: int, **arguments: Any) -> float:
    """Count the operations of a forward pass of one image, in 10^9."""
    net = model(member, **arguments).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 1e9
