"""Tables of what lasts, or grows, for docs/BENCHMARKS.md: a year, soaks, a batch, more processes, Ray, viewers."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

Result = dict[str, Any]


def table(head: str, rows: list[list[str]]) -> str:
    """As Markdown has it."""
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def history(result: Result) -> dict[str, str]:
    """Of a cycle on a day's and a year's lake; of the dashboard's questions; of the tables."""
    steps = [
        [step["step"], *(f"{step[f'{what}_{lake}']:{form}}" for what, form in (("cpu_s", ".2f"), ("wall_s", ".2f"),
         ("s3_requests", ",.0f")) for lake in ("day", "year")), *(f"{step[f'{what}_ratio']:.2f}"
         for what in ("cpu_s", "wall_s", "s3_requests"))]
        for step in result["steps"]
    ]  # fmt: skip
    asked = [
        [each["question"], f"{each['first_ms']:,}", "" if each["again_ms"] is None else f"{each['again_ms']:,}"]
        for each in result["questions"]
    ]
    tables = [
        [f"`{each['table']}`", *(f"{each[name]:,}" for name in ("rows", "files", "most_files_a_day", "mb"))]
        for each in result["tables"] if each["rows"]
    ]  # fmt: skip
    return {
        "history_steps": table(
            "| CPU s, a day | a year | s, a day | a year | S3 requests, a day | a year "
            "| ratio of CPU | of time | of requests",
            steps,
        ),
        "history_questions": table("| ms the first time | ms again", asked),
        "history_tables": table("| rows | files | most files a day | MB", tables),
        **{f"history_{name}": f"{result[name]:,}" for name in ("days", "sensors", "new", "rounds", "rows")},
    }


def commits(result: Result) -> dict[str, str]:
    """Of thousands of commits with upkeep beside them."""
    told = {
        "commits of Bronze": f"{result['commits']:,}, in {result['seconds']:,} s",
        "rows of Bronze, of Silver, counted by Gold": ", ".join(
            f"{result['books'][name]:,}" for name in ("bronze", "silver", "gold")
        ),
        "a commit, ms: at first, at last": f"{result['commit_ms_first']:g}, {result['commit_ms_last']:g}",
        "compactions, files rewritten": f"{result['compactions']:,}, {result['compacted_files']:,}",
        "a compaction, s: median, longest": "{median:g}, {longest:g}".format(**result["compaction_s"]),
        "files vacuumed, entries of logs removed": f"{result['vacuumed_files']:,}, {result['log_entries_gone']:,}",
        "tables that were left alone then, for a reader that was behind": f"{result['tables_kept_for_readers']}",
        "commits refused, and made at the next attempt": f"{result['refused_and_tried_again']}",
        "errors that came out": f"{result['failed']}",
        "MiB of the process: after the first third, at the end": f"{result['warm_mib']}, {result['end_mib']}",
        "slope after the first third, MiB for 1,000 commits": f"{result['mib_a_1000_commits']:g}",
        "open files: after the first third, at the end": f"{result['open_files_warm']}, {result['open_files_end']}",
        "most files in a day, of any table": f"{max(each['files_a_day'] for each in result['most'].values())}",
        "most entries in a log": f"{max(each['log_entries'] for each in result['most'].values())}",
    }
    return {"soak_commits": table(" | ", [list(each) for each in told.items()])}


def soak(result: Result) -> dict[str, str]:
    """Of all stages for a while."""
    processes = [
        [f"`{each['process']}`", *(f"{each[name]:,}" for name in ("warm_mib", "end_mib", "peak_mib", "mib_an_hour",
                                                                 "files_warm", "files_end"))]
        for each in result["processes"]
    ]  # fmt: skip
    tables = [
        [
            f"`{each['table']}`",
            *(f"{each[name]:,}" for name in ("version", "log_entries", "files", "peak_files_a_day")),
        ]
        for each in result["tables"]
    ]
    again = ", ".join(f"{each['stage']} (minute {each['minute']:g})" for each in result["started_again"]) or "none"
    refused = ", ".join(f"{name} {count:g}" for name, count in result["refused_and_tried_again"].items()) or "none"
    upkeep = "; ".join(
        f"`{name}` {each['runs']} times, {each['cpu_s']:g} s of CPU in all, {each['longest_s']:g} s at most"
        for name, each in result["upkeep"].items()
    )
    told = {
        "raw messages": f"{result['books']['raw']:,}",
        "Bronze + dead letters": f"{result['books']['bronze']:,} + {result['books']['dead']:,}",
        "Silver + copies + quarantine": " + ".join(
            f"{result['books'][name]:,}" for name in ("silver", "duplicates", "quarantine")
        ),
        "counted by Gold, by the warehouse": f"{result['books']['gold']:,}, {result['books']['warehouse']:,}",
        "commands and viewers that failed": "; ".join(result["failed"]) or "none",
        "stages that ended by themselves, and were started again": again,
        "refused or out of reach, and tried again (counters at the end)": refused,
        "upkeep": upkeep,
        "the dashboard's updates, p95 ms": f"{result['dashboard_p95_ms']:,}",
        "S3 requests a second, of everything": f"{result['s3_requests_a_second']:g}",
    }
    return {
        "soak_processes": table(
            "| MiB after the first third | at the end | at most | slope, MiB an hour | open files then | at the end",
            processes,
        ),
        "soak_tables": table("| version | log entries | files | most files in a day, ever", tables),
        "soak_books": table(" | ", [list(each) for each in told.items()]),
        **{f"soak_{name}": f"{result[name]:,g}" for name in ("minutes", "rate", "sensors")},
    }


