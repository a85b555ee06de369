"""Trace a network once for several exports of it: a trace takes most of the time of an export."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch.export import ExportedProgram

from deeplab_lightning.export import InferenceModel, trace


@contextmanager
def traced_once() -> Iterator[None]:
    """Let the exports of one network in this process share a trace for each kind of graph."""
    programs: dict[tuple[bool, bool], ExportedProgram] = {}

    def trace_once(model: InferenceModel) -> ExportedProgram:
        kind = (model.has_preprocessing, model.has_argmax)
        if kind not in programs:
            programs[kind] = trace(model)
        return programs[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deeplab_lightning.commands.export.trace", trace_once)
        yield
