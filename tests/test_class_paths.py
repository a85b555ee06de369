from deeplab_lightning.class_paths import canonical


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
