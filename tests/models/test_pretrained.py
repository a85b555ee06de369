import time
from pathlib import Path

import pytest

from deeplab_lightning.models import pretrained
from deeplab_lightning.models.backbone import build_backbone


def test_without_network_the_error_comes_at_once_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "_HUB", ("127.0.0.1", 1))
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_, **__: None)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="set model.net.init_args.pretrained to false"):
        build_backbone("resnet18", output_stride=16, pretrained=True)
    assert time.monotonic() - start < 2


def test_the_local_cache_is_asked_before_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "weights"))
    monkeypatch.setattr(pretrained, "can_connect", lambda *_, **__: pytest.fail("asked the network"))
    assert pretrained.hub_weights_file("resnet50") == tmp_path / "weights"
