"""What the campaign found once: input that ended with a traceback, and damage that changed a result without a word."""

from typing import Any

import pytest

from tests.campaign import at_once
from tests.campaign.readers import READERS, fault_of
from tests.campaign.world import World

SPANNED = b"PK\x05\x06" + b"\x01\x00" * 2 + b"\x00" * 14  # an archive on several disks
INPUT: list[tuple[str, Any]] = [
    ("wandb_run", ""),
    ("wandb_run", "[]"),
    ("folds", b"\x80"),
    ("folds", "image,group,fold\na"),
    ("groups", b"\x80"),
    ("job", b"\x00"),
    ("run_config", b"\x80"),
    ("run_config", "- a"),
    ("metrics", "epoch,step\nx,1"),
    ("metrics", b"\xff"),
    ("balance", b"\xff"),
    ("confusion", "t,a,b\na,1,2\nb,3"),
    ("predictions", "image\na"),
    ("checkpoint", SPANNED),
    ("config", "2001-99-99"),
]


@pytest.mark.parametrize(("reader", "content"), INPUT)
def test_input_that_was_a_traceback_is_a_mistake_of_the_user(reader: str, content: Any) -> None:
    assert fault_of(READERS[reader][0], content) is None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.long
def test_two_that_resume_one_experiment_do_not_write_to_one_fold_together(world: World) -> None:
    assert at_once.twice(world, "kfold_resume", 0).fault is None
