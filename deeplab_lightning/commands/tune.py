"""Run `deeplab tune`: search hyperparameters with Ray Tune, by trainings on one fold."""

import contextlib
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.markup import escape
from rich.table import Table

from deeplab_lightning.commands.option_values import check_name
from deeplab_lightning.commands.parsers import tune_parser
from deeplab_lightning.commands.placement import Placement
from deeplab_lightning.commands.training import resolve_fit_config, try_to_build
from deeplab_lightning.errors import UserError
from deeplab_lightning.experiments.folder_choice import lock_folder
from deeplab_lightning.experiments.job_table import JobTable
from deeplab_lightning.experiments.launchers.options import RayOptions
from deeplab_lightning.experiments.launchers.ray import connect, disconnect
from deeplab_lightning.experiments.launchers.ray_tune import check_resources, check_tune, run_search
from deeplab_lightning.experiments.locks import check_system
from deeplab_lightning.experiments.search import Search, check_searchable
from deeplab_lightning.experiments.search_space import SearchSpace, setting_options
from deeplab_lightning.runs import ExperimentFolder
from deeplab_lightning.tables import shown, table_console

_REDRAW_SECONDS = 1.0


def tune(args: list[str]) -> None:
    """Search the settings with the highest mIoU on the validation images of one fold.

    A trial is one training on one fold, `data.fold`, with the seed and the images of all others, so that trials differ
    in the searched settings alone, and ASHA can stop the worst after each rung of epochs. The validation images of the
    other folds choose nothing. So `kfold --folds` of these, with and without the settings that were found, says without
    flattery what they bring. Trials that are whole K-fold experiments would cost K times as much, and leave no image
    that chose nothing.

    Finished trials are not trained again, so the same command continues an interrupted search.

    Raises:
        UserError: If a file, an option or a value cannot be used, or another process searches in this folder.
        SystemExit: With status 1, if no trial finished; 130 or 143 after a signal; 2, if the command line is wrong.
    """
    given, more = tune_parser().parse_known_args(args)
    placement, more = Placement.parse(given, more)
    if placement.ray is None:
        raise UserError(
            "deeplab tune trains its trials by Ray: leave out --launcher, or give configs/launcher/ray.yaml."
        )
    check_system()
    check_tune()
    space = SearchSpace.read(Path(given.config))
    name = given.name or space.name
    check_name(name)
    options = [*shlex.split(space.options), *more]
    config = resolve_fit_config(options)
    check_searchable(config, space)
    for key, parameter in space.parameters.items():  # before any training
        for value in parameter.extremes():
            resolve_fit_config([*options, *setting_options({key: value})])
    try_to_build([*options, "--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.strategy", "auto"])
    folder = Path(given.output_dir or space.output_dir) / name
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder)
    if lock is None:
        raise UserError(f"{folder}: another search runs here. Wait until it ends, or choose another --name.")
    with lock:
        search = Search.prepare(folder, space, config, "random" if find_spec("optuna") is None else "optuna")
        _run(search, space, options, placement.ray, placement.at_once)
        if len(search.trials) < space.num_trials:
            print(f"num_trials is {space.num_trials}, but {search.sampler} found {len(search.trials)} settings to try.")
        _conclude(search, options)


def _run(search: Search, space: SearchSpace, options: Sequence[str], ray: RayOptions, at_once: int | None) -> None:
    """Train the trials that have not ended, and show how far they are.

    Raises:
        SystemExit: With status 130 or 143, after a signal.
    """
    console, drawn, received = table_console(), [0.0], list[int]()
    print(f"{space.num_trials} trials in {search.folder}, proposed by {search.sampler}", flush=True)
    with JobTable(console) as table:

        def show() -> None:
            if time.monotonic() - drawn[0] > _REDRAW_SECONDS:
                table.show([search.state(number, is_searching=True) for number in range(len(search.trials))])
                drawn[0] = time.monotonic()

        def tell(number: int, what: str) -> None:
            console.print(f"{search.run(number).name} {what}", markup=False, highlight=False, soft_wrap=True)

        def resolve(values: Mapping[str, Any]) -> dict[str, Any]:
            return resolve_fit_config([*options, *setting_options(values)])

        try:
            connect(ray, is_starting=True)
            check_resources(ray)
            with _signals(received):  # after `connect`, which sets Ray's own handlers
                run_search(search, space.num_trials, ray, at_once=at_once, resolve=resolve, on_step=show, on_loss=tell)
        except KeyboardInterrupt:
            number = received[0] if received else signal.SIGINT
            table.close()
            name = signal.Signals(number).name
            print(f"stopped by {name}. To continue, run the same command again.", file=sys.stderr)
            sys.exit(128 + number)
        finally:
            disconnect()


@contextlib.contextmanager
def _signals(received: list[int]) -> Iterator[None]:
    """Interrupt by SIGTERM as by Ctrl-C, and note which it was; outside the main thread, signals stay unchanged."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt  # Ray replaces any other exception of a handler by this one

    before = {}
    with suppress(ValueError):
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _conclude(search: Search, options: Sequence[str]) -> None:
    """Print the trials and the best settings, and how to find out what these bring.

    Raises:
        SystemExit: With status 1, if no trial finished.
    """
    files, states = ExperimentFolder(search.folder), search.states()
    search.write_table()
    table_console().print(_table(search.rows(), list(search.parameters)))
    for reason in dict.fromkeys(state.error for state in states if state.error):  # once, if all fail alike
        names = ", ".join(state.job.name for state in states if state.error == reason)
        print(f"failed: {names}: {reason.removeprefix('error: ')}")
    best = search.best()
    if best is None:
        print(f"no trial finished; {files.trials} holds what each did.", file=sys.stderr)
        sys.exit(1)
    data, name = search.run(best).read_job()["data"], search.folder.name
    others = ",".join(str(fold) for fold in range(data["n_folds"]) if fold != data["fold"])
    is_split = data["split"] == "folds"
    again = shlex.join(["deeplab", *(["kfold", *options, "--folds", others] if is_split else ["fit", *options])])
    settings = shlex.join(["-c", str(files.best_settings)])
    text = search.write_best_settings(best, f"{again} {settings}")
    print(f"Best: trial {best}, mIoU {shown(search.last_miou(best))}. {files.best_settings}:\n\n{text}")
    print("Being chosen as the best flatters this mIoU. What the settings bring, on images that chose nothing:")
    runs = Path(files.read_config()["output_dir"]) / name
    if is_split:
        print(f"  {again} --name {name}-before\n  {again} {settings} --name {name}-after")
        print(f"  deeplab compare {runs}-before {runs}-after")
    else:
        print("  set data.test_dataset, train with and without them, and run deeplab test on both checkpoints")


def _table(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Table:
    """Build the table of the trials with their settings, the longest trained and best first."""
    counts = Counter(row["state"] for row in rows)
    table = Table(caption=", ".join(f"{n} {state}" for state, n in counts.items()), caption_justify="left")
    for column in ("trial", "state", "epochs", "mIoU", *(key.replace(".init_args", "") for key in keys)):
        table.add_column(column, justify="left" if column == "state" else "right")
    for row in sorted(rows, key=lambda row: (-row["epochs"], -(row["miou"] or 0.0))):
        values = (f"{v:.3g}" if isinstance(v, float) else escape(str(v)) for v in (row[key] for key in keys))
        table.add_row(str(row["trial"]), row["state"], str(row["epochs"]), shown(row["miou"], missing=""), *values)
    return table
