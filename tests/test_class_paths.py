from deeplab_lightning.class_paths import canonical, init_args_of


def test_spellings_of_one_class_are_equal() -> None:
    names = ("DeepLabV3", "models.DeepLabV3", "models.deeplab.DeepLabV3")
    spelled = [{"net": [{"class_path": f"deeplab_lightning.{name}", "init_args": {"a": 1}}]} for name in names]
    assert canonical(spelled[0]) == canonical(spelled[1]) == canonical(spelled[2])
    assert canonical(spelled[0])["net"][0]["class_path"] == "deeplab_lightning.models.deeplab.DeepLabV3"
    assert spelled[0]["net"][0]["class_path"] == "deeplab_lightning.DeepLabV3"  # not changed


def test_what_cannot_be_imported_and_other_values_stay() -> None:
    config = {"class_path": "nowhere.Nothing", "other": ["x", None, 1.5], "class_map": {"a": None}}
    assert canonical(config) == config
    assert canonical({"class_path": "Bare"}) == {"class_path": "Bare"}


def test_arguments_of_a_class_are_found_in_every_form_of_the_logger() -> None:
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p"}}
    assert init_args_of("WandbLogger", logger) == init_args_of("WandbLogger", [True, logger]) == [{"project": "p"}]
    assert init_args_of("WandbLogger", {"class_path": "WandbLogger"}) == [{}]
    assert [init_args_of("WandbLogger", value) for value in (None, False, {"class_path": "a.NotWandbLogger"})] == [
        []
    ] * 3
    init_args_of("WandbLogger", logger)[0]["name"] = "n"
    assert logger["init_args"] == {"project": "p", "name": "n"}
