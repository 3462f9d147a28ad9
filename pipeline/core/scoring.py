"""Scores and anomaly rules: one compiled loop over the readings of each series, in order. Pure.

The score of a reading depends on which ones before it were accepted, so no column operation can give it. Compiled,
the loop costs a fraction of a microsecond a reading, for two series as for a hundred thousand.

The baseline's statistics are two-pass, oldest value first (Chan, Golub, LeVeque 1983). What is carried along is only
moved towards the newest value, so no rounding error grows; and nothing depends on how readings were cut into batches.
docs/DETECTION.md has the rules, and how good they are.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from contracts.tables import AnomalyRule
from pipeline.compiled import compiled
from pipeline.settings import Detection

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ZSCORE, _OPERATING_RANGE, _STUCK, _RATE_OF_CHANGE, _JUMP, _DRIFT = (1 << place for place in range(len(AnomalyRule)))
"""Bits of a reading's rules, in the order of AnomalyRule."""

_RECENT = 0.25
"""Weight of the newest value in the exponentially weighted mean of the recent ones (Roberts 1959) ..."""
_OF_RECENT = _RECENT / (2 - _RECENT)
"""... and the variance of that mean where the values are independent and have variance 1."""
_LONG_RUN = 1000
"""Readings over which a square is averaged, exponentially once there were so many ..."""
_OUTLYING = 4
"""... and how many times the average a square counts for at most: an anomaly should not widen what is usual."""

_RULES = pl.Series(
    [
        [rule.value for place, rule in enumerate(AnomalyRule) if bits >> place & 1]
        for bits in range(1 << len(AnomalyRule))
    ],
    dtype=pl.List(pl.String),
)


def memory_dtype(window: int, shift_after: int) -> np.dtype[np.void]:
    """What is remembered of a series: one record, all zeros before its first reading."""
    return np.dtype(
        [
            ("accepted", np.int64),
            ("refused", np.int64),
            ("repeats", np.int64),
            ("newest_us", np.int64),
            ("last_us", np.int64),
            ("last", np.float64),
            ("learnt", np.int64),
            ("recent", np.float64),
            ("surprise", np.float64),
            ("spread", np.float64),
            ("former", np.int64),
            ("former_mean", np.float64),
            ("former_std", np.float64),
            ("baseline", np.float64, (window,)),
            ("pending", np.float64, (shift_after,)),
        ]
    )


class Limits(NamedTuple):
    """What the registry says, by piece: arrays of one length."""

    operating_low: Floats
    operating_high: Floats
    noise_floor: Floats
    stuck_after: Ints
    """0: off."""
    max_rate: Floats
    """Units a second; infinite: off."""


class Scores(NamedTuple):
    """One entry a reading. NaN: no score, too few values before it."""

    zscore: Floats
    mean: Floats
    std: Floats
    rules: npt.NDArray[np.uint8]
    late: Bools

    def columns(self) -> list[pl.Series]:
        """Silver's columns of them, with null for NaN."""
        zscore, mean, std = (
            pl.Series(name, values, nan_to_null=True)
            for name, values in (("zscore", self.zscore), ("baseline_mean", self.mean), ("baseline_std", self.std))
        )
        return [
            zscore,
            mean,
            std,
            _RULES.gather(self.rules).alias("anomaly_rules"),
            pl.Series("is_anomaly", self.rules != 0),
            pl.Series("is_late", self.late),
        ]