_WAYS = {"silver, gold": "`silver`, then `gold`", "Polars": "Polars, eager", "DuckDB": "DuckDB"}


def batch(name: str, result: Result) -> dict[str, str]:
    """Of all of Bronze at once."""
    lines = []
    for way, runs in result["ways"].items():
        seconds = [run["wall_s"] for run in runs]
        medians = {what: statistics.median(run[what] for run in runs) for what in ("cpu_s", "peak_mib", "mb")}
        lines.append(
            [
                _WAYS[way],
                f"{statistics.median(seconds):.1f}",
                f"{min(seconds):.1f} - {max(seconds):.1f}",
                f"{medians['cpu_s']:.1f}",
                f"{medians['peak_mib']:,.0f}",
                f"{medians['mb']:,.0f}",
            ]
        )
    told = {f"{name}_{what}": f"{result[what]:,}" for what in ("readings", "repetitions", "bronze_mb", "max_rows")}
    counted = {f"{name}_{what}": f"{count:,}" for what, count in result["counted"].items()}
    return {name: table("| s | range | CPU s | peak MiB | MB written", lines), **told, **counted}


def scale(result: Result) -> dict[str, str]:
    """Of more partitions and processes."""
    lines = [
        [
            str(line["count"]),
            *(f"{line[f'{stage}_{what}']:{form}}" for stage in ("ingest", "detect")
              for what, form in (("per_s", ","), ("efficiency", ".2f"), ("cpu_us", ".2f"))),
            f"{line['books']['bronze']:,} + {line['books']['dead']:,}",
            f"{line['announced']:,}",
        ]
        for line in result["lines"]
    ]  # fmt: skip
    head = "partitions and processes | ingest: messages/s | efficiency | CPU us a message | detect: readings/s"
    return {
        "scale": table(f"{head} | efficiency | CPU us a reading | Bronze + dead letters | anomalies", lines),
        "scale_readings": f"{result['readings']:,}",
        "scale_cores": str(result["cores"]),
    }


def engine(result: Result) -> dict[str, str]:
    """Of a rebuild in parts."""
    lines = [
        [way, *(f"{seconds[layer]:.1f}" for layer in ("silver", "gold"))]
        for way, seconds in result["seconds"].items()
    ]
    lines.append(["efficiency on 2", *(f"{result['efficiency'][layer]:.2f}" for layer in ("silver", "gold"))])
    return {"engine": table("| Silver, s | Gold, s", lines), "engine_readings": f"{result['readings']:,}"}


def dashboard(result: Result) -> dict[str, str]:
    """Of viewers: how long updates took, and memory."""
    sessions = result["sessions_mb"]
    told = {
        f"updates of {result['updates']:,}, ms: p50, p95, p99, longest": ", ".join(
            f"{result['update_ms'][name]:,}" for name in ("p50", "p95", "p99", "p100")
        ),
        "messages to viewers": f"{result['messages']:,}",
        "of a core": f"{result['cores']:.0%}",
        "memory, MB: at first, median of the middle and of the last third": ", ".join(
            f"{value:,}" for value in result["memory_mb"].values()
        ),
        "its slope after the first third, MB an hour": f"{result['memory_mb_an_hour']:,}",
        "memory, MB, by the minute": ", ".join(f"{value:,}" for value in result["memory_mb_by_minute"]),
        f"memory, MB, {sessions['opened']} sessions opened and closed: before, with them, after": ", ".join(
            f"{sessions[name]:,}" for name in ("before", "with them", "after")
        ),
    }
    named = {f"dashboard_{name}": f"{result[name]:g}" for name in ("viewers", "minutes")}
    return {"dashboard": table(" | ", [list(each) for each in told.items()]), **named}


def dashboard_year(result: Result) -> dict[str, str]:
    """Of a browser that opens pages on a year of Gold."""
    rows = [
        [f"`{page}`", visit, *(f"{figure(took):.2f}" for figure in (statistics.median, min, max))]
        for page, visits in result["seconds"].items()
        for visit, took in visits.items()
    ]
    named = {f"dashboard_{name}": f"{result[name]:,}" for name in ("sensors", "days")}
    return {"dashboard_year": table("page | visit | median, s | shortest | longest", rows), **named}


def monitor(result: Result) -> dict[str, str]:
    """Of a monitor that runs."""
    told = {
        "of a core": f"{result['share']:.2%}",
        "CPU ms a round": f"{result['cpu_ms_a_round']:,.0f}",
        "samples that it serves": f"{result['samples']:,}",
        "MiB": f"{result['memory_mib']:,}",
    }
    named = {
        f"monitor_{name}": f"{result[name]:,g}" for name in ("partitions", "sensors", "rate", "seconds", "interval_s")
    }
    return {"monitor": table(" | ", [list(each) for each in told.items()]), **named}


def tables(results: dict[str, Result]) -> dict[str, str]:
    """All of those that there are results of."""
    found: dict[str, str] = {}
    for name, made in MADE.items():
        if name in results:
            found |= made(results[name])
    return found


MADE: dict[str, Callable[[Result], dict[str, str]]] = {
    "history": history,
    "soak_commits": commits,
    "soak": soak,
    "batch": partial(batch, "batch"),
    "backlog": partial(batch, "backlog"),
    "scale": scale,
    "engine": engine,
    "dashboard": dashboard,
    "dashboard_year": dashboard_year,
    "monitor": monitor,
}
