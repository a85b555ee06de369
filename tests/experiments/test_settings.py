"""Find the settings that a result depends on."""

from typing import Any

import pytest

from deeplab_lightning.experiments.settings import setting_differences, settings_hash


def config(callbacks: Any) -> dict[str, Any]:
    return {"trainer": {"max_epochs": 3, "callbacks": callbacks}, "data": {"fold": 0}, "name": "a"}


EMA = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.99}}
FREEZE = {"class_path": "deeplab_lightning.callbacks.FreezeBackbone", "init_args": {"stages": 2}}
PANELS = {"class_path": "deeplab_lightning.callbacks.PredictionPanels", "init_args": {"num_images": 6}}


@pytest.mark.parametrize("changed", [[EMA], [PANELS, EMA], EMA, [FREEZE], [{"class_path": "own.Callback"}]])
def test_callbacks_that_change_a_training_are_settings(changed: Any) -> None:
    """Trainings with and without averaged weights were pooled as seeds of one recipe."""
    for base in ([PANELS], None, []):
        assert list(setting_differences(config(base), config(changed))) == ["trainer.callbacks"]
        assert settings_hash(config(base)) != settings_hash(config(changed))


def test_arguments_of_such_callbacks_are_settings() -> None:
    other = {**EMA, "init_args": {"decay": 0.999}}
    assert list(setting_differences(config([EMA]), config([other]))) == ["trainer.callbacks"]


def test_callbacks_that_only_show_are_none() -> None:
    progress = {"class_path": "RichProgressBar"}
    for base, own in (
        ([PANELS], []),
        (None, [progress]),
        ([EMA, PANELS], [progress, EMA]),
        ([EMA, FREEZE], [FREEZE, EMA]),
    ):
        assert setting_differences(config(base), config(own)) == {}
        assert settings_hash(config(base)) == settings_hash(config(own))


@pytest.mark.parametrize(
    ("base", "own", "found"),
    [
        ({"devices": 1}, {"devices": "2"}, (1, 2)),
        ({"devices": [0, 3]}, {"devices": "0,1"}, None),
        ({"devices": "2", "num_nodes": 2}, {"devices": 4}, None),
        ({"devices": 1, "num_nodes": 2}, {"devices": 1}, (2, 1)),
        ({"devices": "auto"}, {"devices": 4}, None),  # the machine decides
        ({"devices": "auto", "accelerator": "cpu"}, {"devices": 4}, (1, 4)),
        ({"devices": -1}, {"devices": 4}, None),
        ({}, {"devices": 4}, None),
    ],
)
def test_the_number_of_processes_is_a_setting(base: Any, own: Any, found: Any) -> None:
    expected = {} if found is None else {"trainer.devices x num_nodes": found}
    assert setting_differences({"trainer": base}, {"trainer": own}) == expected
    assert settings_hash({"trainer": base}) == settings_hash({"trainer": own})  # groups keep their names


def test_synchronised_norms_are_a_setting_of_several_processes() -> None:
    for devices, expected in ((1, {}), ("auto", {}), (2, {"trainer.sync_batchnorm": (False, True)})):
        base, own = ({"trainer": {"devices": devices, "sync_batchnorm": flag}} for flag in (False, True))
        assert setting_differences(base, own) == expected


def test_a_group_without_such_callbacks_keeps_its_name() -> None:
    """The hash is that of versions that left all callbacks out."""
    assert settings_hash(config([PANELS])) == settings_hash({"trainer": {"max_epochs": 3}, "data": {}})
    assert settings_hash({"trainer": {"max_epochs": 3}, "data": {}}) == "509f12"
