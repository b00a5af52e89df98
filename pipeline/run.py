"""One run, from job to published map: look, plan, freeze, map what is not there, publish, report.

Nothing is written before the job, its inputs and its plan are known to be right. From then on an interruption at any point loses at most
the units in flight: the frozen plan lies
in ``runs/<run-id>/``, finished blocks in ``.work/``, finished tiles are items.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from ray.exceptions import RayError

from pipeline.catalog import check_catalog_is_ours
from pipeline.cluster import check_outlives_job
from pipeline.errors import JobError, NoScenes, RunInterrupted
from pipeline.faults import reason, shown_url
from pipeline.job import JobSpec
from pipeline.lease import Lease
from pipeline.model import JobModel, inspect_model
from pipeline.period import resolve_period
from pipeline.plan import Plan
from pipeline.planning import BLOCK, make_plan, request_key
from pipeline.region import Region, load_region
from pipeline.runs import RunRecord
from pipeline.series import Series
from pipeline.session import Computing, Session
from pipeline.storage import Storage
from spexmap import SpexmapError
from stac.documents import public
from stac.publish import collection_path
from stac.search import Query, find_scenes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A job with its region read and its model looked at."""

    job: JobSpec
    region: Region
    model: JobModel

    @classmethod
    def of(cls, job: JobSpec) -> Request:
        """Return the request of `job`; raises where region or model are wrong."""
        return cls(job, load_region(job.region), inspect_model(job))

    @property
    def key(self) -> str:
        """What is asked for: an unfinished run of this key is gone on with."""
        return request_key(self.job, self.region, self.model.facts)


@dataclass(frozen=True)
class Run:
    """A run with its frozen plan."""

    record: RunRecord
    plan: Plan
    is_new: bool


def prepare(job: JobSpec, *, block: int | None = None) -> Plan:
    """Return the plan that a run of `job` would freeze now; writes nothing."""
    frozen = _frozen_series(Storage(job.output), job.name)
    plan = _plan(Request.of(job), frozen, block)
    if frozen is not None:
        try:
            frozen.check_unchanged(plan.series)
        except JobError as error:
            log.warning("a run would be refused: %s", error)
    return plan


def run_job(job: JobSpec, *, new_series: bool = False, block: int | None = None, computing: Computing | None = None) -> int:
    """Run `job` and return its exit status: 0 done or nothing to do, 1 some tiles failed.

    Parameters
    ----------
    new_series
        Go on although the output holds a series of this name with another grid, classes, model, composite or mask.
    block
        Side of a block in pixels; changes no pixel.
    computing
        Where it computes; default this machine.

    Raises
    ------
    SpexmapError
        See `pipeline.errors` for what each one means and which exit status it has.
    """
    check_outlives_job(job.output)
    storage = Storage(job.output)
    storage.check_writable()
    check_catalog_is_ours(storage)
    lease = Lease(storage)
    lease.refuse_if_held()
    request = Request.of(job)
    frozen = None if new_series else _frozen_series(storage, job.name)
    run = _unfinished(storage, request.key) or _new_run(request, _plan(request, frozen, block))
    if frozen is not None:
        frozen.check_unchanged(run.plan.series)
    if block is not None:
        run = replace(run, plan=replace(run.plan, block=block))
    with _storage_errors(job.output), lease:
        return Session(lease.fenced, job, request.model, run.record, run.plan, run.is_new, computing or Computing()).execute()


def _plan(request: Request, frozen: Series | None, block: int | None) -> Plan:
    """Search and plan; raises NoScenes where there is nothing to map."""
    job, source = request.job, request.job.source
    period = resolve_period(job.period, datetime.now(UTC).date())
    found = find_scenes(
        Query(
            catalog=source.catalog,
            collection=source.collection,
            region=request.region.geometry,
            start=period.first_instant,
            end=period.last_instant,
            max_cloud_cover=source.max_cloud_cover,
            exclude=source.exclude,
            headers=source.resolve_headers(),
        )
    )
    refused = [(entry.id, entry.reason) for entry in found.refused]
    for name, why in refused:
        log.warning("scene %s is refused: %s", name, why)
    if not found.scenes:
        _raise_no_scenes(job, str(period), refused)
    log.info("%d scenes found, %d refused, %d older processings left out", len(found.scenes), len(refused), len(found.superseded))
    return make_plan(job, request.region, period, found.scenes, request.model.facts, frozen=frozen, refused=refused, block=block or BLOCK)


