"""labelwright: trustworthy image classifiers from missing, few, guessed, lopsided or incomplete labels.

The verbs are functions here: ``lw.inspect``, ``lw.fit``, ``lw.pretrain``, ``lw.annotate``, ``lw.describe``,
``lw.label``, ``lw.evaluate``, ``lw.report``. They are loaded when first used, so that importing one piece (a loss, a
table) does not import everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from labelwright.api import Run, annotate, describe, evaluate, fit, inspect, label, pretrain, report
    from labelwright.benchmarking.runner import bench
    from labelwright.data.read import load
    from labelwright.pipeline.inspect import Inspection

__all__ = [
    "Inspection",
    "Run",
    "annotate",
    "bench",
    "describe",
    "evaluate",
    "fit",
    "inspect",
    "label",
    "load",
    "pretrain",
    "report",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'labelwright' has no attribute {name!r}")
    from importlib import import_module

    module = {"load": "labelwright.data.read", "bench": "labelwright.benchmarking.runner"}.get(name, "labelwright.api")
    return getattr(import_module(module), name)
