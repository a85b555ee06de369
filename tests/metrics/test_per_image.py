import pickle

import torch

from deeplab_lightning.metrics.confusion import per_image_confusion
from deeplab_lightning.metrics.per_image import ImageMatrices, PerImageConfusion


def test_collected_matrices_are_those_that_were_added() -> None:
    torch.manual_seed(0)
    labels, mask = (torch.randint(0, 3, (4, 5, 6)) for _ in range(2))
    matrices = per_image_confusion(labels, mask, 3)
    images = ImageMatrices(3)
    images.add(["c", "a"], matrices[:2])
    images.add(["d", "b"], matrices[2:])
    expected = PerImageConfusion.of(zip("cadb", matrices, strict=True))
    assert images.collect().names == expected.names == ["a", "b", "c", "d"]
    assert (images.collect().counts != expected.counts).nnz == 0
    images.clear()
    assert images.collect().total().tolist() == [[0] * 3] * 3


def test_what_processes_send_each_other_is_sparse() -> None:
    """As views of their batches, 8 images of 150 classes took 12 MB."""
    images = ImageMatrices(150)
    labels = torch.arange(16).reshape(1, 4, 4).expand(8, 4, 4)
    images.add([f"{i}.png" for i in range(8)], per_image_confusion(labels, labels, 150))
    assert len(pickle.dumps(images.collect())) < 10_000
