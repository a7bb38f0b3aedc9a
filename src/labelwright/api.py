"""The verbs, as Python functions; the command line calls these."""

from __future__ import annotations

from labelwright.annotators.annotate import Annotated, annotate
from labelwright.annotators.describe import describe
from labelwright.pipeline.audit import Audit, audit
from labelwright.pipeline.classes import classes
from labelwright.pipeline.embed import Embedded, embed
from labelwright.pipeline.evaluate import evaluate
from labelwright.pipeline.export import export
from labelwright.pipeline.fit import fit
from labelwright.pipeline.inspect import Inspection, inspect
from labelwright.pipeline.label import label
from labelwright.pipeline.method_settings import settings
from labelwright.pipeline.predict import load_model
from labelwright.pipeline.pretrain import pretrain
from labelwright.pipeline.promises import ToVerify, verify_sample
from labelwright.pipeline.report import report
from labelwright.pipeline.review import Reviewed, review
from labelwright.pipeline.verify import Verified, verify
from labelwright.reporting.compare import Comparison, compare
from labelwright.run_folder import Run

__all__ = [
    "Annotated",
    "Audit",
    "Comparison",
    "Embedded",
    "Inspection",
    "Reviewed",
    "Run",
    "ToVerify",
    "Verified",
    "annotate",
    "audit",
    "classes",
    "compare",
    "describe",
    "embed",
    "evaluate",
    "export",
    "fit",
    "inspect",
    "label",
    "load_model",
    "pretrain",
    "report",
    "review",
    "settings",
    "verify",
    "verify_sample",
]
