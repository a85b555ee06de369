"""Describe the arguments of a module as plain values, and build them again."""

import inspect
import json
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import Tensor, nn

from deeplab_lightning.class_paths import class_path_of
from deeplab_lightning.errors import UserError
from deeplab_lightning.models.backbone import without_pretrained
from deeplab_lightning.models.saving import network_arguments, uncompiled, unknown_arguments
from deeplab_lightning.optimizers import default_optimizer

TRAINING_PARTS = ("optimizer", "lr_scheduler")
"""Arguments that only a training needs, besides the loss."""


class MissingLoss(nn.Module):
    """Replace a loss that a checkpoint cannot restore: nan in evaluation, an error in training.

    Args:
        reason: Why it cannot be restored, as a clause.
    """

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason
        self._is_told = False

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return nan, and say so once.

        Raises:
            ValueError: In training.
        """
        if self.training:
            raise UserError(f"{self.reason}: give the loss to train with.")
        if not self._is_told:
            warnings.warn(f"{self.reason}: no loss is computed.", stacklevel=2)
            self._is_told = True
        return logits.new_full((), torch.nan)


def arguments_of(module: Any) -> dict[str, Any]:
    """Return the arguments of a module that was built in Python, as far as its objects tell them."""
    net = uncompiled(module.net)
    values = {name: getattr(module, name, None) for name in owners_of(type(module))}
    kinds = (bool, int, float, str, list, dict)
    arguments: dict[str, Any] = {k: v for k, v in values.items() if isinstance(v, kinds) and _is_json(v)}
    if module.optimizer_factory is default_optimizer:
        arguments["optimizer"] = None
    elif optimizer := _factory_description(module.optimizer_factory):
        arguments["optimizer"] = optimizer
    if module.scheduler_factory is None:
        arguments["lr_scheduler"] = None
    elif schedule := _factory_description(module.scheduler_factory):
        arguments["lr_scheduler"] = schedule
    if not unknown_arguments(net):
        arguments["net"] = {"class_path": class_path_of(net), "init_args": network_arguments(net)}
    lost = MissingLoss(f"the checkpoint does not hold the arguments of its loss {class_path_of(module.loss)}")
    arguments["loss"] = _description(module.loss) or _description(lost)
    if postprocess := _description(module.postprocess):
        arguments["postprocess"] = postprocess
    return arguments


def _description(part: object) -> dict[str, Any] | None:
    """Describe a loss or postprocess of this package, whose attributes have its arguments' names; None for others."""
    if not type(part).__module__.startswith("deeplab_lightning."):
        return None
    values = {name: getattr(part, name) for name in inspect.signature(type(part)).parameters}
    plain = {name: _plain(value) for name, value in values.items()}
    return {"class_path": class_path_of(part), "init_args": json.loads(json.dumps(plain))}


def _factory_description(factory: Any) -> dict[str, Any] | str | None:
    """Describe a class, `functools.partial` of one with plain arguments, or a function of a module; None for others."""
    arguments: dict[str, Any] = {}
    if isinstance(factory, partial):
        arguments, called = factory.keywords, [factory.func, *factory.args]
        if factory.func.__module__.startswith("jsonargparse."):  # of a checkpoint that was loaded
            called = [thing for thing in called if isinstance(thing, type)]
        factory = called[0] if len(called) == 1 else None
    path = class_path_of(factory)
    if path.startswith("__main__.") or "<" in path or not _is_json(arguments):
        return None
    if isinstance(factory, type):
        return {"class_path": path, "init_args": json.loads(json.dumps(arguments))}
    return path if inspect.isfunction(factory) and not arguments else None


def _is_json(value: object) -> bool:
    """Check whether a value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _plain(value: object) -> Any:
    """Return an argument as a plain value."""
    if isinstance(value, nn.ModuleList):
        return [_description(part) for part in value]
    return value.tolist() if isinstance(value, Tensor) else value


def owners_of(kind: type) -> dict[str, type]:
    """Return the arguments of a class, also those that `**kwargs` hand on, with the base that says their types."""
    owners: dict[str, type] = {}
    typed: dict[str, type] = {}
    hands_on = True
    for base in kind.__mro__:
        if base is nn.Module:
            break
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base).parameters.values()
        for parameter in parameters:
            if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
                continue
            if hands_on:
                owners.setdefault(parameter.name, base)
            if parameter.annotation is not parameter.empty:
                typed.setdefault(parameter.name, base)
        hands_on = hands_on and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {name: typed.get(name, base) for name, base in owners.items()}


def build_arguments(path: Any, values: Mapping[str, Any], owners: Mapping[str, type]) -> dict[str, Any]:
    """Build arguments of a module by the types of their owners; a part for training that fails refuses to train.

    Raises:
        UserError: If another argument cannot be built.
    """
    built: dict[str, Any] = {}
    wholes = {
        owner: {n: v for n, v in values.items() if owners[n] is owner and n not in TRAINING_PARTS}
        for owner in {owners[name] for name in values}
    }
    try:
        for owner, part in wholes.items():
            built |= _build(owner, part)
    except ArgumentError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be rebuilt: {reason}. Give the part by load_from_checkpoint.") from error
    for name in (name for name in TRAINING_PARTS if name in values):
        try:
            built |= _build(owners[name], {name: values[name]})
        except ArgumentError as error:
            built[name] = refusal_to_train(f"{name} of {path} cannot be rebuilt ({' '.join(str(error).split())})")
    return built


def required_arguments(kind: type) -> list[str]:
    """Return the names of the arguments without which a class cannot be built."""
    parameters = inspect.signature(kind).parameters.values()
    optional = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _build(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Build the objects that some arguments of a class describe."""
    others = {name for name in inspect.signature(kind).parameters if name not in values}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "module", skip=others, instantiate=False, fail_untyped=False)
    with without_pretrained():
        built = parser.instantiate(parser.parse_object({"module": dict(values)}))
    return {name: built["module"][name] for name in values}


def refusal_to_train(reason: str) -> Any:
    """Return a factory that raises an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise UserError(f"{reason}: give it to train.")

    return refuse
