"""If these fail, a tile may be made half from one version of a scene and half from another, or a run trips over files that did not change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_scenes import BOX, GRID, WARPED, WARPED_BOX, at, scene
from tenacity import wait_none
from test_plan import make_scene, plan_of

from infra.soak.proxy import FaultProxy, Weather
from infra.soak.servers import Answering, LoopbackServer, file_handler
from pipeline.assets import AssetReader
from pipeline.grid import Grid, PixelBox
from pipeline.pins import FileState, file_state, pinned
from pipeline.plan import Plan
from pipeline.read import BlockReader, Recipe
from stac.scenes import Scene

states = st.builds(FileState, st.none() | st.integers(0, 9), st.sampled_from(["", "Mon", "Tue"]), st.sampled_from(["", '"a"', '"b|c"']))


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[FaultProxy]:
    with LoopbackServer(file_handler(tmp_path)) as files, FaultProxy(files.url) as proxy:
        yield proxy


def planned(made: Scene) -> Scene:
    """The scene as the plan of a run has it that starts now; blue is its first band."""
    plan = replace(plan_of([make_scene("any")]), scenes=(made,), bands=("blue", "nir"))
    (tile, *_) = plan.tiles
    (pinned_scene,) = pinned(plan, [replace(tile, scenes=(made.id,))]).scenes
    return pinned_scene


def replaced(made: Scene, number: int = 7000) -> None:
    """Put other files in the place of a scene's, of the same size and a minute younger."""
    folder = Path(made.bands["blue"].href).parent
    scene(folder, f"new-{made.id}", number)
    for new in folder.glob(f"new-{made.id}-*"):
        old = folder / new.name.removeprefix("new-")
        os.utime(new, (old.stat().st_mtime + 60, old.stat().st_mtime + 60))
        new.replace(old)


def reader_of(*scenes: Scene, grid: Grid = GRID) -> BlockReader:
    return BlockReader(grid, scenes, Recipe(("blue", "nir"), "latest"), assets=AssetReader(grid, wait_none()))


@pytest.mark.parametrize("remote", [False, True], ids=["local", "http"])
@pytest.mark.parametrize(("grid", "box"), [(GRID, BOX), (WARPED, WARPED_BOX)], ids=["windows", "warped"])
def test_scene_that_is_replaced_is_left_out_of_what_is_read_after(tmp_path: Path, proxy: FaultProxy, remote: bool, grid: Grid, box: PixelBox) -> None:
    name = f"s-{remote}-{grid.crs[-2:]}"
    made, good = scene(tmp_path, name, 3000), scene(tmp_path, "good", 5000)
    reader = reader_of(planned(at(made, proxy.url) if remote else made), good, grid=grid)
    before = reader.read(box)
    replaced(made)
    after = reader.read(box)
    assert before.failures == () and 4000 in before.numbers
    ((failed, reason),) = after.failures
    assert failed == name and "replaced while the run was under way" in reason
    assert set(after.numbers[after.numbers > 0]) == {6000}


def test_scene_that_is_replaced_while_it_is_read_is_no_mixture(tmp_path: Path, proxy: FaultProxy) -> None:
    """Whichever request of the block the replacement comes before."""
    for moment in range(1, 12):
        made = scene(tmp_path, f"moving-{moment}", 3000)
        reader = reader_of(planned(at(made, proxy.url)))
        asked: list[str] = []

        def count(path: str, made: Scene = made, moment: int = moment, asked: list[str] = asked) -> None:
            asked.append(path)
            if len(asked) == moment:
                replaced(made)

        proxy.on_request = count
        block = reader.read(BOX)
        proxy.on_request = None
        assert set(block.numbers[block.numbers > 0]) <= {4000}
        assert bool(block.failures) == (not block.numbers.any())


def test_mask_that_is_replaced_counts_too(tmp_path: Path) -> None:
    made = planned(scene(tmp_path, "masked", 3000))
    scene(tmp_path, "other", 3000, codes=9)
    (tmp_path / "other-mask.tif").replace(tmp_path / "masked-mask.tif")
    assert [name for name, _ in reader_of(made).read(BOX).failures] == ["masked"]


def test_check_that_fails_for_a_while_is_made_again(tmp_path: Path, proxy: FaultProxy) -> None:
    made = planned(at(scene(tmp_path, "checked", 3000), proxy.url))
    proxy.clear(Weather(0.3, ("503", "reset", "500"), seed=1))
    assert reader_of(made).read(BOX).failures == ()
    assert proxy.done["503"] + proxy.done["reset"] + proxy.done["500"] > 0


def test_pins_come_back_from_the_plan_and_change_no_identity(tmp_path: Path) -> None:
    plan = plan_of([make_scene("one"), make_scene("two")])
    files = {name: scene(tmp_path, name, 3000) for name in ("one", "two")}
    first = plan.bands[0]
    local = [replace(s, bands={**s.bands, first: replace(s.bands[first], href=files[s.id].bands["blue"].href)}) for s in plan.scenes]
    plan = replace(plan, scenes=tuple(replace(s, mask=files[s.id].mask) for s in local))
    pins = pinned(plan, plan.tiles)
    assert all(s.bands[first].seen and s.mask is not None and s.mask.seen for s in pins.scenes)
    assert Plan.from_parquet(pins.to_parquet()) == pins
    assert pins.identity == plan.identity
    assert [pins.fingerprint_of(tile, pins.scenes_of(tile)) for tile in pins.tiles] == [plan.fingerprint_of(t, plan.scenes_of(t)) for t in plan.tiles]


def test_scenes_that_no_tile_needs_are_not_asked_for(tmp_path: Path, proxy: FaultProxy) -> None:
    made = at(scene(tmp_path, "idle", 3000), proxy.url)
    plan = replace(plan_of([make_scene("any")]), scenes=(made,), bands=("blue", "nir"))
    assert pinned(plan, []).scenes == (made,)
    assert not proxy.done


def test_server_that_says_nothing_pins_nothing(tmp_path: Path) -> None:
    class Silent(Answering):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"1\r\nx\r\n0\r\n\r\n")

    with LoopbackServer(Silent) as server:
        assert file_state(f"/vsicurl/{server.url}/any.tif") is None


def test_file_that_cannot_be_asked_for_is_not_pinned(tmp_path: Path) -> None:
    made = scene(tmp_path, "gone", 3000)
    assert made.mask is not None
    missing = replace(made, bands={**made.bands, "blue": replace(made.bands["blue"], href=str(tmp_path / "none.tif"))})
    assert planned(missing).bands["blue"].seen is None


@given(states, states)
def test_state_comes_back_and_agreement_has_no_direction(one: FileState, other: FileState) -> None:
    assert FileState.parse(str(one)) == one
    assert one.agrees(one) and one.agrees(other) == other.agrees(one)


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        (FileState(5, "Mon", '"a"'), FileState(5, "Mon", '"b"'), True),
        (FileState(5, "Mon", '"a"'), FileState(5, "Tue", '"a"'), True),
        (FileState(5, "Mon", '"a"'), FileState(5, "Tue", '"b"'), False),
        (FileState(5, "Mon", '"a"'), FileState(6, "Mon", '"a"'), False),
        (FileState(5, "1", ""), FileState(5, "2", ""), False),
        (FileState(5, "", ""), FileState(5, "Mon", '"a"'), True),
    ],
    ids=["mirror that tags otherwise", "copied", "replaced", "other size", "local, touched", "nothing known"],
)
def test_what_counts_as_the_same_file(one: FileState, other: FileState, agree: bool) -> None:
    assert one.agrees(other) is agree
