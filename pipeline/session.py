"""A run that holds its output: map what is not there, publish, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from engine.windows import padded_span
from pipeline.actors import Sizing
from pipeline.catalog import publish_series
from pipeline.cluster import cluster
from pipeline.commit import CommitContext, legend
from pipeline.errors import JobError
from pipeline.faults import reason
from pipeline.fleet import Fleet, Patience
from pipeline.job import JobSpec
from pipeline.lease import is_lease
from pipeline.model import JobModel
from pipeline.nodes import check_nodes, living_nodes, wait_for_gpus
from pipeline.pins import pinned
from pipeline.plan import Plan, TilePlan
from pipeline.progress import progress_bar
from pipeline.published import PublishedTile, latest_versions, published_tiles
from pipeline.report import write_report
from pipeline.runlog import RunLog
from pipeline.runs import RunRecord, TileCounts, TileRecord, tiles_to_parquet
from pipeline.schedule import Scheduler
from pipeline.storage import WORK, Storage
from pipeline.units import SegmenterSettings
from pipeline.vrt import vrt_path
from spexmap import SpexmapError, __version__
from stac.documents import public
from stac.modelcard import ModelRecord, model_item
from stac.records import SeriesRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Computing:
    """Where a run computes, and with how much."""

    workers: int | None = None
    """Actors; None: one for each GPU, else one for every two cores."""
    address: str | None = None
    """Of a running Ray cluster; None: one on this machine."""
    wait_gpu: float = 0.0
    """Seconds to wait for a GPU; 0 takes what there is."""
    batch: int | None = None
    """Windows a call of the model; None: what the run began with, else what the first actor chooses."""


class Session:
    """What `pipeline.run.run_job` does once the plan stands and the lease is held."""

    def __init__(self, storage: Storage, job: JobSpec, model: JobModel, record: RunRecord, plan: Plan, is_new: bool, computing: Computing) -> None:
        self._storage = storage
        self._job = job
        self._model = model
        self._record = record
        self._plan = plan
        self._is_new = is_new
        self._computing = computing

    def execute(self) -> int:
        """Map what is not there, publish, report; return the exit status."""
        plan = self._plan
        published = {tile.key.tile: tile for tile in latest_versions(published_tiles(self._storage, plan.folder))}
        todo = [tile for tile in plan.tiles if tile.id not in published or published[tile.id].fingerprint != tile.fingerprint]
        wanted = {tile.id for tile in todo}
        if self._is_new and not todo:
            self._publish()
            self._discard_work()
            log.info("nothing to do: all %d tiles are published", len(plan.tiles))
            self._announce()
            return 0
        with RunLog(self._storage, f"{self._folder}/log"):
            skipped = [TileRecord(tile.id, "skipped", published[tile.id].key.version) for tile in plan.tiles if tile.id not in wanted]
            try:
                return self._finish(self._map(todo, skipped, published))
            except (KeyboardInterrupt, SystemExit):
                self._note_interruption()
                raise

    def _map(self, todo: list[TilePlan], ended: list[TileRecord], published: Mapping[str, PublishedTile]) -> list[TileRecord]:
        if self._is_new:
            self._plan = pinned(self._plan, todo)
            self._storage.write_bytes(f"{self._folder}/plan.parquet", self._plan.to_parquet())
            self._save(state="planned")
        if not todo:
            return ended
        with cluster(self._computing.address) as is_shared:
            fleet = self._fleet(is_shared)
            try:
                self._settle_identity(fleet.start())
                scheduler = Scheduler(self._plan, self._storage, fleet, self._context(), published)
                for record in progress_bar(scheduler.run(todo), len(todo), self._plan.series.name):
                    ended.append(record)
                    self._storage.write_bytes(f"{self._folder}/tiles.parquet", tiles_to_parquet(ended))
            finally:
                self._record = replace(self._record, cluster={"actors": dict(fleet.placed), "left_out": dict(fleet.left_out)})
                fleet.close()
        return ended

    def _fleet(self, is_shared: bool) -> Fleet:
        """Return the actors of the run, as many as the cluster has room for; refuse nodes that differ."""
        asked = self._computing
        if asked.wait_gpu:
            wait_for_gpus(asked.wait_gpu, asked.workers or 1)
        if is_shared:
            check_nodes(self._job.model)
        nodes = [node.resources for node in living_nodes()]
        sizing = Sizing.of(nodes, asked.workers).with_readers(nodes, self._block_bytes())
        if is_shared and not sizing.gpus:
            log.warning("the cluster has no GPU: its CPUs compute, which takes many times longer; --wait-gpu SECONDS waits for one")
        log.info("%s", sizing.reason)
        place = max(Patience.place, asked.wait_gpu)
        return Fleet(self._settings(sizing.threads), sizing, Patience(place=place))

    def _block_bytes(self) -> int:
        """Return about how many bytes a block is that was read, with its halo: uint16 bands and source, uint8 clear and status."""
        plan = self._plan
        first, last = padded_span(0, plan.block, plan.window, plan.stride)
        return int((last - first) ** 2 * (2 * len(plan.bands) + 4))

    def _settle_identity(self, identity: dict[str, Any]) -> None:
        """Keep the identity in run.json; blocks that were staged under another one are not used."""
        if self._record.identity and dict(self._record.identity) != identity:
            log.warning("the run goes on under another numerical identity; blocks that were staged before are made again")
            for path in self._storage.find(WORK):
                if path.endswith(".arrow"):
                    self._storage.delete(path)
        self._save(state="running", identity=identity)

    def _batch(self) -> tuple[int | None, str]:
        """Return the batch of the run, and the device that it counts for: of the actors that began it, else as asked for."""
        asked, begun = self._computing.batch, self._record.identity
        if not begun:
            return asked, ""
        batch = int(begun["batch"][0])
        if asked not in (None, batch):
            raise JobError(f"--batch {asked}: the run under way began with {batch}, and a run has one batch; leave --batch away until it has ended")
        return batch, str(begun["device"])

    def _finish(self, ended: list[TileRecord]) -> int:
        failed = [record for record in ended if record.state == "failed"]
        counts = TileCounts(*(sum(record.state == state for record in ended) for state in ("done", "skipped", "failed")))
        self._publish()
        message = f"{counts.done} tiles made, {counts.skipped} were there, {counts.failed} failed"
        self._storage.write_bytes(f"{self._folder}/tiles.parquet", tiles_to_parquet(ended))
        self._save(state="failed" if failed else "done", ended=datetime.now(UTC).isoformat(timespec="seconds"), tiles=counts, message=message)
        write_report(self._storage, self._record, self._plan, ended)
        for record in failed:
            log.error("tile %s failed: %s", record.tile, record.reason)
        log.info("%s", message)
        self._discard_work()
        self._announce()
        return 1 if failed else 0

    def _publish(self) -> None:
        """Bring collection, VRTs, model item and catalog up to date with the items."""
        publish_series(self._storage, self._plan.series, self._series_record(), model_item(self._plan.series.name, self._model_record()))

    def _settings(self, threads: int) -> SegmenterSettings:
        plan = self._plan
        batch, device = self._batch()
        return SegmenterSettings(
            output=self._storage.root,
            series=plan.series,
            region=plan.region,
            bands=plan.bands,
            dilate=plan.dilate,
            model=self._job.model,
            window=plan.window,
            stride=plan.stride,
            threads=threads,
            runtime=self._job.runtime,
            batch=batch,
            block=plan.block,
            batch_device=device,
            fence=self._storage.fence,
        )

    def _context(self) -> CommitContext:
        return CommitContext(
            output=self._storage.root,
            series=self._plan.series,
            period=self._plan.period,
            created=self._plan.created,
            model=self._model.reference,
            identity=self._record.identity,
            software={"spexmap": __version__},
            license=self._job.license,
            attribution=(),
            explain=self._plan.explain,
            fence=self._storage.fence,
        )

    def _series_record(self) -> SeriesRecord:
        series = self._plan.series
        names = ", ".join(entry.title for entry in series.classes)
        return SeriesRecord(
            name=series.name,
            title=f"Land cover {series.name}",
            description=f"{names}, mapped by {self._model.reference.name} from {self._job.source.collection or public(self._job.source.catalog)}.",
            license=self._job.license,
            classes=legend(series),
            model=self._model.reference,
            providers=[provider.model_dump(exclude_none=True, mode="json") for provider in self._job.providers],
            series=series.to_dict(),
            software={"spexmap": __version__},
        )

    def _model_record(self) -> ModelRecord:
        card = self._model.card
        return ModelRecord(
            reference=self._model.reference,
            architecture=card["architecture"],
            bands=self._plan.bands,
            parameters=card["total_parameters"],
            files=self._model.files,
            classes=legend(self._plan.series),
            created=self._plan.created,
            window=self._plan.window,
        )

    def _note_interruption(self) -> None:
        """Say in the record that the run was interrupted; who ends it does not wait for a store that is gone."""
        self._record = replace(self._record, state="interrupted")
        try:
            self._storage.hurried.write_bytes(f"{self._folder}/run.json", self._record.to_json())
        except (SpexmapError, OSError) as error:
            log.warning("the record of the run could not be written (%s)", reason(error))

    def _save(self, **changes: Any) -> None:
        self._record = replace(self._record, **changes)
        self._storage.write_bytes(f"{self._folder}/run.json", self._record.to_json())

    @property
    def _folder(self) -> str:
        return f"runs/{self._record.run_id}"

    def _discard_work(self) -> None:
        """Delete blocks that no tile of this run will ask for again, and what killed writers left."""
        for path in self._storage.find(WORK):
            if not is_lease(path):
                self._storage.delete(path)

    def _announce(self) -> None:
        """Say where the map is."""
        path = vrt_path(self._plan.folder)
        if self._storage.exists(path):
            log.info("map: %s", self._storage.url(path))
