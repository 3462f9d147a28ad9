"""The ceiling on dead letters: how many raw messages of a window may be none that can be decoded.

Windows are tumbling, in the order in which ingest reads: one begins after the one before and ends with the batch that
brings it to `ingest.dead_window` messages or more. The ceiling is passed as soon as more than `ingest.dead_ceiling`
of them are dead: of those that the window will have at the least, while it is filling up. A restart begins a new one.
"""

from collections import Counter
from collections.abc import Sequence

from pipeline import metrics
from pipeline.errors import TerminalError
from pipeline.settings import Ingest
from pipeline.wire.decode import Dead


class DeadShare:
    """Counts the window that is open."""

    def __init__(self, limits: Ingest) -> None:
        self._limits = limits
        self._messages = 0
        self._reasons = Counter[str]()
        metrics.DEAD_CEILING.set(0)

    def take(self, messages: int, dead: Sequence[Dead]) -> None:
        """A batch, before it is committed: with `ingest.strict` the one that passes the ceiling never is.

        Raises TerminalError then; without it only the metric tells.
        """
        self._messages += messages
        self._reasons.update(each.reason.value for each in dead)
        limits, count = self._limits, self._reasons.total()
        passed = count > limits.dead_ceiling * max(self._messages, limits.dead_window)
        if passed:
            metrics.DEAD_CEILING.set(1)
        if passed and limits.strict:
            reasons = ", ".join(f"{reason} {number:,}" for reason, number in self._reasons.most_common())
            raise TerminalError(
                f"{count:,} of {self._messages:,} raw messages cannot be decoded ({reasons}), more than "
                f"{limits.dead_ceiling:.0%} of {limits.dead_window:,}. The last of them: {dead[-1].message}",
                "The batch that passed the ceiling is not committed. Mend what sends such messages, or the registry "
                "that refuses them, and start ingest again: it goes on where it stopped. "
                "PIPELINE_INGEST__STRICT=false makes dead letters of them, which `pipeline dlq replay` brings back.",
            )
        if self._messages >= limits.dead_window:
            if not passed:
                metrics.DEAD_CEILING.set(0)
            self._messages = 0
            self._reasons.clear()
