"""Choose and run a command. Heavy imports wait until a command needs them, so that `--help` is quick."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import deeplab_lightning
from deeplab_lightning.commands.parsers import PARSERS
from deeplab_lightning.usage import usage_error

COMMANDS = {
    "fit": "train a model on one fold",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images",
    "predict": "write masks and overlays for images without ground truth",
    "tune-crf": "search the dense CRF's parameters for a checkpoint",
    "tune-batch": "find the batch size that fits and the one that is fastest",
    "tune-lr": "suggest a learning rate from a short training in which it rises",
    "export": "write a checkpoint as one ONNX or torch.export file",
    "kfold": "train every fold in a process of its own and pool the results",
    "grid": "run a K-fold experiment for every combination of a grid file",
    "tune": "search hyperparameters with Ray Tune, by trainings on one fold",
    "status": "show the folds in a cluster's queue, or the trials of a search",
    "cancel": "take folds out of a cluster's queue",
    "compare": "compare experiments: differences with intervals, a table, a page",
    "report": "write the page of one run or experiment",
    "best": "find what to average and how to predict, judged on held-out images",
    "pseudo": "label images by the networks of an experiment, to train on them",
    "masks": "turn the CSV file of a competition back into masks",
    "suspects": "rank the labels that the networks of the other folds contradict",
    "calibrate": "fit the temperature of the probabilities on held-out images",
    "wandb-report": "write a W&B Report that compares experiments",
    "wandb-sync": "upload the W&B runs that were tracked offline",
    "split": "assign images to folds without training",
    "benchmark": "measure the cost of models and the speed of the data loader",
    "data synthetic": "write the built-in litter data set",
    "data init": "write a commented configuration for the data in a folder",
    "data check": "read every image and mask once and report all problems",
    "data show": "write a page that shows images, masks, classes, folds and warnings",
}

_RUNNERS = {  # module below `commands`, and function; the other commands are Lightning's
    "tune-crf": "tune_crf.tune_crf",
    "tune-batch": "tune_batch.tune_batch",
    "tune-lr": "tune_lr.tune_lr",
    "kfold": "kfold.kfold",
    "grid": "grid.grid",
    "tune": "tune.tune",
    "status": "queue.status",
    "cancel": "queue.cancel",
    "compare": "compare.compare",
    "report": "report.report",
    "best": "best.best",
    "pseudo": "pseudo.pseudo",
    "masks": "masks.masks",
    "suspects": "suspects.suspects",
    "calibrate": "calibrate.calibrate",
    "wandb-report": "wandb_report.wandb_report",
    "wandb-sync": "wandb_sync.wandb_sync",
    "split": "split.split",
    "benchmark": "benchmark.benchmark",
    "export": "export.export",
    "data synthetic": "data.synthetic",
    "data init": "data.init",
    "data check": "data.check",
    "data show": "data.show",
}
_OF_JOBS = {
    "queued-fold": "queued_jobs.queued_fold",
    "queued-end": "queued_jobs.queued_end",
}  # what the jobs of a queue run


def main(args: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        args: Command line without the program's name; that of this process if None.

    Raises:
        SystemExit: With status 2, if the command, a key or a type is wrong; with 1, if a check found problems.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in {"-h", "--help"}:
        print(_usage())
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(deeplab_lightning.__version__)
        return
    command = " ".join(words[:2]) if words[0] == "data" else words[0]
    if command not in COMMANDS.keys() | _OF_JOBS.keys():
        if words[0] == "data" and (len(words) == 1 or words[1] in {"-h", "--help"}):
            print(_usage(), file=sys.stderr if len(words) == 1 else sys.stdout)
            sys.exit(2 if len(words) == 1 else 0)
        usage_error(f"no command is called {command!r}. `deeplab --help` lists the commands.")
    rest = words[len(command.split()) :]
    if command in PARSERS and not {"-h", "--help"}.isdisjoint(rest):
        PARSERS[command]().parse_known_args(["--help"])  # before the imports of the command
    _runner(command)(rest)


def _runner(command: str) -> Callable[[list[str]], None]:
    """Import the function that runs a command."""
    runners = _RUNNERS | _OF_JOBS
    if command in runners:
        module, _, name = runners[command].rpartition(".")
        runner: Callable[[list[str]], None] = getattr(import_module(f"deeplab_lightning.commands.{module}"), name)
        return runner
    from deeplab_lightning.commands.training import run_training_command

    return lambda rest: run_training_command(command, rest)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: deeplab COMMAND [-c CONFIG ...] [--KEY VALUE ...]",
            "",
            "DeepLab semantic segmentation on PyTorch Lightning.",
            "",
            "commands:",
            *lines,
            "",
            "`deeplab COMMAND --help` lists its options; later configs and options override earlier ones.",
        ]
    )
