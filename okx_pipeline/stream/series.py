"""How far a series has come: which candles have landed, which are on their way, and which are missing by now.

Pure bookkeeping, no clock, no socket and no database of its own: it is told what happened and when, and answers what
is to be fetched. One rule covers every way of missing a candle (a reconnect, a confirm that never came, a full buffer,
a restart): a candle that closed a while ago and has neither landed nor is on its way is asked of REST.
"""

from dataclasses import dataclass, field
from typing import Final

from okx_pipeline.timeframes import SECOND_MS, Timeframe

CONFIRM_GRACE_MS: Final = 10 * SECOND_MS
"""How long after a candle's close its confirmation is waited for; OKX was seen to take up to a few seconds."""

NEWER_FRAME_GRACE_MS: Final = 2 * SECOND_MS
"""The same once a frame of a newer candle has come: the confirmation should have come before it."""

FIRST_RETRY_MS: Final = 2 * SECOND_MS
LONGEST_RETRY_MS: Final = 300 * SECOND_MS


@dataclass(slots=True)
class SeriesProgress:
    """The progress of one series.

    Parameters
    ----------
    timeframe
        Its candles' length.
    through_ms
        Every candle that opens before this has landed, or was given up.
    """

    timeframe: Timeframe
    through_ms: int
    landed: set[int] = field(default_factory=set)
    """Open times at or after `through_ms` that have landed, beyond one that has not."""
    on_their_way: set[int] = field(default_factory=set)
    """Open times that wait to be landed."""
    newest_ms: int = -1
    """Open time of the newest candle a frame was seen of."""
    due_ms: int = 0
    """Not before this moment is REST asked; 0 while nothing says when."""
    tries: int = 0
    """How often REST was asked for the candle at `through_ms` in vain."""

    def expect(self, now_ms: int) -> None:
        """Set when REST is to be asked if nothing comes, counting from the first candle that has not landed."""
        self.due_ms = self.timeframe.close_of(self.through_ms) + CONFIRM_GRACE_MS
        if self.newest_ms > self.through_ms:
            self.due_ms = min(self.due_ms, max(now_ms, self.timeframe.close_of(self.through_ms)) + NEWER_FRAME_GRACE_MS)

    def saw(self, open_ms: int, now_ms: int) -> None:
        """A frame of the candle that opens at `open_ms` came, confirmed or not."""
        if open_ms > self.newest_ms:
            self.newest_ms = open_ms
            if open_ms > self.through_ms and not self.tries:
                self.expect(now_ms)

    def queued(self, open_ms: int) -> None:
        """The candle waits to be landed."""
        if open_ms >= self.through_ms:
            self.on_their_way.add(open_ms)

    def dropped(self, open_ms: int) -> None:
        """The candle did not fit where it waited, and will have to be fetched again."""
        self.on_their_way.discard(open_ms)

    def has_landed(self, open_ms: int, now_ms: int) -> None:
        """The candle is in the store."""
        self.on_their_way.discard(open_ms)
        if open_ms < self.through_ms:
            return
        self.landed.add(open_ms)
        if open_ms == self.through_ms:
            self._move_on(now_ms)

    def give_up(self, open_ms: int, now_ms: int) -> None:
        """The exchange does not serve the candle now; gap repair will ask again some day."""
        self.has_landed(open_ms, now_ms)

    def is_behind(self, now_ms: int) -> bool:
        """Whether REST is to be asked now."""
        return (
            now_ms >= self.due_ms and self.through_ms not in self.on_their_way and self._closed(self.through_ms, now_ms)
        )

    def missing(self, now_ms: int) -> list[int]:
        """Open times of closed candles that have neither landed nor are on their way, ascending."""
        end_ms = self.timeframe.closed_before(now_ms)
        here = self.landed | self.on_their_way
        return [open_ms for open_ms in self.timeframe.opens(self.through_ms, end_ms) if open_ms not in here]

    def hurry(self, now_ms: int) -> None:
        """Frames come again after a pause: what closed meanwhile is unlikely to be confirmed by one."""
        if self._closed(self.through_ms, now_ms) and not self.tries:
            self.due_ms = min(self.due_ms, now_ms + NEWER_FRAME_GRACE_MS)

    def asked_in_vain(self, now_ms: int) -> None:
        """REST was asked and did not bring what is missing; ask again, later each time."""
        self.tries += 1
        self.due_ms = now_ms + min(FIRST_RETRY_MS * 2 ** (self.tries - 1), LONGEST_RETRY_MS)

    def wait(self, now_ms: int) -> None:
        """REST could not be asked: that says nothing of the candle. Ask again soon."""
        self.due_ms = now_ms + FIRST_RETRY_MS

    def _closed(self, open_ms: int, now_ms: int) -> bool:
        return self.timeframe.close_of(open_ms) <= now_ms

    def _move_on(self, now_ms: int) -> None:
        while self.through_ms in self.landed:
            self.landed.discard(self.through_ms)
            self.through_ms = self.timeframe.close_of(self.through_ms)
        self.tries = 0
        self.expect(now_ms)
