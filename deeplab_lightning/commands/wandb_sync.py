"""Run `deeplab wandb-sync`: upload the W&B runs that were tracked offline."""

import sys
from pathlib import Path

from deeplab_lightning.commands.parsers import wandb_sync_parser
from deeplab_lightning.errors import MissingFileError
from deeplab_lightning.tracking.mode import require_server
from deeplab_lightning.tracking.sync import distinct, find_logs, upload


def wandb_sync(args: list[str]) -> None:
    """Upload all offline runs below folders that were not uploaded yet, whatever happens to one of them.

    Raises:
        FileNotFoundError: If a folder does not exist, or none holds an offline run.
        RuntimeError: If an account or a connection is missing.
        SystemExit: With status 1, if a log was not uploaded.
    """
    folders = [Path(folder) for folder in wandb_sync_parser().parse_args(args).folders]
    for folder in folders:
        if not folder.is_dir():
            raise MissingFileError(f"no such folder: {folder.absolute()}. Give the folders of your runs.")
    logs, copies = distinct(find_logs(folders))
    if not logs:
        raise MissingFileError(f"no offline W&B run in {', '.join(str(folder.absolute()) for folder in folders)}.")
    for copy, original in copies.items():
        print(f"left out: {copy.parent} is a copy of {original.parent}")
    waiting = [log for log in logs if not log.is_uploaded]
    server = require_server("uploading") if waiting else ""
    lost = 0
    for log, problem in upload(waiting, server):
        lost += not log.is_uploaded
        state = "uploaded" if log.is_uploaded else "not uploaded"
        print(f"{state}: {log.path.parent}" + (f": {problem}" if problem else ""), flush=True)
    print(f"{len(waiting) - lost} of {len(logs)} logs were uploaded, {len(logs) - len(waiting)} had been before.")
    if lost:
        print(f"error: {lost} logs were not uploaded, see above.", file=sys.stderr)
        sys.exit(1)
