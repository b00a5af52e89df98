"""The table of docs/bad-data.md, made from the cases; ``python tests/corpus/table.py`` writes it there."""

from __future__ import annotations

from pathlib import Path

import cases_catalogs
import cases_items
import cases_jobs
import cases_rasters
from corpus import Case

PAGE = Path(__file__).resolve().parents[2] / "docs" / "bad-data.md"
BEGIN, END = "<!-- cases: begin -->", "<!-- cases: end -->"
GROUPS = (
    ("Files of a scene", cases_rasters.CASES),
    ("Items", cases_items.CASES),
    ("Catalogs and searches", cases_catalogs.CASES),
    ("Job files, regions and grids", cases_jobs.CASES),
)


def table() -> str:
    """Return the tables of all cases as Markdown."""
    return "\n\n".join(f"### {title}\n\n{_rows(cases)}" for title, cases in GROUPS)


def _rows(cases: tuple[Case, ...]) -> str:
    head = "| case | what is wrong | what comes of it | status | the message contains |\n|---|---|---|---|---|\n"
    return head + "\n".join(_row(case) for case in cases)


def _row(case: Case) -> str:
    return f"| {case.name} | {case.wrong} | {case.outcome} | {case.status} | {_code(case.says)} |"


def _code(text: str) -> str:
    return f"`{text[:60]}`" if text else ""


def written() -> str:
    """Return the tables as the page has them."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
