"""May the contracts change like this? What is new is held against the last release, as schemas/released/ keeps it.

The release before has written data, and runs beside this one while it is rolled out. So what it wrote must keep the
new contract, and what it reads must still be there: a column, table or reason that is gone, another type, unit, key
or partition, and a stricter check are breaking. `python -m contracts.compatibility` tells what changed.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

RELEASED = Path(__file__).parent.parent / "schemas" / "released"
"""A file for each release: what contracts.derive.contract() said then."""

Said = Mapping[str, Any]


class Change(NamedTuple):
    """One difference between two contracts, in words."""

    breaking: bool
    what: str


def last_release() -> Path:
    """The file of the newest release."""
    return max(RELEASED.glob("*.json"), key=lambda path: tuple(map(int, path.stem.split("."))))


def changes(before: Said, now: Said) -> list[Change]:
    """How a contract (contracts.derive.contract) differs from an earlier one, the breaking changes first.

    A check that is looser, or gone, does not break; nor does a description. What a check of our own says is compared
    by its text.
    """
    found = [
        *_tables(before["tables"], now["tables"]),
        *_reading(before["reading"], now["reading"]),
        *_anomaly(before["anomaly"], now["anomaly"]),
        *_list("dead letter reason", before["dead_letter_reasons"], now["dead_letter_reasons"]),
        *_list("dead letter header", before["dead_letter_headers"], now["dead_letter_headers"]),
    ]
    found += _version(before, now)
    return sorted(found, key=lambda change: not change.breaking)


def _version(before: Said, now: Said) -> Iterator[Change]:
    """A layout has a number, by which readers and writers of two releases know each other's tables."""
    old, new = before["schema_version"], now["schema_version"]
    tables = [(before["tables"][path], table) for path, table in now["tables"].items() if path in before["tables"]]
    grown = any(after["columns"].keys() - table["columns"].keys() for table, after in tables)
    if new not in (old, old + 1):
        yield Change(breaking=True, what=f"SCHEMA_VERSION was {old}: it can be that, or {old + 1}, not {new}")
    elif grown and new == old:
        yield Change(breaking=True, what=f"tables have new columns, but SCHEMA_VERSION is still {old}")


def _tables(before: Said, now: Said) -> Iterator[Change]:
    yield from _list("table", before, now)
    for path in sorted(before.keys() & now.keys()):
        old, new = before[path], now[path]
        for part in ("key", "partition_by"):
            if old[part] != new[part]:
                yield Change(breaking=True, what=f"{path}: {part} was {old[part]}, is {new[part]}")
        for name in sorted(old["columns"].keys() - new["columns"].keys()):
            yield Change(breaking=True, what=f"{path}.{name} is gone")
        for name in sorted(new["columns"].keys() - old["columns"].keys()):
            nullable = new["columns"][name]["nullable"]
            why = "" if nullable else " and may not be null, but rows from before have none"
            yield Change(not nullable, f"{path}.{name} is new{why}")
        for name in sorted(old["columns"].keys() & new["columns"].keys()):
            yield from _column(f"{path}.{name}", old["columns"][name], new["columns"][name])
        yield from _checks(path, old["row_checks"], new["row_checks"])


def _column(where: str, before: Said, now: Said) -> Iterator[Change]:
    for part in ("type", "unit"):
        if before[part] != now[part]:
            yield Change(breaking=True, what=f"{where}: {part} was {before[part]}, is {now[part]}")
    if before["nullable"] and not now["nullable"]:
        yield Change(breaking=True, what=f"{where} may no longer be null, but rows from before may be")
    if now["nullable"] and not before["nullable"]:
        yield Change(breaking=True, what=f"{where} may now be null, which readers from before do not expect")
    yield from _checks(where, before["checks"], now["checks"])


_LOW = {"greater_than": 1, "greater_than_or_equal_to": 0}
_HIGH = {"less_than": -1, "less_than_or_equal_to": 0}


