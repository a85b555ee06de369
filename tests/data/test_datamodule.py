import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from deeplab_lightning import SegmentationDataModule
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import MaskFolderDataset
from deeplab_lightning.data.groups import PatternGroups
from deeplab_lightning.data.transforms import TrainTransforms
from deeplab_lightning.errors import DataError
from tests.conftest import CLASSES, write_image, write_mask


def dataset(folder: Path, names: tuple[str, ...] = CLASSES, **arguments: Any) -> MaskFolderDataset:
    return MaskFolderDataset(
        str(folder), "images", masks="masks", classes=ClassTable(names, ignore_ids=[11]), **arguments
    )


def datamodule(folder: Path, **arguments: Any) -> SegmentationDataModule:
    options = {"batch_size": 2, "num_workers": 0, "train_transforms": TrainTransforms(32), **arguments}
    module = SegmentationDataModule(dataset(folder), options.pop("n_folds", 3), **options)
    module.prepare_data()
    module.setup("fit")
    return module


def names_of(loader: Any) -> list[str]:
    return [
        name
        for batch in loader
        for part in (batch if isinstance(batch, list) and not hasattr(batch, "image") else [batch])
        for name in part.names
    ]


def test_folds_partition_the_images(mask_folder: Path) -> None:
    validation = [set(names_of(datamodule(mask_folder, fold=k).val_dataloader())) for k in range(3)]
    assert sum(map(len, validation)) == 10
    assert set.union(*validation) == {f"{i:02d}.png" for i in range(10)}
    module = datamodule(mask_folder, fold=1, batch_size=1)
    assert set(names_of(module.train_dataloader())) == set.union(*validation) - validation[1]


def test_without_a_fold_everything_trains(mask_folder: Path) -> None:
    module = datamodule(mask_folder, fold=None)
    assert len(names_of(module.train_dataloader())) == 10
    assert module.val_dataloader() == []


def test_batches_are_uint8(mask_folder: Path) -> None:
    batch = next(iter(datamodule(mask_folder).train_dataloader()))
    assert (batch.image.dtype, batch.image.shape) == (torch.uint8, (2, 3, 32, 32))
    assert batch.mask is not None
    assert (batch.mask.dtype, batch.mask.shape) == (torch.uint8, (2, 32, 32))
    assert type(batch.image) is torch.Tensor