def score(
    values: Floats,
    at_us: Ints,
    series: Ints,
    piece: Ints,
    limits: Limits,
    memory: npt.NDArray[np.void],
    rules: Detection,
) -> Scores:
    """Score readings in their order: finite canonical values, event times (microseconds of the epoch), the number of
    each reading's series and of the piece of `limits` that it is judged by.

    `memory` has a record of `memory_dtype` for each series, and is brought up to date in place.
    """
    zscore, mean, std = (np.full(len(values), np.nan) for _ in range(3))
    scores = Scores(
        zscore,
        mean,
        std,
        np.zeros(len(values), dtype=np.uint8),
        np.zeros(len(values), dtype=np.bool_),
    )
    order, first = grouped(series, len(memory))
    # The fields of fewer than two records are contiguous, which to the compiler is another type: one is compiled.
    kept = memory if len(memory) > 1 else np.concatenate([memory, np.zeros(2, dtype=memory.dtype)])
    _score(
        order,
        first,
        values,
        at_us,
        piece,
        *limits,
        *(kept[name] for name in kept.dtype.names or ()),
        rules.min_readings,
        rules.threshold,
        rules.jump_threshold,
        rules.drift_threshold,
        round(rules.lateness_s * 1e6),
        *scores,
    )
    if kept is not memory:
        memory[:] = kept[: len(memory)]
    return scores


@compiled
def grouped(group: Ints, groups: int) -> tuple[Ints, Ints]:  # pragma: no cover - compiled, as are those below
    """Positions of the readings of group 0, then of group 1 ..., each in order (a counting sort), and where each
    group's begin, with one entry more for the end.
    """
    first = np.zeros(groups + 1, dtype=np.int64)
    for g in group:
        first[g + 1] += 1
    for g in range(groups):
        first[g + 1] += first[g]
    place = first[:-1].copy()
    order = np.empty(len(group), dtype=np.int64)
    for i in range(len(group)):
        order[place[group[i]]] = i
        place[group[i]] += 1
    return order, first


@compiled
def overtaken(sensor: Ints, at_us: Ints, newest_us: Ints) -> Bools:  # pragma: no cover
    """Which readings are not newer than all that came of their sensor before: any copy is among them.

    `newest_us`, by sensor, is brought up to date in place.
    """
    result = np.zeros(len(sensor), dtype=np.bool_)
    for i in range(len(sensor)):
        if at_us[i] > newest_us[sensor[i]]:
            newest_us[sensor[i]] = at_us[i]
        else:
            result[i] = True
    return result


@compiled
def _mean_and_std(values: Floats, first: int, end: int) -> tuple[float, float]:  # pragma: no cover
    """Two-pass, ddof 1."""
    total = 0.0
    for j in range(first, end):
        total += values[j]
    mean = total / (end - first)
    m2 = 0.0
    for j in range(first, end):
        m2 += (values[j] - mean) * (values[j] - mean)
    return mean, np.sqrt(m2 / (end - first - 1))


