import socket
import time
from pathlib import Path

import pytest
import torch

from deeplab_lightning import connection
from deeplab_lightning.models import pretrained
from deeplab_lightning.models.backbone import build_backbone


def test_without_network_the_error_comes_at_once_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_, **__: None)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="set model.net.init_args.pretrained to false"):
        build_backbone("resnet18", output_stride=16, pretrained=True)
    assert time.monotonic() - start < 2


def test_the_local_cache_is_used_before_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "weights"))
    monkeypatch.setattr(connection, "can_connect", lambda *_, **__: pytest.fail("asked the network"))
    assert pretrained.hub_weights_file("resnet50") == tmp_path / "weights"


@pytest.mark.parametrize("step", ["getaddrinfo", "connect"])
def test_names_and_servers_that_do_not_answer_end_after_the_timeout(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def silence(*_: object, **__: object) -> None:
        time.sleep(1)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "getaddrinfo" if step == "getaddrinfo" else "create_connection", silence)
    start = time.monotonic()
    assert not connection.can_connect("example.invalid", 443, seconds=0.1)
    assert time.monotonic() - start < 0.9


def test_a_mirror_and_a_proxy_are_used_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(connection, "can_connect", lambda host, port, **_: asked.append((host, port)))
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    connection.can_reach("http://mirror.local:8080/hub", seconds=1)
    connection.can_reach("https://hub.invalid", seconds=1)
    monkeypatch.setenv("https_proxy", "http://proxy.local:3128")
    connection.can_reach("https://hub.invalid", seconds=1)
    assert asked == [("mirror.local", 8080), ("hub.invalid", 443), ("proxy.local", 3128)]


def test_files_of_one_name_at_two_urls_are_two_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(connection, "can_connect", lambda *_, **__: True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, **_: Path(path).write_text(url))
    urls = [f"https://hub.invalid/{owner}/model.safetensors" for owner in ("alice", "bob", "alice")]
    assert [pretrained.torch_hub_file(url).read_text() for url in urls] == urls
    hashed = "https://hub.invalid/resnet18-f37072fd.pth"
    assert pretrained.torch_hub_file(hashed).name == "resnet18-f37072fd.pth"


def test_some_models_have_their_weights_at_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "torch_hub_file", Path)
    assert str(pretrained.hub_weights_file("gcvit_xxtiny")).startswith("https:")
    with pytest.raises(RuntimeError, match="there are no ImageNet weights for"):
        pretrained.hub_weights_file("regnetx_040_nonsense")
