"""`make faults`: a seeded schedule of faults against a whole pipeline, each round audited; a table at the end.

The seed decides the feed, the faults of each round and their order (threads and other programs decide the rest).
FAULT_SEED and FAULT_ROUNDS set it; `--quick` is one short round.
"""

import argparse
import os
import random
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import oracle
from tests.faults.injections import FAULTS, SERVICES, Fault
from tests.faults.scenarios import RETENTION, Scenario
from tests.faults.twin import differences
from tests.faults.upheavals import UPHEAVALS
from tests.faults.world import Services, World, live
from tests.oracle import Findings

RATE = 60.0
"""Messages a second of the feed."""

SCENARIOS: dict[str, Callable[[World], Scenario]] = {**RETENTION, **UPHEAVALS}
"""Each is told once, in a pipeline of its own."""


@dataclass
class Line:
    """What is known of one fault, over all rounds."""

    injected: int = 0
    rows_in: int = 0
    rows_out: int = 0
    lost: int = 0
    twice: int = 0


@dataclass
class Tally:
    """Of a whole run."""

    lines: dict[str, Line] = field(default_factory=lambda: defaultdict(Line))
    standstills: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    """Ends of stages in an error that nothing injected explains; they came back."""

    def add(self, faults: Counter[str], rows_in: int, rows_out: int, findings: Findings) -> None:
        """A round: its rows count for each of its faults, since any of them may be to blame."""
        for name, times in faults.items():
            line = self.lines[name]
            line.injected += times
            line.rows_in += rows_in
            line.rows_out += rows_out
            line.lost += len(findings.lost)
            line.twice += len(findings.twice)

    def table(self) -> Iterator[str]:
        """As Markdown."""
        yield "| fault | injected | rows in | rows out | lost | duplicated |"
        yield "|---|---:|---:|---:|---:|---:|"
        for name, line in self.lines.items():
            yield (
                f"| {name} | {line.injected} | {line.rows_in:,} | {line.rows_out:,} | {line.lost} | {line.twice} |"
            )


