"""Signatures stay out of logs: GDAL and urllib3 name whole URLs when they try something again."""

from __future__ import annotations

import logging
import re

LOGGERS = ("rasterio._env", "rasterio._err", "rasterio._io", "urllib3.connectionpool", "botocore.httpchecksum", "aiobotocore.httpsession")
"""A filter holds for the logger that it is given to and for none below it."""


class WithoutQueries(logging.Filter):
    """Leaves the query strings of URLs out of every record; drops none."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record and let it pass."""
        record.msg, record.args = re.sub(r"\?[^\s'\")]+", "", record.getMessage()), ()
        return True


_WITHOUT_QUERIES = WithoutQueries()


def hide_queries() -> None:
    """Keep the query strings of URLs out of what libraries log in this process from now on."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_WITHOUT_QUERIES)
