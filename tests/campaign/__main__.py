"""Attack the commands at random, and print what held: `python -m tests.campaign --seed 1 --minutes 20`."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from rich.table import Table

from deeplab_lightning.tables import table_console
from tests.campaign.campaign import BLOCKS, Score, attack_block
from tests.campaign.world import World


def main() -> None:
    """Run the blocks and print a table.

    Raises:
        SystemExit: With status 1, if a case was lost.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seed", type=int, help="seed of all cases; drawn and printed if not given")
    parser.add_argument("--minutes", type=float, default=20.0, help="time of all blocks together (20)")
    parser.add_argument("--block", choices=sorted(BLOCKS), action="append", help="only this block; may be repeated")
    parser.add_argument("--case", type=int, help="only the case of this number, of the block")
    given = parser.parse_args()
    if given.case is not None and len(given.block or ()) != 1:
        parser.error("--case needs one --block")
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    blocks = given.block or list(BLOCKS)
    share = sum(BLOCKS[block][2] for block in blocks)
    limits = {"first": given.case, "most": 1} if given.case is not None else {}
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        world = World(Path(folder))
        scores = {
            block: attack_block(world, block, seed, seconds=60 * given.minutes * BLOCKS[block][2] / share, **limits)
            for block in blocks
        }
    _print(scores, seed)
    sys.exit(any(score.lost for score in scores.values()))


def _print(scores: dict[str, Score], seed: int) -> None:
    """Print the table, and how to try each lost case again."""
    table, console = Table(), table_console()
    table.add_column("block")
    for column in ("tried", "held", "lost"):
        table.add_column(column, justify="right")
    for block, score in scores.items():
        counts = (score.tried, score.tried - len(score.lost), len(score.lost))
        table.add_row(BLOCKS[block][0], *(map(str, counts) if score.tried else ["skipped", "", ""]))
    console.print(table)
    for block, score in scores.items():
        if score.skipped:
            print(f"skipped: {BLOCKS[block][0]}: {score.skipped}")
        for number, case in score.lost:
            again = f"python -m tests.campaign --seed {seed} --block {block} --case {number}"
            print(f"{again}  # {case.name}: {case.fault}")


if __name__ == "__main__":
    main()
