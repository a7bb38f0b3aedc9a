"""labelwright: trustworthy image classifiers from missing, few, guessed, lopsided or incomplete labels.

The verbs are functions here: ``lw.inspect``, ``lw.audit``, ``lw.fit``, ``lw.pretrain``, ``lw.embed``, ``lw.annotate``,
``lw.describe``, ``lw.label``, ``lw.verify_sample``, ``lw.review``, ``lw.classes``, ``lw.evaluate``, ``lw.export``,
``lw.report``, ``lw.compare``, ``lw.verify``; ``lw.load_model`` gives a classifier to ask from Python. They are loaded
when first used, so that importing one piece (a loss, a table) does not import everything.
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
    from labelwright.errors import LabelwrightError
    from labelwright.pipeline.audit import Audit, audit
    from labelwright.pipeline.classes import classes
    from labelwright.pipeline.embed import embed
    from labelwright.pipeline.evaluate import evaluate
    from labelwright.pipeline.export import export
    from labelwright.pipeline.fit import fit
    from labelwright.pipeline.inspect import Inspection, inspect
    from labelwright.pipeline.label import label
    from labelwright.pipeline.method_settings import settings
    from labelwright.pipeline.predict import load_model
    from labelwright.pipeline.pretrain import pretrain
    from labelwright.pipeline.promises import verify_sample
    from labelwright.pipeline.report import report
    from labelwright.pipeline.review import review
    from labelwright.pipeline.verify import Verified, verify
    from labelwright.reporting.compare import compare

__all__ = [
    "Audit",
    "Inspection",
    "LabelwrightError",
    "Run",
    "Verified",
    "annotate",
    "audit",
    "bench",
    "classes",
    "compare",
    "describe",
    "embed",
    "evaluate",
    "export",
    "fit",
    "inspect",
    "label",
    "load",
    "load_model",
    "pretrain",
    "report",
    "review",
    "settings",
    "verify",
    "verify_sample",
]


_PLACES = {
    "Audit": "pipeline.audit",
    "Inspection": "pipeline.inspect",
    "LabelwrightError": "errors",
    "Run": "run_folder",
    "annotate": "annotators.annotate",
    "bench": "benchmarking.runner",
    "compare": "reporting.compare",
    "describe": "annotators.describe",
    "load": "data.read",
    "load_model": "pipeline.predict",
    "settings": "pipeline.method_settings",
    "verify_sample": "pipeline.promises",
}
"""What does not lie in the module of pipeline that has its name -> module; one verb loads none of the others."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'labelwright' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"labelwright.{_PLACES.get(name, f'pipeline.{name}')}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, "__version__"})
