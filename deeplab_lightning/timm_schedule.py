"""Step the learning-rate schedules of timm as those of PyTorch."""

from typing import Any

from timm.scheduler.scheduler import Scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


class TimmSchedule(LRScheduler):
    """Step a schedule of timm as one of PyTorch.

    Args:
        schedule: Schedule of timm.
        length_name: Name of the argument that holds the length of this training, which a checkpoint's does not replace.
    """

    def __init__(self, schedule: Scheduler, *, length_name: str | None = None) -> None:
        # Not that of the base class, which would set the rates.
        self.schedule, self.optimizer, self.last_epoch = schedule, schedule.optimizer, 0
        self._length_name = length_name
        self._is_per_epoch = getattr(schedule, "t_in_epochs", True)
        self.plateau: ReduceLROnPlateau | None = getattr(schedule, "lr_scheduler", None)
        """What a PlateauLRScheduler steps."""

    def step(self, metric: float | None = None) -> None:
        """Set the rates of the next step or epoch."""
        self.last_epoch += 1
        step = self.schedule.step if self._is_per_epoch else self.schedule.step_update
        step(self.last_epoch, metric)

    def get_last_lr(self) -> list[Any]:
        """Return the current rates."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of timm's schedule and the number of steps or epochs."""
        state = {"last_epoch": self.last_epoch, "schedule": self.schedule.state_dict()}
        if self.plateau:  # timm leaves out its counters
            state["plateau"] = self.plateau.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.last_epoch, state = state_dict["last_epoch"], dict(state_dict["schedule"])
        if self.plateau:
            self.plateau.load_state_dict(state_dict["plateau"])
        name = self._length_name
        length = None if name is None else getattr(self.schedule, name)
        is_other = name is not None and state[name] != length
        self.schedule.load_state_dict(state | {name: length} if is_other else state)
        if is_other:
            self.schedule.update_groups(self.schedule._get_lr(self.last_epoch))
