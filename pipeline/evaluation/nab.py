"""The score of the Numenta Anomaly Benchmark, from its description: Lavin and Ahmad, "Evaluating Real-time Anomaly
Detection Algorithms", ICMLA 2015 (arXiv:1510.03336), and the profiles and limits of NAB 1.1. Pure.

Of each labelled window only the earliest detection counts, for the more the earlier it is: from tp at the window's
first reading down to 0 after its last one. A window without any costs fn. Each detection outside costs up to fp, less
shortly after a window. The first 15 % of a series, 750 readings at most, are not judged.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_PROBATION, _PROBATION_MOST = 0.15, 750
_STEEPNESS = 5.0
_FAR = 3.0
"""So many windows' lengths behind the last one, and before the first, a false detection costs fp in full."""


class Profile(NamedTuple):
    """What the user of a detector cares for."""

    name: str
    tp: float
    fp: float
    fn: float


PROFILES = (
    Profile("standard", tp=1.0, fp=0.11, fn=1.0),
    Profile("reward_low_FP_rate", tp=1.0, fp=0.22, fn=1.0),
    Profile("reward_low_FN_rate", tp=1.0, fp=0.11, fn=2.0),
)


class Scored(NamedTuple):
    """A series as a detector saw it."""

    score: Floats
    """Of each reading, 0 to 1."""
    windows: Sequence[tuple[int, int]]
    """Labelled windows in order: positions of their first and last reading."""


class Result(NamedTuple):
    """A detector's score under one profile."""

    score: float
    """100: every window at its first reading and nothing else. 0: nothing at all. It may be far below 0."""
    threshold: float
    """Readings with this score or a higher one count as detections."""
    windows: int
    found: int
    false_alarms: int
    """Detections outside windows."""


def nab_score(series: Sequence[Scored], profile: Profile, threshold: float | None = None) -> Result:
    """Score all series together, as NAB does a corpus.

    Without a threshold, the one is taken that gives the best score, as NAB's published figures do.
    """
    parts = [_judged(one, profile) for one in series]
    score = np.concatenate([part[0] for part in parts])
    worth = np.concatenate([part[1] for part in parts])
    shift = np.cumsum([0, *(len(one.windows) for one in series)])
    window = np.concatenate([np.where(part[2] < 0, -1, part[2] + by) for part, by in zip(parts, shift, strict=False)])

    order = np.argsort(-score, kind="stable")
    score, worth, window = score[order], worth[order], window[order]
    judged = np.unique(window[window >= 0])
    # Row n: what it comes to where the n readings with the highest scores are the detections.
    false = np.where(window < 0, worth, 0.0)
    total = np.concatenate([[0.0], np.cumsum(false)])
    for one in judged:
        best = np.maximum.accumulate(np.where(window == one, worth, -profile.fn))
        total += np.concatenate([[-profile.fn], np.maximum(best, -profile.fn)])
    # Readings of one score are detections together.
    ends = np.append(np.flatnonzero(np.diff(score, prepend=np.inf)), len(score))
    if threshold is None:
        count = int(ends[np.argmax(total[ends])])
        threshold = float(score[count - 1]) if count else np.inf
    else:
        count = int((score >= threshold).sum())
    nothing, perfect = -profile.fn * len(judged), profile.tp * len(judged)
    return Result(
        float(100 * (total[count] - nothing) / (perfect - nothing)) if len(judged) else np.nan,
        threshold,
        len(judged),
        len(np.unique(window[:count][window[:count] >= 0])),
        int((window[:count] < 0).sum()),
    )


def _judged(series: Scored, profile: Profile) -> tuple[Floats, Floats, Ints]:
    """Of each reading after the probation: its score, what a detection there is worth, its window (-1: none)."""
    length = len(series.score)
    window = np.full(length, -1)
    position = np.full(length, _FAR)
    """In lengths of a window: -1 at its first reading, about 0 at its last; above 0 behind it."""
    rows = np.arange(length)
    for number, (first, last) in enumerate(series.windows):
        width = last - first + 1
        position[last + 1 :] = (rows[last + 1 :] - last) / max(width - 1, 1)
        position[first : last + 1] = (rows[first : last + 1] - last - 1) / width
        window[first : last + 1] = number
    worth = np.where(position < _FAR, 2 / (1 + np.exp(_STEEPNESS * np.minimum(position, _FAR))) - 1, -1.0)
    highest = 2 / (1 + np.exp(-_STEEPNESS)) - 1
    worth *= np.where(window >= 0, profile.tp / highest, profile.fp)
    begin = int(min(length * _PROBATION, _PROBATION_MOST))
    return series.score[begin:], worth[begin:], window[begin:]