def _checks(where: str, before: Said, now: Said) -> Iterator[Change]:
    limits = [
        (_limit(before, _LOW, "min_value", max), _limit(now, _LOW, "min_value", max), 1, "lower bound"),
        (_limit(before, _HIGH, "max_value", min), _limit(now, _HIGH, "max_value", min), -1, "upper bound"),
    ]
    for old, new, sign, what in limits:
        if old != new:
            yield _bound(where, what, old, new, sign)
    bounds = _LOW.keys() | _HIGH.keys()
    for name in sorted((before.keys() | now.keys()) - bounds):
        old, new = before.get(name), now.get(name)
        if old is None:
            yield Change(breaking=True, what=f"{where}: the check {name} is new")
        elif new is None:
            yield Change(breaking=False, what=f"{where}: the check {name} is gone")
        elif name == "str_length":
            yield from _numbers(where, old, new, low="min_value", high="max_value")
        elif name == "isin":
            for value in sorted(set(old["allowed_values"]) ^ set(new["allowed_values"])):
                gone = value in old["allowed_values"]
                yield Change(gone, f"{where}: the value {value} is {'no longer' if gone else 'now'} allowed")
        elif old != new:
            yield Change(breaking=True, what=f"{where}: the check {name} said {old}, says {new}")


def _limit(checks: Said, kinds: Mapping[str, int], key: str, tightest: Any) -> Any:
    """(bound, whether it is itself excluded) of the tightest of these checks; None without any."""
    return tightest(((checks[name][key], side) for name, side in kinds.items() if name in checks), default=None)


def _bound(where: str, what: str, old: Any, new: Any, sign: int) -> Change:
    stricter = new is not None and (old is None or [sign * part for part in new] > [sign * part for part in old])
    before, after = (None if each is None else f"{each[0]}{' (excluded)' * bool(each[1])}" for each in (old, new))
    return Change(stricter, f"{where}: the {what} was {before}, is {after}")


def _numbers(where: str, before: Said, now: Said, *, low: str, high: str) -> Iterator[Change]:
    """Least and greatest allowed number; None or absent: any."""
    for name, sign in ((low, 1), (high, -1)):
        old, new = before.get(name), now.get(name)
        if old != new:
            stricter = new is not None and (old is None or sign * new > sign * old)
            yield Change(stricter, f"{where}: {name} was {old}, is {new}")


def _reading(before: Said, now: Said) -> Iterator[Change]:
    """What devices send: they go on as they were."""
    for name in sorted(set(now["required"]) - set(before["required"])):
        yield Change(breaking=True, what=f"reading.{name} is required now, but devices do not send it")
    yield from _list("field of a reading", before["properties"], now["properties"])
    for name in sorted(before["properties"].keys() & now["properties"].keys()):
        old, new, where = before["properties"][name], now["properties"][name], f"reading.{name}"
        yield from _numbers(where, old, new, low="minLength", high="maxLength")
        yield from _numbers(where, old, new, low="minimum", high="maximum")
        for part in ("type", "format", "pattern"):
            if old.get(part) != new.get(part):
                yield Change(part in new, f"{where}: {part} was {old.get(part)}, is {new.get(part)}")


def _anomaly(before: Said, now: Said) -> Iterator[Change]:
    """What others read: every field stays as it is."""
    yield from _list("field of an anomaly", before["properties"], now["properties"])
    for name in sorted(before["properties"].keys() & now["properties"].keys()):
        old, new = before["properties"][name], now["properties"][name]
        if old != new:
            yield Change(breaking=True, what=f"anomaly.{name} was {old}, is {new}")


def _list(kind: str, before: Any, now: Any) -> Iterator[Change]:
    for name in sorted(set(before) - set(now)):
        yield Change(breaking=True, what=f"the {kind} {name} is gone")
    for name in sorted(set(now) - set(before)):
        yield Change(breaking=False, what=f"the {kind} {name} is new")


def main() -> int:
    """Print what changed since the last release; 1 where something of it is breaking."""
    from contracts.derive import contract

    path = last_release()
    found = changes(json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(contract())))
    for change in found:
        print(f"{'BREAKING' if change.breaking else 'additive'}  {change.what}")
    print(f"{len(found)} changes since {path.stem}, {sum(change.breaking for change in found)} of them breaking")
    return int(any(change.breaking for change in found))


if __name__ == "__main__":
    sys.exit(main())
