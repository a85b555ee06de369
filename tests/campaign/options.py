"""Give options values that no run can use, and values of no sense at all."""

import random
from collections.abc import Iterator
from typing import Any

import yaml

from deeplab_lightning.commands.option_values import _CHOICES, _RANGES
from tests.campaign.world import Case, World

_NONSENSE = (
    *("-1", "0", "1", "nan", "inf", "1e30", "1e-30", "", " ", "[]", "{}", "null", "true", "x", "a b", "../x", "~"),
    *("99999999999999999999", "[1, [2", "{a: }", "{a: 1}", "[-1, 3]", "@x", "*x", "&x"),
    *("!!python/none x", "\u00fc\U0001f600", "[red]x[/red]"),
    *("0x10", "1:2:3", "2001-01-01", "/", "/proc/1/mem", "/dev/full", "x" * 300, "\x01", "%s", "{0}", "$HOME"),
)  # fmt: skip
_REFUSED = (  # what came wrongly through once, or as a page of text; {config} is the configuration
    *("--trainer.max_epoch 3", "--data.batch_size 0", "--data.batch_size 1e20", "--data.eval_batch_size -1"),
    *("--data.num_workers -1", "--model.optimizer.init_args.lr -1", "--model.optimizer.init_args.momentum -3"),
    *("--model.lr_scheduler.init_args.power -2", "--data.split_seed -1", "--seed_everything -1"),
    *("--seed_everything 99999999999999", "--trainer.max_epochs -5", "--trainer.accumulate_grad_batches 0"),
    *("--trainer.check_val_every_n_epoch 0", "--trainer.val_check_interval 7.5", "--trainer.devices 0"),
    *("--trainer.devices -2", "--trainer.accelerator quantum", "--model.net.init_args.aspp_channels 0"),
    *("--model.net.init_args.aspp_channels -4", "--model.net.init_args.dropout 3", "--checkpoint.monitor val/nothing"),
    *("--checkpoint.mode upwards", "--data.train_transforms.init_args.crop_size 0", "--data.fold 9", "--data.fold x"),
    *("--data.train_transforms.init_args.crop_size -5", "--data.train_transforms.init_args.scale_range [2,1]"),
    *("--data.train_transforms.init_args.scale_range [0,0]", "--data.train_transforms.init_args.brightness -3"),
    *("--data.train_transforms.init_args.flip_probability 7", "--trainer.gradient_clip_val -1", "--name ../../x"),
    *("--name /abs", "--name ..", "--name .", "--model.optimizer.init_args.lr 1e30", "--trainer.limit_train_batches 0"),
    *("--data.n_folds 1", "--data.n_folds 99", "--data.n_folds 2.5", "--data.fold_file nothing.csv"),
    *("--output_dir /proc/x", "--output_dir {config}", "--model.net.init_args.backbone nothing", "-c nothing.yaml"),
    *("--ckpt_path nothing.ckpt", "--ckpt_path {config}", "--wandb maybe", "--data.cache sometimes", "--nothing 1"),
    *("--model.net Nothing", "--data.dataset Nothing", "--data.dataset.init_args.root nothing"),
    *("--trainer.precision 7", "--model.net.init_args.output_stride 7", "--data.split official"),
    *("--trainer.plugins nothing",),
)  # fmt: skip
_MAX_LINES = 8  # Lightning speaks of the seed and of devices before the error
_MAX_LINES = 8  # Lightning speaks of the seed and of devices before the error
_ENDING = ("--trainer.max_epochs", "1", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "1")


def attack(world: World, chance: random.Random, number: int) -> Case:
    """Run a training with one bad option."""
    kind = chance.choice(["refused", "range", "nonsense", "nonsense"])
    if kind == "refused":
        return refused(world, chance.choice(_REFUSED).format(config=world.config).split(" ", 1))
    if kind == "range":
        return refused(world, _outside(chance))
    words = [f"--{chance.choice(world.reference('keys', lambda: sorted(_keys(world))))}", chance.choice(_NONSENSE)]
    world.restore()
    done = world.command("fit", "-c", str(world.config), "--name", "odd", *_ENDING, *words)
    return Case(f"fit {' '.join(words)!r}", done.fault())


def refused(world: World, words: list[str]) -> Case:
    """Run a training with an option that has to be refused."""
    world.restore()
    before = {path.name for path in world.runs.iterdir()}
    done = world.command("fit", "-c", str(world.config), *_ENDING, *words)
    fault = done.fault() or (None if done.status else "was not refused")
    if fault is None and len(done.stderr.splitlines()) > _MAX_LINES:
        fault = f"{len(done.stderr.splitlines())} lines"
    if fault is None and (left := {path.name for path in world.runs.iterdir()} - before):
        fault = f"left the folders {sorted(left)}"
    return Case(f"fit {' '.join(words)!r}", fault)


def _outside(chance: random.Random) -> list[str]:
    """Return an option with a value outside the range that the product has for it."""
    key = chance.choice(sorted(_RANGES | _CHOICES))
    if key in _CHOICES:
        return [f"--{key}", "nothing"]
    allowed = _RANGES[key]
    values = [value for value in (allowed.low - 1, allowed.low, allowed.high * 2 + 1) if not allowed.holds(value)]
    value: Any = chance.choice([v for v in values if v < float("inf")])
    return [f"--{key}", str(int(value)) if float(value).is_integer() else str(value)]


def _keys(world: World) -> Iterator[str]:
    """List the dotted keys of a resolved configuration."""

    def below(content: Any, prefix: str) -> Iterator[str]:
        for key, value in content.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from below(value, f"{prefix}{key}.")

    return below(yaml.safe_load((world.run / "config.yaml").read_text()), "")
