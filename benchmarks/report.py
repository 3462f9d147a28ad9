"""docs/BENCHMARKS.md and its plots, docs/SIZING.md and a table of docs/ARCHITECTURE.md, from page.md, sizing.md and
the results that are checked in: `make bench-page`.
"""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

from benchmarks import lasting, sizing
from benchmarks.results import KEPT
from benchmarks.svg import Bar, bars

DOCS = Path(__file__).parent.parent / "docs"
PAGE = "BENCHMARKS.md"
TEMPLATE = Path(__file__).with_name("page.md")
SIZING = "SIZING.md"
SIZING_TEMPLATE = Path(__file__).with_name("sizing.md")
ON_PAPER = "ARCHITECTURE.md"
MARKS = "<!-- on paper: made by `make bench-page` -->", "<!-- on paper: end -->"
"""Around what is replaced in a document that is otherwise written by hand."""

_STAGES = {
    "simulate": "`simulate`",
    "ingest": "`ingest`, exactly once",
    "bronze": "`bronze`, exactly once",
    "detect": "`detect`, exactly once",
    "silver": "`silver`",
    "gold": "`gold`",
    "load": "`load`",
    "floor": "the floor, at least once",
    "plain Quix to Parquet": "plain Quix to Parquet, at least once",
    "plain Quix, windows": "plain Quix, scores and windows, at least once",
}
_WAYS = {
    "raw JSON to Bronze": (("ingest", "bronze"), ("floor", "plain Quix to Parquet")),
    "raw JSON to scores and windows": (("ingest", "detect"), ("plain Quix, windows",)),
}
_LAYERS = {
    "anomaly": "anomaly topic",
    "bronze": "Bronze",
    "silver": "Silver",
    "gold": "Gold",
    "warehouse": "warehouse",
}
_PARITY = {
    "silver": "readings in Silver",
    "flagged": "flagged in Silver",
    "missing": "of them not announced just so",
    "surplus": "announced, but not so in Silver",
    "windows": "windows that detect made final and that were compared",
    "wrong_windows": "of them wrong",
    "late": "readings that came after their window was final: in Gold only",
    "late_windows": "windows of which Gold has more readings, for that reason",
    "far_copies": "copies further apart than the {identities} readings that detect remembers: may differ",
    "exempt": "readings of those sensors from there on: not compared",
    "seconds": "seconds, all in all",
}

_LEAST_US = 0.05
"""Less than that is what two starts differ by."""

Result = dict[str, Any]


def pages(template: str, results: dict[str, Result]) -> dict[str, str]:
    """Name in docs/ and text: of the page, and of its plots.

    Raises KeyError where the template asks for what the results don't have.
    """
    stages, latency = results["stages"], results["latency"]
    tables = {f"{name}_measured": _measured(result) for name, result in results.items()}
    tables |= {f"stages_{corpus}": _stages(lines, stages["readings"]) for corpus, lines in stages["corpora"].items()}
    tables |= {f"ways_{corpus}": _ways(lines) for corpus, lines in stages["corpora"].items()}
    tables |= {f"stages_{name}": f"{stages[name]:,}" for name in ("readings", "repetitions")}
    tables |= {name: _latency(result) for name, result in results.items() if name.startswith("latency")}
    tables |= {"detect": _detect(results["detect"]), "parity": _parity(results["parity"])}
    peaks = {f"{name}_peaks": _peaks(result["peaks"]) for name, result in results.items() if "peaks" in result}
    tables |= peaks
    tables |= lasting.tables(results)
    tables |= {f"parity_{name}": f"{results['parity'][name]:,}" for name in ("readings", "kills")}
    plots = {f"benchmarks-{corpus}.svg": _plotted(lines) for corpus, lines in stages["corpora"].items()}
    plots["benchmarks-latency.svg"] = bars(
        "From the intended sending to readable: median, and a line to p99",
        "ms",
        [
            Bar(f"{_LAYERS[line['layer']]}, {line['rate']:,.0f}/s", line["p50"], line["p50"], line["p99"])
            for line in latency["lines"]
        ],
        log=True,
    )
    return {PAGE: Template(_kept(template, {*results, *peaks})).substitute(tables), **plots}


def _kept(template: str, names: set[str]) -> str:
    """Without the parts `<!-- of NAME -->` to `<!-- end of NAME -->` that there is no result of."""
    part = re.compile(r"<!-- of (\w+) -->\n(.*?)<!-- end of \1 -->\n", re.DOTALL)
    return part.sub(lambda found: found[2] if found[1] in names else "", template)


