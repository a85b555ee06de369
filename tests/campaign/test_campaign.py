"""A short part of the campaign, with fixed seeds; `make campaign` runs all of it with another seed each time."""

from pathlib import Path

import pytest

from tests.campaign.campaign import attack_block
from tests.campaign.world import World

SEED = 1
CASES = {"kills": 1, "options": 2, "damage": 4, "outside": 1, "full_disk": 1, "readers": 2}


@pytest.mark.long
def test_a_short_campaign_holds(tmp_path: Path) -> None:
    world = World(tmp_path)
    scores = {block: attack_block(world, block, SEED, seconds=60, most=CASES[block]) for block in CASES}
    assert {block: score.lost for block, score in scores.items() if score.lost} == {}
    assert all(score.tried == CASES[block] or score.skipped for block, score in scores.items())
