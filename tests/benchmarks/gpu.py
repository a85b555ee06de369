"""Measure training, inference, loop and memory on a GPU against torchvision and smp: `python -m tests.benchmarks.gpu`.

Every network has random weights and computes in bf16. All variants of a work take turns in one process, so that ratios
compare one run with itself. Peers get normalised floats; our training steps normalise uint8 themselves. Without a GPU,
`--small` runs tiny sizes on the CPU, which shows that the script works and measures nothing.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from deeplab_lightning import DeepLabV3Plus, SegmentationModule
from deeplab_lightning.data.batch import Batch
from deeplab_lightning.kernels import open_door
from deeplab_lightning.losses import CrossEntropyLoss
from tests.benchmarks.gpu_loop import loop_rates, validation_rate
from tests.benchmarks.measure import Call, alternating, write
from tests.benchmarks.work import LAYOUTS, NUM_CLASSES, cross_entropy, forward_gflops, model, peers, random_batch

MANY_CLASSES, BAND_ROWS = 150, 32


class Size(NamedTuple):
    """Sizes of everything that is measured; images are squares of `side` pixels."""

    side: int = 512
    batch: int = 16
    repeats: int = 10
    num_images: int = 512
    workers: tuple[int, ...] = (2, 4, 8, 16)
    matmul: int = 8192
    backend: str = "inductor"  # of torch.compile


SMALL = Size(side=32, batch=2, repeats=1, num_images=4, workers=(0,), matmul=64, backend="eager")


class Work(NamedTuple):
    """A network of ours, and its peers."""

    member: str
    arguments: dict[str, Any]
    peers: Callable[[], dict[str, nn.Module]]


def smp_plus(encoder: str) -> dict[str, nn.Module]:
    """Build smp's DeepLab v3+."""
    return {"smp": smp.DeepLabV3Plus(encoder, encoder_weights=None, classes=NUM_CLASSES)}


def plus(backbone: str, encoder: str) -> Work:
    """Return DeepLab v3+, whose ASPP is separable as in smp."""
    return Work("DeepLabV3Plus", {"backbone": backbone, "separable": True}, partial(smp_plus, encoder))


WORKS = {
    "v3 resnet50, stride 8": Work("DeepLabV3", {"backbone": "resnet50", "output_stride": 8}, partial(peers, 8)),
    "v3 resnet50, stride 16": Work("DeepLabV3", {"backbone": "resnet50", "output_stride": 16}, partial(peers, 16)),
    "v3+ resnet101": plus("resnet101", "resnet101"),
    "v3+ efficientnet-b3": plus("efficientnet-b3", "efficientnet-b3"),
    "v3+ lite0": plus("tf_efficientnet_lite0", "tu-tf_efficientnet_lite0"),
}
QUICKEST = "v3+ lite0"  # the hardest to feed
OF_SMALL = (QUICKEST,)
VARIANTS = {"contiguous": ("contiguous", False), "channels_last": ("channels_last", False),
            "compiled": ("channels_last", True)}  # fmt: skip


def waiting(call: Call, device: torch.device) -> Call:
    """Return a call that ends when the device has finished."""

    def call_and_wait() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return call_and_wait


def step(parameters: Any, compute: Callable[[], Tensor], device: torch.device) -> Call:
    """Return a training step: forward in bf16, backward, SGD."""
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)

    def call() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = compute()
        loss.backward()
        optimizer.step()

    return waiting(call, device)


def module_on(net: nn.Module, device: torch.device, layout: str, loss: nn.Module | None = None) -> SegmentationModule:
    """Return our module on a device, as a trainer sets it up."""
    module = SegmentationModule(net, loss, channels_last=layout == "channels_last").to(device)  # type: ignore[arg-type]
    module.door = open_door(module.net, device, is_wanted=True)
    return module


def batch_on(device: torch.device, size: Size, num_classes: int = NUM_CLASSES) -> Batch:
    """Return uint8 images and masks on a device, as the loader delivers them."""
    batch = random_batch(size.batch, size.side)
    counted = [size.side**2] * size.batch
    assert batch.mask is not None
    mask = (batch.mask % num_classes).to(device)
    return batch._replace(image=batch.image.to(device), mask=mask, num_counted=counted)


def training_steps(work: Work, size: Size, device: torch.device) -> dict[str, Call]:
    """Build a training step of each network in each variant."""
    batch, calls = batch_on(device, size), {}
    images = torch.randn(size.batch, 3, size.side, size.side, device=device)
    for variant, (layout, is_compiled) in VARIANTS.items():
        module = module_on(model(work.member, **work.arguments), device, layout).train()
        for part in (module.net.backbone, module.net.head) if is_compiled else ():
            part.compile(backend=size.backend)
        calls[f"ours {variant}"] = step(module.parameters(), lambda own=module: own.compute_loss(batch)[0], device)  # type: ignore[misc]
        for name, peer in work.peers().items():
            own: Any = peer.to(device).to(memory_format=LAYOUTS[layout]).train()
            own = torch.compile(own, backend=size.backend) if is_compiled else own
            given = images.contiguous(memory_format=LAYOUTS[layout])
            loss = partial(_loss_of, own, given, batch.mask)
            calls[f"{name} {variant}"] = step(peer.parameters(), loss, device)
    return calls


