"""Prepare the process around a command of Lightning, and report the user's mistakes in one line."""

import logging
import os
import tempfile
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from deeplab_lightning.commands.checkpoint import START_FROM_WEIGHTS
from deeplab_lightning.commands.options import check_configs
from deeplab_lightning.errors import UserError, raised_in
from deeplab_lightning.files import remove_if_empty
from deeplab_lightning.runs import RUN_FOLDER_VARIABLE


@contextmanager
def surroundings(args: list[str]) -> Iterator[Path]:
    """Check the configuration files, silence hints, and report what Lightning refuses as mistakes of the user.

    Yields:
        A temporary folder.
    """
    check_configs(args)
    _quiet()
    with tempfile.TemporaryDirectory(prefix="deeplab-") as scratch, warnings.catch_warnings():
        # Lightning warns of arguments that are not those of the process; here they are given on purpose.
        warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter.*")
        with user_mistakes():
            yield Path(scratch)


@contextmanager
def no_empty_folder() -> Iterator[None]:
    """Remove the folder that was made for a run which stopped before it wrote anything."""
    try:
        yield
    except BaseException:
        if folder := os.environ.get(RUN_FOLDER_VARIABLE):
            remove_if_empty(Path(folder))
        raise


@contextmanager
def user_mistakes(*kinds: type[Exception]) -> Iterator[None]:
    """Report what Lightning refuses as mistakes of the user, in one line.

    Lightning refuses a setting with a MisconfigurationException, or with a ValueError of its own. A checkpoint of
    another network is a mistake too.

    Args:
        kinds: Further classes of errors to report.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        is_own = isinstance(error, ValueError) and raised_in(error, "lightning")
        if is_own or isinstance(error, (MisconfigurationException, *kinds)):
            raise UserError(" ".join(str(error).split())) from error
        if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
            reason = textwrap.shorten(str(error).partition(":")[2], 200, placeholder=" ...")
            raise UserError(f"the checkpoint is of another network: {reason} {START_FROM_WEIGHTS}") from error
        raise


def _quiet() -> None:
    """Silence hints that do not apply."""
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*It is recommended to use .self.log.*sync_dist=True.*",
        ".*The .srun. command is available.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*anonymous setting has no effect.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*Be aware that when using .ckpt_path..*",
        ".*Trying to infer the .batch_size.*",
    ):
        warnings.filterwarnings("ignore", message=message)


@contextmanager
def environment_restored() -> Iterator[None]:
    """Restore the environment variables that a training leaves to its processes."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
