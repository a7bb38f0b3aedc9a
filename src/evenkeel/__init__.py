"""evenkeel: trustworthy image classifiers from missing, few, guessed, lopsided or incomplete labels.

The verbs are functions here: ``ek.inspect``, ``ek.fit``, ``ek.pretrain``, ``ek.annotate``, ``ek.describe``,
``ek.label``, ``ek.evaluate``, ``ek.report``. They are loaded when first used, so that importing one piece (a loss, a
table) does not import everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from evenkeel.api import Inspection, Run, annotate, describe, evaluate, fit, inspect, label, pretrain, report
    from evenkeel.benchmarking.runner import bench
    from evenkeel.data.read import load

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
        raise AttributeError(f"module 'evenkeel' has no attribute {name!r}")
    from importlib import import_module

    module = {"load": "evenkeel.data.read", "bench": "evenkeel.benchmarking.runner"}.get(name, "evenkeel.api")
    return getattr(import_module(module), name)
