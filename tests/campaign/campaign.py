"""Attack the commands case by case, and count what held."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.campaign import at_once, damage, full_disk, kills, options, outside, readers
from tests.campaign.world import Case, Skipped, World

Attack = Callable[[World, random.Random, int], Case]
BLOCKS: dict[str, tuple[str, Attack, float]] = {  # what it is, its attack, its share of the time
    "kills": ("killed and resumed trainings", kills.attack, 0.2),
    "options": ("bad values of options", options.attack, 0.2),
    "damage": ("damaged files", damage.attack, 0.25),
    "outside": ("names that lead elsewhere", outside.attack, 0.1),
    "at_once": ("two at once", at_once.attack, 0.08),
    "full_disk": ("full disks", full_disk.attack, 0.07),
    "readers": ("generated input of readers", readers.attack, 0.1),
}


@dataclass
class Score:
    """Hold what a block tried, what was lost as number and case, and why it was skipped."""

    tried: int = 0
    lost: list[tuple[int, Case]] = field(default_factory=list)
    skipped: str = ""


def attack_block(world: World, block: str, seed: int, *, seconds: float, first: int = 0, most: int = 10**6) -> Score:
    """Try cases of a block until its time is over, at least one.

    Args:
        world: The world to attack.
        block: Name of the block.
        seed: Seed of the campaign; each case has its own, made from it, the block and its number.
        seconds: Time after which no further case begins.
        first: Number of the first case.
        most: Largest number of cases.
    """
    score, end = Score(), time.monotonic() + seconds
    for number in range(first, first + most):
        try:
            case = BLOCKS[block][1](world, random.Random(f"{seed} {block} {number}"), number)
        except Skipped as reason:
            score.skipped = str(reason)
            break
        score.tried += 1
        if case.fault is not None:
            score.lost.append((number, case))
            print(f"lost: {block} {number}: {case.name}: {case.fault}", flush=True)
        if time.monotonic() > end:
            break
    return score
