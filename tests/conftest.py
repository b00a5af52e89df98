"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep engines and graphs of the tests apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEXMAP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real scenes, chips and items that lie beside the project; skips where there is none."""
    folder = Path(os.environ.get("SPEXMAP_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set SPEXMAP_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def stac_schemas(shared_data: Path) -> Path:
    """Folder of the STAC extension schemas that lie beside the shared data; skips where there is none."""
    folder = shared_data.parent / "stac-schemas"
    if not folder.is_dir():
        pytest.skip(f"STAC schemas not found at {folder}")
    return folder