def main() -> int:
    """0 where nothing was lost, doubled or wrong, and (but for `--quick`) no stage ended in an error by itself."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("FAULT_SEED") or random.randrange(10**6)))
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("FAULT_ROUNDS") or 5))
    parser.add_argument("--faults", type=int, default=45, help="in a round")
    parser.add_argument("--only", help="faults and scenarios whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="one round of 40 faults")
    parser.add_argument("--directory", type=Path, help="keep logs and data there")
    told = parser.parse_args()
    rounds, faults = (1, 40) if told.quick else (told.rounds, told.faults)
    say(f"seed {told.seed}: {rounds} rounds of {faults} faults; again with FAULT_SEED={told.seed}")
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        directory = told.directory or Path(scratch)
        with Services(directory) as services:
            chosen = [each for each in FAULTS if (told.only or "") in each.name]
            deck = Deck(chosen, random.Random(told.seed))
            for number in range(rounds if chosen else 0):
                seed = told.seed * 1000 + number
                play(services, directory / f"round-{number}", seed, deck.draw(faults), tally)
            for name in [name for name in SCENARIOS if (told.only or "") in name and not told.quick]:
                tell(services, directory, told.seed, name, tally)
    print("\n".join(["", *tally.table(), ""]))
    injected = sum(line.injected for line in tally.lines.values())
    print(f"seed {told.seed}: {injected} faults injected")
    if tally.standstills:
        print(
            "an open transaction kept readers waiting, restart included, for "
            + ", ".join(f"{each:.1f}" for each in tally.standstills)
            + " s"
        )
    for failure in tally.failures:
        print(f"FAILED: {failure}")
    for end in tally.strange:
        print(f"STRANGE: {end}")
    return 1 if tally.failures or (tally.strange and not told.quick) else 0


def say(text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Deck:
    """All faults, shuffled; when it is through, shuffled again."""

    def __init__(self, faults: Sequence[Fault], dice: random.Random) -> None:
        self._faults, self._dice = list(faults), dice
        self._left: list[Fault] = []

    def draw(self, count: int) -> list[Fault]:
        """The next ones."""
        drawn: list[Fault] = []
        while len(drawn) < count:
            if not self._left:
                self._left = self._dice.sample(self._faults, len(self._faults))
            drawn.append(self._left.pop())
        return drawn


def play(services: Services, directory: Path, seed: int, faults: Sequence[Fault], tally: Tally) -> None:
    """A pipeline of its own: faults, then quiet until it has caught up by itself, then the audit."""
    clock = Clock()
    world = World(services, directory, seed, static=True, rate=RATE)
    injected: Counter[str] = Counter()
    failures: list[str] = []
    world.start()
    lanes = [
        threading.Thread(target=lane, args=[world, [f for f in faults if f.lane == name], seed, injected, failures])
        for name in sorted({fault.lane for fault in faults})
    ]
    try:
        world.supervise(lambda: not world.version("gold/daily_summary"))  # all stages are at work
        clock.took("to start")
        for each in lanes:
            each.start()
        world.supervise(lambda: any(each.is_alive() for each in lanes))
        services.requests.disarm()
        world.sender.finish()
        clock.took(f"for {sum(injected.values())} faults")
        try:
            live(world, World.balance)
        except AssertionError as error:
            failures.append(str(error))
        world.stop()
        clock.took("to catch up")
        evidence = world.evidence()
        findings = oracle.judge(evidence)
        clock.took("to judge")
        findings.wrong += differences(world)
        clock.took("for the twin")
    finally:
        world.kill()
        services.requests.disarm()
    rows_out = len(evidence.bronze) + len(evidence.dead)
    tally.add(injected, len(evidence.raw), rows_out, findings)
    tally.failures += [f"seed {seed}: {each}" for each in failures]
    tally.strange += [f"seed {seed}: {each}" for each in world.strange]
    if findings:
        tally.failures.append(f"seed {seed}: {findings}")
    say(f"round of seed {seed}: {len(evidence.raw)} rows in, {rows_out} out; {findings}; {clock}")
    for failure in [*failures, *world.strange]:
        say(failure)


def tell(services: Services, directory: Path, seed: int, name: str, tally: Tally) -> None:
    """A scenario, and what it found."""
    clock = Clock()
    world = World(services, directory / name.replace(" ", "-"), seed, rate=RATE, proxied=False)
    try:
        found = SCENARIOS[name](world)
    except Exception:  # noqa: BLE001 - it is told, and the others go on
        tally.failures.append(f"{name}: {traceback.format_exc(limit=-4)}")
        say(tally.failures[-1])
        return
    finally:
        world.kill()
    clock.took("in all")
    say(f"{name}: {found.rows_in} rows in, {found.rows_out} out; {clock}")
    tally.lines[name] = Line(1, found.rows_in, found.rows_out, found.lost, found.twice)
    tally.standstills += world.standstills
    if found.lost or found.twice or found.wrong:
        tally.failures.append(f"{name}: {found.lost} lost, {found.twice} twice, {found.wrong[:5]}")


class Clock:
    """Where the time of a round goes."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._said: list[str] = []

    def __str__(self) -> str:
        return ", ".join(self._said)

    def took(self, what: str) -> None:
        """So much since the last time."""
        now = time.monotonic()
        self._said.append(f"{now - self._last:.0f} s {what}")
        self._last = now


def lane(world: World, faults: Sequence[Fault], seed: int, injected: Counter[str], failures: list[str]) -> None:
    """One fault after the other."""
    dice = random.Random(f"{seed} {faults[0].lane}")
    for fault in faults:
        began = time.monotonic()
        try:
            fault.inject(world, dice)
        except Exception as error:  # noqa: BLE001 - it is told, and the others go on
            failures.append(f"{fault.name}: {error!r}\n{traceback.format_exc(limit=-3)}")
            say(failures[-1])
            world.restore([] if fault.lane == SERVICES else [fault.lane])
            continue
        injected[fault.name] += 1
        say(f"  {fault.name} ({time.monotonic() - began:.1f} s)")
