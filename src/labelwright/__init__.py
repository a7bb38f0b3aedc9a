"""labelwright: trustworthy image classifiers from missing, few, guessed, lopsided or incomplete labels.

The verbs are functions here: ``lw.inspect``, ``lw.audit``, ``lw.fit``, ``lw.pretrain``, ``lw.embed``,
``lw.annotate``, ``lw.describe``, ``lw.label``, ``lw.classes``, ``lw.evaluate``, ``lw.report``. They are loaded when
first used, so that importing one piece (a loss, a table) does not import everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from labelwright.annotators.annotate import annotate
    from labelwright.annotators.describe import describe
    from labelwright.api import Run
    from labelwright.benchmarking.runner import bench
    from labelwright.data.read import load
    from labelwright.pipeline.audit import Audit, audit
    from labelwright.pipeline.classes import classes
    from labelwright.pipeline.embed import embed
    from labelwright.pipeline.evaluate import evaluate
    from labelwright.pipeline.fit import fit
    from labelwright.pipeline.inspect import Inspection, inspect
    from labelwright.pipeline.label import label
    from labelwright.pipeline.method_settings import settings
    from labelwright.pipeline.pretrain import pretrain
    from labelwright.pipeline.report import report

__all__ = [
    "Audit",
    "Inspection",
    "Run",
    "annotate",
    "audit",
    "bench",
    "classes",
    "describe",
    "embed",
    "evaluate",
    "fit",
    "inspect",
    "label",
    "load",
    "pretrain",
    "report",
    "settings",
]


_PLACES = {
    "Audit": "pipeline.audit",
    "Inspection": "pipeline.inspect",
    "Run": "run_folder",
    "annotate": "annotators.annotate",
    "bench": "benchmarking.runner",
    "describe": "annotators.describe",
    "load": "data.read",
    "settings": "pipeline.method_settings",
}
"""What does not lie in the module of pipeline that has its name -> module; one verb loads none of the others."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'labelwright' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"labelwright.{_PLACES.get(name, f'pipeline.{name}')}"), name)
