"""Tell whether a validation may be the last of its training, for what is too slow to be counted in each."""

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping


def may_be_last(trainer: L.Trainer) -> bool:
    """Check whether the training may end after the validation that runs now.

    It may for the last epoch with a validation, for one after which `max_steps` are reached before the next, and for
    one after which `EarlyStopping` has no more patience unless the figures improve. A training that ends by `max_time`
    or a signal ends unforeseen.

    Args:
        trainer: Trainer that validates.
    """
    if trainer.state.fn != "fit" or trainer.sanity_checking:
        return False
    stopping = (part for part in trainer.callbacks if isinstance(part, EarlyStopping))  # type: ignore[attr-defined]
    if any(part.wait_count + 1 >= part.patience for part in stopping):
        return True
    every = trainer.check_val_every_n_epoch or 1
    if trainer.max_epochs is not None and 0 < trainer.max_epochs < trainer.current_epoch + 1 + every:
        return True
    steps = trainer.num_training_batches * every / trainer.accumulate_grad_batches
    return 0 < trainer.max_steps < trainer.global_step + steps