def _raise_no_scenes(job: JobSpec, period: str, refused: list[tuple[str, str]]) -> None:
    unusable = f" ({len(refused)} were refused, the first, {refused[0][0]}, because {refused[0][1]})" if refused else ""
    sentence = f"no scene in {public(job.source.catalog)} shows the region of {job.name} in {period}{unusable}"
    raise JobError(f"{sentence}, which fail_on_empty makes an error") if job.fail_on_empty else NoScenes(f"{sentence}; nothing to do")


def _frozen_series(storage: Storage, name: str) -> Series | None:
    """Return the series as the output holds it: from its collection, or from a run that did not get that far."""
    path = collection_path(name)
    content = storage.read_if_there(path)
    try:
        if content is not None:
            return Series.from_dict(json.loads(content)["spexmap:series"])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        log.warning("%s is damaged (%s) and is written again", storage.url(path), reason(error))
    records = [record for record in _records(storage) if record.series.get("name") == name]
    return Series.from_dict(records[-1].series) if records else None


def _records(storage: Storage) -> list[RunRecord]:
    """Return the records of all runs of the output, oldest first."""
    paths = [path for path in storage.find("runs") if path.endswith("/run.json")]
    records = (_record(storage, path) for path in paths)
    return sorted((record for record in records if record is not None), key=lambda record: (record.started, record.run_id))


def _record(storage: Storage, path: str) -> RunRecord | None:
    try:
        return RunRecord.from_json(storage.read_bytes(path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        log.warning("%s is damaged (%s): that run is not gone on with", storage.url(path), reason(error))
        return None


def _unfinished(storage: Storage, key: str) -> Run | None:
    """Return the newest run if it asked for the same and did not end."""
    records = _records(storage)
    if not records or records[-1].key != key or records[-1].state not in ("planned", "running", "interrupted"):
        return None
    path = f"runs/{records[-1].run_id}/plan.parquet"
    try:
        plan = Plan.from_parquet(storage.read_bytes(path))
    except (JobError, FileNotFoundError) as error:
        log.warning("%s cannot be gone on with (%s): a new run begins", storage.url(path), reason(error))
        return None
    log.info("going on with run %s", records[-1].run_id)
    return Run(records[-1], plan, is_new=False)


def _new_run(request: Request, plan: Plan) -> Run:
    now = datetime.now(UTC)
    record = RunRecord(
        run_id=f"{now:%Y%m%dT%H%M%S}-{plan.identity[:8]}",
        state="planned",
        key=plan.key,
        series=plan.series.to_dict(),
        period=plan.period.slug,
        plan_identity=plan.identity,
        job=_shown(request.job.model_dump(mode="json")),
        versions=_versions(),
        started=now.isoformat(timespec="microseconds"),
    )
    return Run(record, plan, is_new=True)


def _shown(value: Any) -> Any:
    """Return a job as it may be kept: its URLs without users, passwords and queries."""
    if isinstance(value, dict):
        return {key: _shown(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shown(each) for each in value]
    return public(value) if isinstance(value, str) else value


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("spexmap", "ray", "torch", "rasterio", "numpy", "transformers")}


@contextmanager
def _storage_errors(output: str) -> Iterator[None]:
    """Turn the loss of storage or cluster in the middle of a run into RunInterrupted."""
    try:
        yield
    except SpexmapError:
        raise
    except (OSError, RayError) as error:
        raise RunInterrupted(f"storage or cluster was lost while writing {shown_url(output)}: {reason(error)}; run the same command again") from error
