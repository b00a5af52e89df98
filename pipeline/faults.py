"""What a store answers when it does not do what it was asked: which faults pass, how long they are waited for, and how the others read."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from pipeline.errors import JobError, StorageRefused, StorageUnavailable
from stac.secrets import is_secret

log = logging.getLogger(__name__)

ATTEMPTS = 8
MOST_SECONDS = 240.0
"""No new attempt begins after so long; one attempt ends after `READ_SECONDS` without a byte."""
PATIENCE_VARIABLE = "SPEXMAP_STORAGE_SECONDS"
"""Environment variable that says otherwise."""
LONGEST_PAUSE = 20.0
CONNECT_SECONDS, READ_SECONDS = 10, 30

TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
TRANSIENT_CODES = frozenset(
    {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException", "IncompleteBody"}
)
_TRANSIENT_NAMES = frozenset(
    {
        "HTTPClientError",
        "ConnectionClosedError",
        "ConnectTimeoutError",
        "EndpointConnectionError",
        "ReadTimeoutError",
        "ResponseStreamingError",
        "ResponseParserError",
        "IncompleteRead",
        "IncompleteReadError",
        "ClientConnectionError",
        "ClientPayloadError",
        "FSTimeoutError",
        "ArrivedShort",
    }
)
"""Of the classes of botocore, aiohttp, urllib3 and fsspec, which share no base."""
_EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidAccessKeyId", "TokenRefreshRequired", "RequestExpired", "InvalidClientTokenId"}
)
"""What stores call credentials that were good once; Amazon answers it with status 400, and to HEAD without the code."""
_SECRET_VARIABLES = re.compile(r"SECRET|TOKEN|PASSWORD|SAS|ACCOUNT_KEY|CONNECTION_STRING", re.IGNORECASE)
_SHORTEST_SECRET = 8
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(?<=://)([^\s?'\"<>]*)\?[^\s'\"<>)]+")
_PARAMETER = re.compile(r"([?&]([\w.-]+)=)[^&\s'\")]+")

T = TypeVar("T")


class ArrivedShort(OSError):
    """What the store holds after a write or delete is not what was asked for."""


def s3_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that bound every wait of s3fs, under what `given` (the user's fsspec settings for s3) says otherwise.

    botocore repeats one request three times, so that a large upload does not begin anew for one part, and waits longer each time
    (`pipeline.s3_session`); what still fails is tried again by `retried`.
    """
    from pipeline.s3_session import LimitedSession

    limits = {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": READ_SECONDS,
        "retries": {"mode": "standard", "max_attempts": 3},
        "http_session_cls": LimitedSession,
    }
    return {"config_kwargs": limits | dict(given.get("config_kwargs", {}))}


def patience() -> float:
    """Return how many seconds a store that does not answer is asked again: four minutes, or what ``SPEXMAP_STORAGE_SECONDS`` says."""
    text = os.environ.get(PATIENCE_VARIABLE, "")
    try:
        return max(0.0, float(text)) if text else MOST_SECONDS
    except ValueError:
        raise JobError(f"{PATIENCE_VARIABLE}={text}: give a number of seconds, or leave it away for {MOST_SECONDS:g}") from None


