"""A Delta table read the plain way: its log says which Parquet files are part of it, and nothing else does.

It shares no code with the product, nor with delta-rs.
"""

import json
from datetime import date
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet


def s3(endpoint_url: str, access_key: str, secret_key: str) -> pa.fs.FileSystem:
    """An S3 store as a file system whose paths are bucket/key."""
    scheme, _, address = endpoint_url.partition("://")
    return pa.fs.S3FileSystem(
        access_key=access_key, secret_key=secret_key, endpoint_override=address, scheme=scheme, region="us-east-1"
    )


def files(store: pa.fs.FileSystem, path: str) -> dict[str, dict[str, date]]:
    """Paths of the Parquet files that the newest version of a table consists of, with the day of each by the name of
    its column; no table: none.

    Raises ValueError where the log has a gap or no beginning: the files could not be told then.
    """
    found = store.get_file_info(pa.fs.FileSelector(f"{path}/_delta_log", allow_not_found=True))
    commits = sorted(each.base_name for each in found if each.base_name.endswith(".json"))
    if commits != [f"{version:020}.json" for version in range(len(commits))]:
        raise ValueError(f"the log of {path} is not whole: {commits[:3]} ... {commits[-3:]}")
    live: dict[str, dict[str, date]] = {}
    for commit in commits:
        for line in _read(store, f"{path}/_delta_log/{commit}").splitlines():
            action = json.loads(line)
            if "add" in action:
                if action["add"].get("deletionVector"):
                    raise ValueError(f"{path}: this reader knows no deletion vectors")
                days = action["add"]["partitionValues"].items()
                live[action["add"]["path"]] = {column: date.fromisoformat(day) for column, day in days}
            elif "remove" in action:
                live.pop(action["remove"]["path"], None)
    return {f"{path}/{unquote(each)}": days for each, days in live.items()}


def rows(store: pa.fs.FileSystem, path: str) -> list[dict[str, object]]:
    """Every row of a table's newest version."""
    found: list[dict[str, object]] = []
    for each, days in files(store, path).items():
        with store.open_input_file(each) as source:
            found += [row | days for row in pa.parquet.ParquetFile(source).read().to_pylist()]
    return found


def _read(store: pa.fs.FileSystem, path: str) -> bytes:
    with store.open_input_stream(path) as source:
        return bytes(source.read())
