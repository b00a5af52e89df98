"""How long one request to S3 may take: the client alone waits for ever where a server accepts an upload and does not go on.

Loaded only where an output lies on S3, for the client's libraries take a while.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any
from urllib.parse import urlsplit

from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]
from botocore.exceptions import ReadTimeoutError  # type: ignore[import-untyped]

SHARES = (0.01, 0.1, 0.3, 1.0)
"""Of the client's ``read_timeout``, for the first, the second and every later attempt at a request: what one server of a store swallowed another one
answers at once. A large upload begins with the second."""
LENIENCE, FORGETTING = 3.0, 0.95
"""A store is given at least so many times what its slowest answer took, which is forgotten little by little with every quicker one."""
SMALL = 2**20
"""Bytes of an upload; a larger one takes long for other reasons."""
WHOLE_SECONDS = 900.0
"""For one attempt with its body, however slowly it goes on."""


class LimitedSession(AIOHTTPSession):  # type: ignore[misc]
    """HTTP of the S3 client, with a limit on every wait of a request.

    Uploads do not ask for leave first (``Expect: 100-continue``): that the client would wait for without any limit.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connector_args: dict[str, Any] = {"socket_factory": self._socket, **(self._connector_args or {})}
        self._slowest = 0.0

    async def send(self, request: Any) -> Any:
        """Send a request and return the answer; raises ReadTimeoutError where there is none in time, which the client tries again."""
        attempt = request.context.get("retries", {}).get("attempt", 1)
        is_small = int(request.headers.get("Content-Length") or 0) < SMALL
        request.context["read_timeout"] = self._limit(attempt if is_small else attempt + 1)
        request.headers.pop("Expect", None)
        started = time.monotonic()
        try:
            async with asyncio.timeout(WHOLE_SECONDS):
                answer = await super().send(request)
        except TimeoutError as error:
            raise ReadTimeoutError(endpoint_url=urlsplit(request.url)._replace(query="").geturl(), error=error) from error
        if is_small:
            self._slowest = max(FORGETTING * self._slowest, time.monotonic() - started)
        return answer

    def _limit(self, attempt: int) -> float:
        """Return how many seconds without a byte end an attempt, from 1, at a request."""
        share = SHARES[min(attempt, len(SHARES)) - 1]
        return min(self._silence, max(share * self._silence, LENIENCE * self._slowest))

    @property
    def _silence(self) -> float:
        return float(self._timeout.sock_read or WHOLE_SECONDS)

    def _socket(self, address: Any) -> socket.socket:
        """Return a socket that gives up when the other side has taken nothing of what was sent for too long."""
        family, kind, protocol = address[:3]
        made = socket.socket(family, kind, protocol)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * self._silence))
        return made