def _loss_of(net: Any, images: Tensor, mask: Tensor | None) -> Tensor:
    assert mask is not None
    return cross_entropy(net(images), mask.long())


def inferences(work: Work, size: Size, device: torch.device) -> dict[str, Call]:
    """Build the computation of logits by each network in each variant."""
    images, calls = torch.randn(size.batch, 3, size.side, size.side, device=device), {}
    for variant, (layout, is_compiled) in VARIANTS.items():
        given = images.contiguous(memory_format=LAYOUTS[layout])
        nets = {"ours": module_on(model(work.member, **work.arguments), device, layout).net, **work.peers()}
        for name, built in nets.items():
            net: Any = built.to(device).to(memory_format=LAYOUTS[layout]).eval()
            net = torch.compile(net, backend=size.backend) if is_compiled else net
            calls[f"{name} {variant}"] = waiting(partial(_infer, net, given), device)
    return calls


def _infer(net: Any, images: Tensor) -> None:
    with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16):
        net(images)


def summarize(seconds: Mapping[str, float], gflops: float, peak: float, size: Size) -> dict[str, Any]:
    """Compute the ratios of one work from the seconds of its variants.

    Args:
        seconds: Variant -> seconds per batch.
        gflops: Operations of one image, in 10^9.
        peak: Rate of a large bf16 product on this device, in TFLOP/s.
        size: The sizes.
    """
    ours = {name: value for name, value in seconds.items() if name.startswith("ours")}
    best, peer = min(ours.values()), min(value for name, value in seconds.items() if name not in ours)
    return {
        "times_the_fastest_peer": round(peer / best, 3),
        "channels_last_times_contiguous": round(ours["ours contiguous"] / ours["ours channels_last"], 3),
        "compiled_times_eager": round(ours["ours channels_last"] / ours["ours compiled"], 3),
        "images_per_second": round(size.batch / best, 1),
        "share_of_bf16_peak": round(gflops * size.batch / 1000 / best / peak, 3),
        "milliseconds": {name: round(1000 * value, 3) for name, value in seconds.items()},
    }


def bf16_peak(size: int, device: torch.device) -> float:
    """Measure the rate of a large product in bf16, in TFLOP/s."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = alternating({"product": waiting(lambda: a @ b, device)}, repeats=10)["product"]
    return 2 * size**3 / seconds / 1e12


def band_memory(size: Size, device: torch.device) -> dict[str, float | None]:
    """Measure the peak memory of a training step of many classes, with the loss over all rows and over bands of them.

    A CPU has no such counter: the steps run, and the figures are None.
    """
    found: dict[str, float | None] = {}
    for name, rows in (("all rows", None), (f"band_rows {BAND_ROWS}", BAND_ROWS)):
        net = DeepLabV3Plus(MANY_CLASSES, pretrained=False, **WORKS[QUICKEST].arguments)
        module = module_on(net, device, "channels_last", CrossEntropyLoss(band_rows=rows)).train()
        batch = batch_on(device, size, MANY_CLASSES)
        call = step(module.parameters(), partial(_module_loss, module, batch), device)
        call()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        call()
        found[name] = round(torch.cuda.max_memory_allocated() / 1e6, 1) if device.type == "cuda" else None
    return found


def _module_loss(module: SegmentationModule, batch: Batch) -> Tensor:
    return module.compute_loss(batch)[0]


def measure_all(size: Size, device: torch.device, names: tuple[str, ...]) -> dict[str, Any]:
    """Measure everything on one device."""
    peak = bf16_peak(size.matmul, device)
    document: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu: no result, the script works",
        "bf16_tflops_of_a_product": round(peak, 3),
        "sizes": size._asdict(),
    }
    for name in names:
        work = WORKS[name]
        forward = forward_gflops(work.member, size.side, **work.arguments)
        for kind, build, passes in (("training step", training_steps, 3), ("inference", inferences, 1)):
            seconds = alternating(build(work, size, device), repeats=size.repeats)
            document[f"{kind}, {name}"] = summarize(seconds, passes * forward, peak, size)
            print(f"{kind}, {name}: {document[f'{kind}, {name}']}", flush=True)
            torch.compiler.reset()
            torch.cuda.empty_cache()
    document["megabytes of a step, 150 classes"] = band_memory(size, device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = WORKS[QUICKEST].arguments
        step_rate = size.batch * 1000 / document[f"training step, {QUICKEST}"]["milliseconds"]["ours channels_last"]
        document["loop to bare step, by workers"] = loop_rates(Path(folder), size, device, arguments, step_rate)
        bare = size.batch * 1000 / document[f"inference, {QUICKEST}"]["milliseconds"]["ours channels_last"]
        document["validation"] = validation_rate(Path(folder), size, device, arguments, bare)
    return document


def main(args: list[str] | None = None) -> None:
    """Measure, print, and write `runs/bench/gpu.json`.

    Raises:
        SystemExit: With status 1, if there is no GPU and the small sizes were not asked for.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--small", action="store_true", help="tiny sizes, also on a CPU, to see that it works")
    given = parser.parse_args(args)
    if not torch.cuda.is_available() and not given.small:
        raise SystemExit("no CUDA device: there is nothing to measure. --small shows on a CPU that the script works.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    print(
        write("gpu", measure_all(SMALL if given.small else Size(), device, OF_SMALL if given.small else tuple(WORKS)))
    )


if __name__ == "__main__":
    main()