def test_crops_depend_on_seed_epoch_and_name_only(mask_folder: Path) -> None:
    def epoch(number: int, num_workers: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
        loader = datamodule(mask_folder, batch_size=1, num_workers=num_workers, seed=seed).train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        torch.rand(number + num_workers)  # the global generator has another state each time
        return {batch.names[0]: batch.image for batch in loader}

    first, again, workers, second, other = epoch(0), epoch(0), epoch(0, 2), epoch(1), epoch(0, seed=1)
    assert list(first) == list(again) == list(workers)
    assert list(first) != list(second)
    for name, image in first.items():
        assert image.equal(again[name])
        assert image.equal(workers[name])
        assert not image.equal(second[name])
        assert not image.equal(other[name])


def test_evaluation_batches_hold_images_of_one_size(mask_folder: Path) -> None:
    write_image(mask_folder / "images" / "03.png", (40, 40))
    write_mask(
        mask_folder / "masks" / "03.png",
        dataset(mask_folder, on_error="skip").read_mask(0).numpy()[:40, :40] % 2,
    )
    module = datamodule(mask_folder, fold=None)
    view = module._eval_loader(dataset(mask_folder), range(10))
    shapes = [[tuple(batch.image.shape) for batch in batches] for batches in view]
    assert shapes[1] == [(1, 3, 48, 64), (1, 3, 40, 40)]
    assert shapes[0] == [(2, 3, 48, 64)]


def test_folds_are_read_back_from_a_file(mask_folder: Path, tmp_path: Path) -> None:
    module = datamodule(mask_folder, split_seed=5)
    file = tmp_path / "folds.csv"
    file.write_text(module.folds_csv())
    assert file.read_text().splitlines()[0] == "image,group,fold"
    again = datamodule(mask_folder, split_seed=9, fold_file=str(file))
    assert again.folds == module.folds


def test_groups_stay_in_one_fold(mask_folder: Path) -> None:
    for part in ("images", "masks"):
        for index in range(10):
            (mask_folder / part / f"{index:02d}.png").rename(mask_folder / part / f"seq{index % 4}_{index}.png")
    module = datamodule(mask_folder, groups=PatternGroups("^(.*?)_"))
    groups = module.fold_table.groups
    folds_of = {group: {module.folds[n] for n in module.folds if groups[n] == group} for group in groups.values()}
    assert [len(folds) for folds in folds_of.values()] == [1, 1, 1, 1]
    assert "seq2_6.png,seq2," in module.folds_csv()


def test_a_fold_file_of_other_images_is_an_error(mask_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "folds.csv"
    file.write_text(datamodule(mask_folder).folds_csv().replace("04.png", "old.png"))
    with pytest.raises(
        DataError,
        match=r"1 images of the data set are missing \(04.png\); 1 images are not in the data set \(old.png\)",
    ):
        _ = datamodule(mask_folder, fold_file=str(file)).folds


def test_faulty_data_stop_the_run_before_training(mask_folder: Path) -> None:
    (mask_folder / "masks" / "02.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"02.png"):
        datamodule(mask_folder)


def test_skipped_images_are_in_no_fold(mask_folder: Path) -> None:
    (mask_folder / "images" / "02.jpg").write_bytes((mask_folder / "images" / "02.png").read_bytes()[:900])
    (mask_folder / "images" / "02.png").unlink()
    module = SegmentationDataModule(dataset(mask_folder, on_error="skip"), 3, num_workers=0)
    module.setup("fit")
    assert "02.jpg" not in module.folds
    assert len(module.folds) == 9


def test_class_tables_must_agree(mask_folder: Path) -> None:
    with pytest.raises(DataError, match=r"val_dataset has the classes \['x', 'road', 'car'\]"):
        SegmentationDataModule(
            dataset(mask_folder), split="official", val_dataset=dataset(mask_folder, ("x", "road", "car"))
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": 5}, r"in \[0, n_folds\) with n_folds >= 2, got 5 of 5"),
        ({"split": "official"}, "needs data.val_dataset"),
    ],
)
def test_errors_of_invalid_arguments_name_the_fault(mask_folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationDataModule(dataset(mask_folder), **arguments)


def checkpoint_state(module: SegmentationDataModule) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)  # as Lightning reads checkpoints
    return state


def test_the_folds_of_a_checkpoint_stay_where_the_method_would_make_others(
    mask_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = datamodule(mask_folder)
    state, folds = checkpoint_state(trained), trained.folds
    again = datamodule(mask_folder)
    monkeypatch.setattr("deeplab_lightning.data.fold_split.stratified_folds", None)  # not called
    again.load_state_dict(state)
    assert again.folds == folds


def test_a_checkpoint_of_fewer_images_stops_and_names_the_new_ones(mask_folder: Path) -> None:
    state = checkpoint_state(datamodule(mask_folder))
    shutil.copy(mask_folder / "images" / "00.png", mask_folder / "images" / "new.png")
    shutil.copy(mask_folder / "masks" / "00.png", mask_folder / "masks" / "new.png")
    with pytest.raises(
        DataError, match=r"fold table: does not match .* 1 images of the data set are missing \(new.png\)"
    ):
        datamodule(mask_folder).load_state_dict(state)


@pytest.mark.parametrize("changed", [{"split_seed": 9}, {"n_folds": 2}, {"fold": 2}])
def test_another_split_than_the_checkpoints_is_pointed_out(mask_folder: Path, changed: dict[str, Any]) -> None:
    state = checkpoint_state(datamodule(mask_folder))
    with pytest.warns(UserWarning, match="may be evaluated"):
        datamodule(mask_folder, **changed).load_state_dict(state)


def test_another_data_set_is_split_anew(mask_folder: Path) -> None:
    state = checkpoint_state(datamodule(mask_folder))
    for part in ("images", "masks"):
        for path in (mask_folder / part).iterdir():
            path.rename(path.with_name(f"other_{path.name}"))
    other = datamodule(mask_folder)
    other.load_state_dict(state)
    assert sorted(other.folds) == [f"other_{i:02d}.png" for i in range(10)]
