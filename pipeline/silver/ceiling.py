"""The ceiling on quarantine: how many readings of a window may break the contract.

Windows are tumbling, in the order that Silver takes readings: one begins with the first reading after the window
before and ends with the cycle that brings it to `quarantine.window` readings or more (a cycle is never cut). The
ceiling is passed as soon as more than `quarantine.ceiling` of its readings are quarantined; of a window that is still
filling up, the readings that it will have at the least. What the open window counts is committed with Silver, so that
a restart changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from contracts.tables import SILVER_QUARANTINE
from pipeline.errors import CeilingPassed
from pipeline.lake import quality
from pipeline.settings import Quarantine

_READINGS, _QUARANTINED = "window.readings", "window.quarantined"
"""App ids of Silver's commits; their versions are the counts of the window that is open then."""


@dataclass(frozen=True)
class Window:
    """Readings taken since the window began, and how many of them were quarantined."""

    readings: int = 0
    quarantined: int = 0

    @classmethod
    def committed(cls, progress: Callable[[str], int | None]) -> "Window":
        """The window that is open by Silver's commits; `progress` gives an app id's version."""
        return cls(progress(_READINGS) or 0, progress(_QUARANTINED) or 0)

    def taking(self, readings: int, quarantined: int) -> "Window":
        """With a cycle more."""
        return Window(self.readings + readings, self.quarantined + quarantined)

    def judge(self, limits: Quarantine, quarantined: pl.DataFrame) -> None:
        """Count whether the window, a cycle with these rows of quarantine its last, is below the ceiling.

        Raises CeilingPassed where it is not and the settings are strict.
        """
        least = max(self.readings, limits.window)
        passed = self.quarantined > limits.ceiling * least
        quality.count(SILVER_QUARANTINE.path, [("quarantine_share", not passed)])
        if not (passed and limits.strict):
            return
        rules = ", ".join(f"{rule} {rows}" for rule, rows in quarantined["rule"].value_counts().sort("rule").rows())
        examples = "; ".join(map(": ".join, quarantined.select("sensor_id", "detail").head(3).rows()))
        raise CeilingPassed(
            f"{self.quarantined} of the last {self.readings} readings break the contract: more than "
            f"{limits.ceiling:.1%} of {least}. The newest ({rules}; {examples}) were not committed; nothing is lost, "
            "Bronze has them.",
            "Correct the registry or the devices, then start Silver again. To let such readings into quarantine, set "
            "PIPELINE_QUARANTINE__STRICT=false; `pipeline quarantine release` brings them back from there.",
        )

    def going_on(self, limits: Quarantine) -> "Window":
        """The window that the next cycle adds to: a full one is over."""
        return Window() if self.readings >= limits.window else self

    def versions(self) -> dict[str, int]:
        """What a commit says of it."""
        return {_READINGS: self.readings, _QUARANTINED: self.quarantined}