@compiled
def _score(  # noqa: PLR0912, PLR0915 - the rules, one after the other  # pragma: no cover
    order: Ints,
    first: Ints,
    values: Floats,
    at_us: Ints,
    piece: Ints,
    operating_low: Floats,
    operating_high: Floats,
    noise_floor: Floats,
    stuck_after: Ints,
    max_rate: Floats,
    m_accepted: Ints,
    m_refused: Ints,
    m_repeats: Ints,
    m_newest_us: Ints,
    m_last_us: Ints,
    m_last: Floats,
    m_learnt: Ints,
    m_recent: Floats,
    m_surprise: Floats,
    m_spread: Floats,
    m_former: Ints,
    m_former_mean: Floats,
    m_former_std: Floats,
    m_baseline: Floats,
    m_pending: Floats,
    min_readings: int,
    threshold: float,
    jump_threshold: float,
    drift_threshold: float,
    lateness_us: int,
    zscores: Floats,
    means: Floats,
    stds: Floats,
    flags: Any,
    late: Bools,
) -> None:
    window, shift_after = m_baseline.shape[1], m_pending.shape[1]
    longest = 0
    for s in range(len(first) - 1):
        longest = max(longest, first[s + 1] - first[s])
    # A series' accepted values, one after the other: the baseline is the last `accepted` of them, up to `end`.
    baseline = np.empty(window + longest + shift_after)
    pending = np.empty(shift_after)

    for s in range(len(first) - 1):
        if first[s] == first[s + 1]:
            continue
        accepted, refused, repeats = m_accepted[s], m_refused[s], m_repeats[s]
        newest_us, last_us, last = m_newest_us[s], m_last_us[s], m_last[s]
        learnt, recent, surprise, spread = m_learnt[s], m_recent[s], m_surprise[s], m_spread[s]
        former, former_mean, former_std = m_former[s], m_former_mean[s], m_former_std[s]
        mean = std = 0.0
        end = accepted
        baseline[:accepted] = m_baseline[s, :accepted]
        pending[:refused] = m_pending[s, :refused]

        for k in range(first[s], first[s + 1]):
            i = order[k]
            x, t, p = values[i], at_us[i], piece[i]
            flag = 0
            scored, returning = accepted >= min_readings, False

            # Against the baseline: the accepted values before it, if there are enough.
            if scored:
                mean, std = _mean_and_std(baseline, end - accepted, end)
                noise = noise_floor[p]
                scale = max(std, noise)
                z = (x - mean) / scale
                zscores[i], means[i], stds[i] = z, mean, std
                if abs(z) > threshold:
                    flag |= _ZSCORE

                # Against the recent values, by how far readings are from those in the long run. After a refused
                # value, what is odd about the next one is left to the other rules: it may be the way back.
                if learnt == 0:
                    recent, surprise, spread = mean, std * std, std * std * _OF_RECENT
                learnt = min(learnt + 1, _LONG_RUN)
                step, usual = x - recent, max(surprise, noise * noise)
                if learnt > window and refused == 0 and abs(step) > jump_threshold * np.sqrt(usual):
                    flag |= _JUMP
                surprise += (min(step * step, _OUTLYING * usual) - surprise) / learnt
                reach = threshold * np.sqrt(usual)
                recent += _RECENT * min(max(step, -reach), reach)

                # The recent values against the baseline, by how far those are from it in the long run; and the
                # reading has to be that far itself, so that the way back is none.
                moved, usual = recent - mean, max(spread, noise * noise * _OF_RECENT)
                limit = drift_threshold * np.sqrt(usual)
                if learnt > window and min(abs(moved), (x - mean) * np.sign(moved)) > limit:
                    flag |= _DRIFT
                spread += (min(moved * moved, _OUTLYING * usual) - spread) / learnt

                # A level that was left not long ago is known.
                if flag and former and abs(x - former_mean) <= threshold * max(former_std, noise):
                    flag, returning = 0, True
            if not operating_low[p] <= x <= operating_high[p]:
                flag |= _OPERATING_RANGE

            # Against the reading before it.
            if repeats == 0:
                newest_us = t
            elif t > last_us and abs(x - last) / ((t - last_us) / 1e6) > max_rate[p]:
                flag |= _RATE_OF_CHANGE
            repeats = repeats + 1 if repeats > 0 and x == last else 1
            if 0 < stuck_after[p] <= repeats:
                flag |= _STUCK
            flags[i] = flag

            # A flagged value stays out of the baseline. So many of them in a row are a new level and replace it; but
            # those of a stuck sensor say nothing of the level.
            if flag == 0 and not returning:
                if refused:
                    recent = x
                refused = 0
                baseline[end] = x
                end += 1
                accepted = min(accepted + 1, window)
            elif not flag & _STUCK:
                pending[refused] = x
                refused += 1
                if refused == shift_after:
                    former = int(scored and not returning)
                    if former:
                        former_mean, former_std = mean, std
                    baseline[end : end + refused] = pending
                    end += refused
                    recent = _mean_and_std(pending, 0, refused)[0]
                    accepted = min(refused, window)
                    refused = 0
            if accepted == window:
                former = 0

            late[i] = t < newest_us - lateness_us
            newest_us = max(newest_us, t)
            last_us, last = t, x

        m_accepted[s], m_refused[s], m_repeats[s] = accepted, refused, repeats
        m_newest_us[s], m_last_us[s], m_last[s] = newest_us, last_us, last
        m_learnt[s], m_recent[s], m_surprise[s], m_spread[s] = learnt, recent, surprise, spread
        m_former[s], m_former_mean[s], m_former_std[s] = former, former_mean, former_std
        m_baseline[s, :accepted] = baseline[end - accepted : end]
        m_pending[s, :refused] = pending[:refused]
