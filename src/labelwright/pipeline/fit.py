"""`fit`: from data to a run folder, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labelwright.annotators.chat import Estimate
from labelwright.arguments import check_arguments
from labelwright.errors import ConfigError
from labelwright.pipeline.evaluate import evaluator
from labelwright.pipeline.finish import finish
from labelwright.pipeline.job import prepare_job
from labelwright.pipeline.promises import check_ids, check_shares, read_verified
from labelwright.pipeline.references import Contender, contest
from labelwright.pipeline.refit import is_refitted, refitted
from labelwright.pipeline.report import report
from labelwright.pipeline.resolve import Plan, new_run, resolve
from labelwright.pipeline.run_config import settings_of
from labelwright.pipeline.settings import MAY_DIFFER, documented
from labelwright.run_folder import Run
from labelwright.train import progress
from labelwright.train.environment import environment
from labelwright.train.loop import train
from labelwright.train.tracking import Tracking, check_tracker


def check_promise(plan: Plan) -> None:
    """Refuse a promise that could not be made, and verified labels that cannot be used, before anything is learned.

    Raises: ConfigError or DataError.
    """
    settings, train = plan.settings, plan.prepared.train.table
    check_shares(settings.error, settings.confidence)
    if settings.verified is None and settings.error is None:
        return
    if plan.method.requires.novel:
        raise ConfigError(
            "classes without a name cannot be verified while they are looked for",
            fix="leave --error and --verified to labelwright label, once labelwright classes has named them",
        )
    if settings.verified is not None:
        verified = read_verified(settings.verified, train.class_names)
        test = plan.prepared.test
        ids = {*train.ids.to_pylist(), *([] if test is None else test.table.ids.to_pylist())}
        check_ids(verified, ids)


@documented
@check_arguments
def fit(
    data: Any = None,
    *,
    config: str | Path | None = None,
    approve: Callable[[Estimate], bool] | None = None,
    **settings: Any,
) -> Run:
    """Train a classifier and write a run folder: model, labels with trust, scores, report.

    Args:
      SETTINGS
      config: config.yaml of a run to repeat; settings that are given change it.
      approve: called with what a chat model will be asked, before it is; False stops.

    Returns: the finished run. A finished run that is resumed is left as it is.

    Raises: LabelwrightError subclasses, with nothing written, for data or settings that cannot work.
    """
    wanted = settings_of(config, settings if data is None else {"data": data, **settings})
    check_tracker(wanted.track)
    with new_run(wanted).held() as run:
        plan = resolve(wanted, run)
        check_promise(plan)
        return _fit(plan, approve)


def _fit(plan: Plan, approve: Callable[[Estimate], bool] | None) -> Run:
    run, accelerator, seconds = plan.run, plan.accelerator, {"read": plan.seconds}
    if accelerator.is_main_process:
        machine = environment(accelerator.device, plan.settings.precision)
        run.write_head(plan.config, plan.described, machine, resume=plan.settings.resume, may_differ=MAY_DIFFER)
    if plan.is_finished:
        if accelerator.is_main_process and not run.report.exists():
            report(run.path)
            run.seal()
        return Run(run.path)
    if accelerator.is_main_process:
        run.unseal()
    if plan.announcement and accelerator.is_main_process:
        progress.say(plan.announcement)
    given, resolved = plan.config, plan.config.get("resolved", {})
    of_tracker = {**given, **resolved, **resolved.get("settings", {})}
    tracking = Tracking(plan.settings.track if accelerator.is_main_process else None, run.path.name, of_tracker)
    run.also_log = tracking.log
    try:
        _learn(plan, seconds, approve)
        tracking.finish(Run(run.path).summary if accelerator.is_main_process else None)
    finally:
        tracking.finish(None)
    run.close()
    return Run(run.path)


def _learn(plan: Plan, seconds: dict[str, float], approve: Callable[[Estimate], bool] | None) -> None:
    """Train, choose the answer, fit it once more, and write what comes of it."""
    run, accelerator = plan.run, plan.accelerator
    job = prepare_job(plan, seconds, approve)
    trained = train(
        plan.method.recipe,
        job.cfg,
        job.task,
        job.prepared.train.views(job.prepared.view),
        job.build,
        options=plan.options,
        run=run,
        evaluate=evaluator(plan, job),
    )
    began, is_main = time.monotonic(), accelerator.is_main_process
    recipe, title = plan.method.recipe, plan.method.title
    with progress.heartbeat("comparing with the obvious answers", show=is_main):
        beside = contest(Contender(plan.name, title, plan, job, recipe, job.cfg, trained.state, trained.seconds))
    kept = beside.kept
    seconds |= {"train": trained.seconds, "references": time.monotonic() - began}
    with progress.heartbeat("learning from all images", show=is_main):
        saved = refitted(kept) if is_refitted(kept) else kept
    if saved is not kept:
        seconds["refit"] = saved.seconds
    if is_main:
        if kept.plan is not plan:
            changed = {key: value for key, value in kept.plan.config.items() if value != plan.config[key]}
            run.write_yaml("config.yaml", run.read("config.yaml") | {"kept": changed})
        with progress.heartbeat("judging the labels", show=is_main):
            finish(beside, saved, trained, seconds)
        report(run.path)
        run.seal()
