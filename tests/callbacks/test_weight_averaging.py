from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from deeplab_lightning import SegmentationModule
from deeplab_lightning.callbacks import EMAWithWarmup, EpochWeightAveraging
from deeplab_lightning.errors import UserError
from tests.conftest import noise_config
from tests.processes import run_program
from tests.test_module import TABLE, tiny_data, tiny_net, trainer

ROOT = Path(__file__).parents[2]


class Ends(L.Callback):
    """Keep a layer's weights after the last step of each epoch, and those that each validation used."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.is_last_batch:
            self.trained.append(first_layer(pl_module))

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        del self.validated[trainer.current_epoch :]
        self.validated.append(first_layer(pl_module))


def first_layer(module: Any) -> torch.Tensor:
    return next(module.net.parameters()).detach().clone()


@pytest.mark.slow
def test_each_epoch_validates_the_average_of_the_epochs_since_the_start(mask_folder: Path) -> None:
    ends, averaging = Ends(), EpochWeightAveraging(start=0.5)
    module = SegmentationModule(tiny_net(), None, lambda groups: torch.optim.SGD(groups, lr=0.1), classes=TABLE)
    fit = trainer(mask_folder, max_epochs=4, num_sanity_val_steps=0, callbacks=[averaging, ends])
    fit.fit(module, tiny_data(mask_folder))
    first, second, third, fourth = ends.trained
    assert not torch.equal(third, fourth)
    for validated, expected in zip(ends.validated, (first, second, third, (third + fourth) / 2), strict=True):
        torch.testing.assert_close(validated, expected)
    torch.testing.assert_close(first_layer(module), (third + fourth) / 2)


@pytest.mark.slow
def test_an_average_of_the_steps_forgets_the_untrained_weights(mask_folder: Path) -> None:
    ends, averaging = Ends(), EMAWithWarmup(decay=0.4)
    module = SegmentationModule(tiny_net(), None, lambda groups: torch.optim.SGD(groups, lr=0.1), classes=TABLE)
    data = tiny_data(mask_folder)
    fit = trainer(mask_folder, max_epochs=6, limit_train_batches=1, num_sanity_val_steps=0, callbacks=[averaging, ends])
    fit.fit(module, data)
    average = ends.trained[0]
    for step, weight in enumerate(ends.trained[1:], start=1):
        kept = min(0.4, (step + 1) / (step + 10))
        average = kept * average + (1 - kept) * weight
        torch.testing.assert_close(ends.validated[step], average)
    torch.testing.assert_close(first_layer(module), average)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_keeps_no_weight_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=r"decay must be in \[0, 1\), got"):
        EMAWithWarmup(decay=decay)


@pytest.mark.long
def test_a_training_that_ends_before_there_is_an_average_says_so(mask_folder: Path) -> None:
    config = noise_config(mask_folder, trainer={"max_epochs": 2})
    (mask_folder / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["-c", str(mask_folder / "config.yaml"), "-c", str(ROOT / "configs" / "trainer" / "swa.yaml")]
    text = "the training ended before EpochWeightAveraging had two epochs to average (start: 0.75)"
    assert text in run_program("fit", *words, check=True).stderr
    longer = run_program("fit", *words, "--trainer.max_epochs", "8", check=True)
    assert text not in longer.stderr


def test_a_start_outside_the_training_is_refused(mask_folder: Path) -> None:
    with pytest.raises(UserError, match=r"in \[0, 1\), got 1"):
        EpochWeightAveraging(start=1)
    module = SegmentationModule(tiny_net(), None, lambda groups: torch.optim.SGD(groups, lr=0.1), classes=TABLE)
    endless = trainer(mask_folder, max_epochs=-1, max_steps=2, callbacks=[EpochWeightAveraging()])
    with pytest.raises(UserError, match=r"set trainer\.max_epochs"):
        endless.fit(module, tiny_data(mask_folder))


@pytest.mark.long
@pytest.mark.parametrize(
    ("callback", "share"),
    [
        ("{class_path: EMAWeightAveraging}", "99%"),
        ("{class_path: EMAWeightAveraging, init_args: {decay: 0.5}}", None),
        ("{class_path: EMAWeightAveraging, init_args: {update_starting_at_step: 5}}", None),
        ("{class_path: deeplab_lightning.callbacks.EMAWithWarmup}", None),
    ],
)
def test_an_average_of_untrained_weights_is_warned_of(mask_folder: Path, callback: str, share: str | None) -> None:
    """Lightning's default decay ruined short trainings without a word."""
    config = noise_config(mask_folder, trainer={"max_epochs": 4})
    (mask_folder / "config.yaml").write_text(yaml.safe_dump(config))
    words = ("fit", "-c", str(mask_folder / "config.yaml"), f"--trainer.callbacks=[{callback}]")
    said = run_program(*words, check=True).stderr
    assert ("of the average are the weights that it began with" in said) == (share is not None)
    assert share is None or f"after the 8 steps of this training, {share} of the average" in said
