"""Let a list in a later configuration replace the earlier one of its key, instead of inheriting from its entries.

jsonargparse lets each entry of a later list inherit arguments of the earlier entry at its place, if both lists have the
same length: an `EarlyStopping` that monitors val/loss would keep the `mode: max` of one that monitored val/miou.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any

import yaml


class ListOverrides:
    """Parse lists of configurations so that a later one replaces an earlier one as a whole.

    To be inherited before a parser of jsonargparse. `KEY+` still adds to a list, and `--KEY.init_args.NAME` changes its
    last entry.
    """

    def _check_value_key(self, action: Any, value: Any, key: str, cfg: Any, append: bool = False) -> Any:
        """Check a value without the earlier one of its key, if it is a list."""
        if isinstance(value, list) and cfg is not None and not append:
            cfg = cfg.clone()
            cfg.pop(key, None)
        return super()._check_value_key(action, value, key, cfg, append)  # type: ignore[misc]

    def lists_as_configs(self, args: Sequence[str]) -> list[str]:
        """Replace each option of the parser whose value is a list of classes by a `--config` that holds the same."""
        own: Collection[str] = self._option_string_actions  # type: ignore[attr-defined]
        return lists_as_configs(args, {name for name in own if f"{name}+" in own})


def lists_as_configs(args: Sequence[str], names: Collection[str]) -> list[str]:
    """Replace each option whose value is a list of classes by a `--config` that holds the same.

    Args:
        args: The options as typed.
        names: Names of the options that take a list.
    """
    words, index = [], 0
    while index < len(args):
        name, equals, value = args[index].partition("=")
        if not equals:
            value = next(iter(args[index + 1 :]), "")
        classes = _list_of_classes(value) if name in names else None
        if classes is None:
            words.append(args[index])
            index += 1
            continue
        content: object = classes
        for key in reversed(name.removeprefix("--").split(".")):
            content = {key: content}
        words.append("--config=" + json.dumps(content, default=str))
        index += 1 if equals else 2
    return words


def _list_of_classes(value: str) -> list[Any] | None:
    """Read a list of class names or mappings; None if a value is something else."""
    if not value.startswith("["):
        return None
    try:
        entries = yaml.safe_load(value)
    except yaml.YAMLError:
        return None
    return entries if isinstance(entries, list) and any(isinstance(entry, dict | str) for entry in entries) else None
