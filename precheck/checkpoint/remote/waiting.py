"""When to ask a server again: what its headers say, and longer each time where they say nothing.

**Source**: RFC 9110, section 10.2.3 (``Retry-After``);
https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-09.html (``RateLimit``);
https://huggingface.co/docs/hub/rate-limits
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # lazy there

from precheck.errors import CheckpointAccessError
from precheck.records.progress import Announcement, Observer

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_WAIT_SECONDS = 600.0
"""The Hub's windows are 300 seconds long; who asks for more than two of them is not waited for."""
_ANNOUNCED_SECONDS = 5.0
_FIRST_WAIT_SECONDS, _LONGEST_OWN_WAIT_SECONDS = 0.25, 8.0


def asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait before the next request; None if it does not.

    >>> asked_to_wait({"Retry-After": "7"}), asked_to_wait({"RateLimit": '"resolvers";r=0;t=55'})
    (7.0, 55.0)
    """
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    by_name = {name.lower(): value.strip() for name, value in headers.items()}
    value = by_name.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    # a date without a time zone is in UTC
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())


def own_wait(num_failures: int) -> float:
    """Seconds to wait after so many failures in a row where the server says nothing.

    >>> own_wait(1), own_wait(3), own_wait(100)
    (0.25, 1.0, 8.0)
    """
    doubled = _FIRST_WAIT_SECONDS * 2.0 ** min(num_failures - 1, 16)
    return min(_LONGEST_OWN_WAIT_SECONDS, doubled)


class Pauses:
    """Pauses that servers have asked for; each holds for every thread.

    Args:
        observe: told of those that a person would notice.
    """

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}
        self._ended = threading.Event()

    def ask(self, host: str, seconds: float) -> None:
        """From now on this host is left alone for so many seconds.

        Raises:
            CheckpointAccessError: it asks for longer than anybody would wait.
        """
        if seconds > LONGEST_WAIT_SECONDS:
            raise CheckpointAccessError(
                f"{host} asks to wait {seconds:.0f} seconds (expected at most "
                f"{LONGEST_WAIT_SECONDS:.0f})",
                hint="try again then, or log in for a higher limit: hf auth login",
            )
        with self._lock:
            until = time.monotonic() + seconds
            is_new = until > self._until.get(host, 0.0) + 1
            self._until[host] = max(until, self._until.get(host, 0.0))
        if is_new and seconds >= _ANNOUNCED_SECONDS:
            self._observe(Announcement(text=f"{host} asks to wait {seconds:.0f} seconds"))

    def keep(self, host: str) -> None:
        """Waits until the host may be asked again, or until ``end``."""
        while True:
            with self._lock:
                seconds = self._until.get(host, 0.0) - time.monotonic()
            if seconds <= 0 or self._ended.wait(seconds):
                return

    def end(self) -> None:
        """Nobody waits any more."""
        self._ended.set()