def retried(what: str, action: Callable[[], T], attempts: int | None = None) -> T:
    """Return ``action()``, tried again with growing pauses while it fails by what passes: 429, 5xx, resets, time-outs, short arrivals.

    Parameters
    ----------
    what
        The attempt in words, for log and error: ``write s3://maps/styria/catalog.json``.
    attempts
        How often it is tried at most; default `ATTEMPTS`.

    Raises
    ------
    StorageRefused
        At once, where asking again cannot help: no permission, no such bucket, wrong credentials.
    StorageUnavailable
        The store kept failing.
    FileNotFoundError, FileExistsError
        As the store says.
    """
    asked = Retrying(
        stop=stop_after_attempt(attempts or ATTEMPTS) | stop_after_delay(patience()),
        wait=wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE),
        retry=retry_if_exception(is_transient),
        before_sleep=lambda state: _log_attempt(what, state),
        reraise=True,
    )
    try:
        return asked(action)
    except Exception as error:
        said = _in_words(what, error)
        if said is error:
            raise
        raise said from (None if _holds_secrets(error) else error)


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a little later."""
    for each in _chain(error):
        status, code = _answer(each)
        if status is not None:
            return status in TRANSIENT_STATUS or code in TRANSIENT_CODES
        if isinstance(each, ConnectionError | TimeoutError) or any(kind.__name__ in _TRANSIENT_NAMES for kind in type(each).__mro__):
            return True
    return False


def is_refused_condition(error: BaseException) -> bool:
    """Return whether a conditional write failed because the file is there, or because another one was writing it."""
    return any(isinstance(each, FileExistsError) or _answer(each)[0] in (409, 412) for each in _chain(error))


def is_condition_unknown(error: BaseException) -> bool:
    """Return whether the store says that it has no conditional writes."""
    return any(_answer(each)[0] == 501 for each in _chain(error))


def without_secrets(text: str) -> str:
    """Return `text` without user names, passwords and queries of URLs, signatures, and the values of secret environment variables."""
    text = _QUERY.sub(r"\1", _USER_INFO.sub("***@", text))
    text = _PARAMETER.sub(lambda found: f"{found[1]}***" if is_secret(found[2]) else found[0], text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLES.search(name):
            text = text.replace(value, "***")
    return text


def shown_url(url: str) -> str:
    """Return a URL as it may be printed: no user name, password or query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if "://" in url else url


def carries_password(url: str) -> bool:
    """Return whether a URL has a password in it."""
    return "://" in url and ":" in urlsplit(url).netloc.rpartition("@")[0]


def _log_attempt(what: str, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    pause = state.next_action.sleep if state.next_action else 0.0
    log.warning("cannot %s (%s); trying again in %.1f s", what, reason(error), pause)


def reason(error: BaseException | None) -> str:
    """Return an error in one line that may be printed."""
    return without_secrets(f"{type(error).__name__}: {error}".strip().rstrip(":"))


def _in_words(what: str, error: Exception) -> Exception:
    if is_transient(error):
        return StorageUnavailable(f"cannot {what}: the store kept failing ({reason(error)}); run the same command again when it answers")
    if is_refused_condition(error):
        return error if isinstance(error, FileExistsError) else FileExistsError(f"cannot {what}: it is there already")
    advice = _advice(error)
    if advice:
        return StorageRefused(f"cannot {what}: {reason(error).rstrip('.')}; {advice}")
    return OSError(f"cannot {what}: {reason(error)}") if _holds_secrets(error) else error


def _advice(error: BaseException) -> str:
    """Return what to do about a lasting fault, or nothing where it is not the store's."""
    if any(_answer(each)[1] in _EXPIRED for each in _chain(error)):
        return "check the credentials, which have run out or were withdrawn"
    for each in _chain(error):
        status, code = _answer(each)
        if code == "NoSuchBucket":
            return "make the bucket, or name one that exists"
        if status == 400 and code == "400":
            return "check the credentials: stores answer so, without a reason, where they have run out"
        if status in (401, 403) or isinstance(each, PermissionError):
            return "check the credentials and what they may do there"
        if type(each).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        if type(each).__name__ == "ParamValidationError":
            return "name a bucket and a folder in it, such as s3://maps/styria"
    return ""


def _answer(error: BaseException) -> tuple[int | None, str]:
    """Return HTTP status and error code of the store's answer, where the error carries one."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None, str(response.get("Error", {}).get("Code", ""))
    status = getattr(error, "status", getattr(error, "code", None))
    return (status if isinstance(status, int) and 100 <= status < 600 else None), ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, the store's own answer last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _holds_secrets(error: BaseException) -> bool:
    return any(without_secrets(str(each)) != str(each) for each in _chain(error))
