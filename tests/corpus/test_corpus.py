"""Bad data of every kind: each case ends as the table says. If one fails, a scheduled map stops, or is wrong, because of one bad file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from corpus import Case, Outcome
from rehearsal import Rehearsal, rehearse
from spoiling import BEST, EDGE, World, closing, pixels
from table import GROUPS, table, written

CASES: tuple[Case, ...] = tuple(case for _, cases in GROUPS for case in cases)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("sound") / "world")


@pytest.fixture(scope="module")
def sound_map(sound: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Rehearsal]:
    """The sound world's map without some of its scenes."""

    @functools.cache
    def mapped(without: tuple[str, ...]) -> Rehearsal:
        world = World(sound.root, {**sound.job, "source": {**sound.job["source"], "exclude": list(without)}})
        found = rehearse(world.write_job(), tmp_path_factory.mktemp("work"))
        assert found.status == 0 and found.blocks and not found.refused and not any(found.left_out.values())
        return found

    return mapped


@pytest.fixture
def world(sound: World, tmp_path: Path) -> Iterator[World]:
    with closing(sound.copy(tmp_path / "world")) as copied:
        yield copied


def test_the_corpus_has_sixty_cases_and_no_name_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f" {len(CASES)} cases of bad data ", end="")
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_data_end_as_expected(case: Case, world: World, tmp_path: Path, sound_map: Callable[[tuple[str, ...]], Rehearsal]) -> None:
    case.spoil(world)
    found = rehearse(world.write_job(), tmp_path / "work")
    assert "Traceback" not in found.stderr and "defect of spexmap" not in found.said, found.stderr
    assert found.status == case.status, found.said
    EXPECTATIONS[case.outcome](case, found)
    if case.without is not None:
        _assert_same_map(found, sound_map(case.without))
    assert case.check is None or case.check(found)


def _sentence(case: Case, found: Rehearsal) -> None:
    assert found.said.startswith("spexmap: ") and case.says in found.said, found.said
    assert len(found.said) < 1500, "a sentence that nobody reads to its end"
    assert not found.blocks


def _refused(case: Case, found: Rehearsal) -> None:
    ((name, reason),) = found.refused.items()
    assert case.scene in name and case.says in reason
    _nothing_left_out(found)


def _left_out(case: Case, found: Rehearsal) -> None:
    assert not found.refused and found.left_out
    for reasons in found.left_out.values():
        assert case.says in reasons.get(case.scene, ""), reasons


def _failed(case: Case, found: Rehearsal) -> None:
    assert found.failed and all(case.says in reason for reason in found.failed.values()), found.failed


def _right(case: Case, found: Rehearsal) -> None:
    assert found.blocks and not found.refused, found.refused
    _nothing_left_out(found)


def _nothing_left_out(found: Rehearsal) -> None:
    assert not any(found.left_out.values()), found.left_out


EXPECTATIONS = {
    Outcome.SENTENCE: _sentence,
    Outcome.REFUSED: _refused,
    Outcome.LEFT_OUT: _left_out,
    Outcome.FAILED: _failed,
    Outcome.RIGHT: _right,
}


def _assert_same_map(found: Rehearsal, expected: Rehearsal) -> None:
    assert found.blocks.keys() == expected.blocks.keys()
    for key, block in found.blocks.items():
        np.testing.assert_array_equal(block.numbers, expected.blocks[key].numbers)


def test_two_hundred_tiles_of_which_some_meet_a_broken_block(world: World, tmp_path: Path, sound_map: Callable[[tuple[str, ...]], Rehearsal]) -> None:
    """One quarter of one band is damaged: the tiles that need it are made without that scene and say so, the others know nothing of it."""
    world.set("grid.tile", 6)
    world.set("source.exclude", [EDGE])
    pixels("B04", lambda numbers: numbers)(world)
    start = _block_offset(world.raster("B04"))
    data = bytearray(world.raster("B04").read_bytes())
    data[start : start + 200] = bytes(200)
    world.raster("B04").write_bytes(data)
    found = rehearse(world.write_job(), tmp_path / "work")
    assert found.status == 0 and found.plan is not None
    assert len(found.plan.tiles) >= 200 and len(found.blocks) == len(found.plan.tiles)
    without = {tile for tile, reasons in found.left_out.items() if reasons}
    assert 0 < len(without) < len(found.plan.tiles) / 2
    assert all("B04.tif" in found.left_out[tile][BEST] for tile in without)
    sound = {left: next(iter(sound_map((BEST, EDGE) if left else (EDGE,)).blocks.items())) for left in (True, False)}
    for (tile, box), block in found.blocks.items():
        (_, outer), whole = sound[tile in without]
        np.testing.assert_array_equal(block.numbers, whole.numbers[:, *box.within(outer)])


def _block_offset(path: Path) -> int:
    """Return where the second block of a TIFF's first band lies in the file."""
    with rasterio.open(path) as source:
        return int(source.get_tag_item("BLOCK_OFFSET_1_0", "TIFF", bidx=1))


def test_the_documentation_lists_these_cases() -> None:
    """If it fails, the page promises what is not tested; ``python tests/corpus/table.py`` writes it anew."""
    assert written() == table()