def _measured(result: Result) -> str:
    machine, versions = result["machine"], dict(result["versions"])
    broker = versions.pop("broker")
    return (
        f"Measured {result['at']}: {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, "
        f"{machine['system']}, load {machine['load_1m']} at the end; {broker}; "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}."
    )


def _table(head: str, rows: Iterator[list[str]]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def _median(runs: list[dict[str, float]], what: str) -> float:
    return statistics.median(run[what] for run in runs)


def _stages(lines: dict[str, list[dict[str, float]]], readings: int) -> str:
    def rows() -> Iterator[list[str]]:
        for name, runs in lines.items():
            costs, million = [run["cpu_us"] for run in runs], 1e6 / readings
            cost = statistics.median(costs)
            yield [
                _STAGES[name],
                f"{cost:.2f}",
                f"{min(costs):.2f} - {max(costs):.2f}",
                f"{1e6 / cost:,.0f}" if cost >= _LEAST_US else "-",
                f"{_median(runs, 'peak_mib'):,.0f}",
                f"{_median(runs, 'cold_start_s'):.1f}",
                f"{_median(runs, 's3_requests') * million:,.0f}",
                f"{_median(runs, 's3_bytes') * million / 1e6:,.0f}",
            ]

    head = "| CPU us a message | range | messages a CPU second | peak MiB | cold start s"
    return _table(f"{head} | S3 requests a million | S3 MB a million", rows())


def _ways(lines: dict[str, list[dict[str, float]]]) -> str:
    def rows() -> Iterator[list[str]]:
        for way, (ours, others) in _WAYS.items():
            cost = sum(_median(lines[name], "cpu_us") for name in ours)
            for other in others:
                its = _median(lines[other], "cpu_us")
                yield [way, f"{cost:.2f}", other, f"{its:.2f}", f"{its / cost:.1f}"]

    return _table("way | ours: CPU us a message | beside it | CPU us a message | ratio", rows())


def _plotted(lines: dict[str, list[dict[str, float]]]) -> str:
    rows = []
    for ours, others in _WAYS.values():
        for names in (ours, *((other,) for other in others)):
            sums = [sum(run["cpu_us"] for run in turn) for turn in zip(*(lines[name] for name in names), strict=True)]
            rows.append(Bar(" + ".join(names), statistics.median(sums), min(sums), max(sums)))
    return bars("CPU a raw message, all processes of the way", "us", rows)


def _latency(result: Result) -> str:
    rows = (
        [f"{line['rate']:,.0f}", _LAYERS[line["layer"]], *(f"{line[name]:,.0f}" for name in _PERCENTILES)]
        for line in result["lines"]
    )
    return _table("events/s | readable in | " + " | ".join(f"{name} ms" for name in _PERCENTILES), rows)


def _peaks(peaks: list[dict[str, Any]]) -> str:
    """A line a stage, a column a rate."""
    rates = list(dict.fromkeys(each["rate"] for each in peaks))
    mib = {(each["stage"], each["rate"]): f"{each['mib']:,} ({each['mapped_mib']:,})" for each in peaks}
    rows = (
        [f"`{stage}`", *(mib[stage, rate] for rate in rates)]
        for stage in dict.fromkeys(each["stage"] for each in peaks)
    )
    return _table("| " + " | ".join(f"{rate:,.0f}/s" for rate in rates), rows)


_PERCENTILES = ("p50", "p95", "p99", "max")


def _detect(result: Result) -> str:
    rows = (
        [
            case["case"],
            f"{case['readings_per_s']:,}",
            f"{case['cpu_us_per_reading']:.2f}",
            f"{case['peak_mib']:,}",
            f"{case['mib_per_1000_sensors']:.2f}",
            f"{case['micro_batches']:,}",
            f"{case['cold_start_s']:.1f}",
        ]
        for case in result["cases"]
    )
    return _table(
        "| readings/s | CPU us a reading | peak MiB | MiB per 1,000 sensors | micro-batches | start and stop s", rows
    )


def _parity(result: Result) -> str:
    return _table(" | ", ([what.format(**result), f"{result[name]:,}"] for name, what in _PARITY.items()))


def kept() -> dict[str, str]:
    """What the template and the results that are checked in give."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))}
    figures = sizing.figures(sizing.Measured.of(results))
    return pages(TEMPLATE.read_text(), results) | {
        SIZING: Template(SIZING_TEMPLATE.read_text()).substitute(figures),
        ON_PAPER: between((DOCS / ON_PAPER).read_text(), figures["paper"]),
    }


def between(text: str, made: str) -> str:
    """A document with this between its MARKS. Raises ValueError where it has none."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{made}\n{MARKS[1]}{after}"


def main() -> None:
    """Write them."""
    for name, text in kept().items():
        (DOCS / name).write_text(text)
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
