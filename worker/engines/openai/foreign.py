"""What others make a server do, worked out from its own counts and ours. Pure; the caller brings the time.

Its counts are older than ours and hold our requests too. Ours are exact. So what it counts beyond the most that we had
there while its numbers may have been written is somebody else's, and only when two looks in a row say so: a request
that we ended a moment ago must not come back as a stranger's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from worker.engines.openai.page import Page


@dataclass(frozen=True, slots=True)
class Foreign:
    """Requests that did not come through us."""

    running: int = 0
    queued: int = 0

    @property
    def requests(self) -> int:
        return self.running + self.queued


class Crowd:
    """Our requests at one server over the last moments, and with them what is foreign."""

    def __init__(self, lag_s: float) -> None:
        """`lag_s` is how old the server's numbers may be."""
        self.lag_s = lag_s
        self.foreign = Foreign()
        self._ours = 0
        self._peaks: deque[tuple[float, int]] = deque()
        """Moments and the number of ours from then on, as far as they may matter: numbers fall along the deque."""
        self._before = Foreign()

    @property
    def ours(self) -> int:
        return self._ours

    def change(self, by: int, now: float) -> None:
        """So many more of ours are there, or fewer."""
        # What we had until now mattered until now.
        self._remember(self._ours, now)
        self._ours += by

    def look(self, page: Page, ours_queued: int, now: float) -> None:
        """Takes in what a page says that was asked for and came by `now`; `ours_queued` of ours had no token yet."""
        most = max([self._ours, *(ours for at, ours in self._peaks if at >= now - self.lag_s)])
        running, waiting = page.running or 0, page.waiting or 0
        requests = max(0, running + waiting - most)
        queued = min(requests, max(0, waiting - ours_queued))
        seen = Foreign(requests - queued, queued)
        self.foreign = Foreign(min(seen.running, self._before.running), min(seen.queued, self._before.queued))
        self._before = seen

    def forget(self) -> None:
        """The server is gone, and its crowd with it."""
        self.foreign = self._before = Foreign()

    def _remember(self, ours: int, until: float) -> None:
        while self._peaks and (self._peaks[-1][1] <= ours):
            self._peaks.pop()
        self._peaks.append((until, ours))
        while self._peaks[0][0] < until - self.lag_s:
            self._peaks.popleft()
