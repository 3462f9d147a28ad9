"""Rolling state of a job beside the lake's tables: one object per version, written once, never changed.

An object holds the values that changed with its version, where all others are, and the outbox: rows that a second
table is still to get. It is written *before* the commit that decides whether it counts, and that commit carries its
`attempt`; so a crash leaves an orphan at most, and an orphan is never mistaken for the state.

    magic · header length · header checksum · header (JSON) · values ... · outbox
"""

import json
import re
import secrets
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from zlib import crc32

from fsspec import AbstractFileSystem

from pipeline.core.rolling import State
from pipeline.lake.delta import translated
from pipeline.versions import require

FORMAT = 1

MAX_VALUE = 512 * 1024
"""Bytes of a bucket."""

_MAX_BUCKETS = 65_536

_MAGIC = b"IOTSTATE"
_PREFIX = struct.Struct("<8sII")
_NAME = re.compile(r"(\d{20})-[0-9a-f]{16}\.state")

_WASTE = 4
"""Objects that are this many times larger than the values that still count in them are worth a full rewrite."""


@dataclass(frozen=True)
class Place:
    """Where a value is: `length` bytes from `offset` of an object's body, with their CRC-32."""

    name: str
    offset: int
    length: int
    checksum: int


@dataclass(frozen=True)
class Manifest:
    """One version of the state: `buckets` is the number that sensors are spread over, `places` where the values are,
    `sizes` the bytes of each object that is named.
    """

    version: int
    attempt: int
    buckets: int
    places: Mapping[int, Place]
    sizes: Mapping[str, int]
    outbox: Place

    @cached_property
    def names(self) -> frozenset[str]:
        """Objects without which this version cannot be read."""
        return frozenset({place.name for place in self.places.values()} | {self.outbox.name})

    @property
    def wasteful(self) -> bool:
        """Most of the bytes kept are superseded: let the next version write everything."""
        return sum(self.sizes.values()) > _WASTE * sum(place.length for place in self.places.values()) + 65_536


@dataclass(frozen=True)
class Snapshot:
    """A version of the state with its bytes: `values` by bucket."""

    manifest: Manifest
    values: Mapping[int, bytes]
    outbox: bytes


class StateStore:
    """The objects below one directory. Errors of the store come as `pipeline.lake.delta.translated` says."""

    def __init__(self, files: AbstractFileSystem, root: str) -> None:
        self._files = files
        self._root = root.rstrip("/")

    def put(
        self,
        version: int,
        buckets: int,
        values: Mapping[int, bytes],
        outbox: bytes,
        base: Manifest | None,
        attempt: int | None = None,
    ) -> Manifest:
        """Write a version: `values` of the buckets that changed since `base`, or of all of them where it is None.

        `attempt` is given to put back what was lost of a version that is committed, or to know it beforehand.
        """
        attempt = secrets.randbits(62) if attempt is None else attempt
        name = _name(version, attempt)
        body = [*values.values(), outbox]
        places = _placed(name, [*values, -1], body)
        last = places.pop(-1)
        everywhere = {**(base.places if base else {}), **places}
        named = {place.name for place in everywhere.values()} | {name}
        sizes = {name: sum(map(len, body))}
        sizes |= {other: size for other, size in base.sizes.items() if other in named} if base else {}
        manifest = Manifest(version, attempt, buckets, everywhere, sizes, last)
        with translated(f"write the state {self._path(name)}"):
            self._files.pipe_file(self._path(name), b"".join([_header(manifest), *body]))
        return manifest

    def load(self, version: int, attempt: int) -> Snapshot | None:
        """Read a version back; None where an object is missing or damaged.

        Raises SchemaTooNew where a newer pipeline wrote it, SchemaTooOld where one before the last did.
        """
        name = _name(version, attempt)
        header, body = _parts(self._read(name))
        if not header:
            return None
        manifest = _manifest(name, header)
        bodies = {name: body} | {other: _parts(self._read(other))[1] for other in manifest.names - {name}}
        values = {bucket: _taken(bodies, place) for bucket, place in manifest.places.items()}
        outbox = _taken(bodies, manifest.outbox)
        if outbox is None or None in values.values():
            return None
        return Snapshot(manifest, {bucket: value for bucket, value in values.items() if value is not None}, outbox)

    def outbox(self, version: int, attempt: int) -> bytes | None:
        """The outbox alone of a version; None where its object is missing or damaged."""
        name = _name(version, attempt)
        header, body = _parts(self._read(name))
        return _taken({name: body}, _manifest(name, header).outbox) if header else None

    def drop(self, names: frozenset[str]) -> None:
        """Delete these objects, where they are still there."""
        with translated(f"delete old states below {self._root}"):
            for name in names:
                try:
                    self._files.rm_file(self._path(name))
                except FileNotFoundError:
                    continue

    def orphans(self, manifest: Manifest) -> frozenset[str]:
        """Objects of older versions that this one does not name: superseded, or of attempts that failed.

        Those of later versions are left alone, and of this very one: they may belong to another writer's next commit.
        """
        with translated(f"list {self._root}"):
            try:
                paths = self._files.ls(self._root, detail=False)
            except FileNotFoundError:
                return frozenset()
        found = {path.rsplit("/", 1)[-1] for path in paths}
        past = {name for name in found if (match := _NAME.fullmatch(name)) and int(match[1]) < manifest.version}
        return frozenset(past - manifest.names)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _read(self, name: str) -> bytes | None:
        with translated(f"read the state {self._path(name)}"):
            try:
                data: bytes = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None
        return data


def buckets_of(state: State, changed: Collection[str], buckets: int) -> tuple[int, dict[int, bytes]]:
    """The state's sensors spread over buckets: how many buckets there are, a power of two, and the bytes of those
    that hold one of the `changed` sensors.

    Where a value would not stay under MAX_VALUE, the number of buckets is doubled and all of them are returned.
    """
    while True:
        wanted = frozenset(bucket_of(sensor, buckets) for sensor in changed)
        members = [sensor for sensor in state.sensor_ids if bucket_of(sensor, buckets) in wanted]
        values = {bucket: part.to_bytes() for bucket, part in _divided(state.select(members), wanted, buckets)}
        if buckets >= _MAX_BUCKETS or all(len(value) < MAX_VALUE for value in values.values()):
            return buckets, values
        buckets, changed = 2 * buckets, state.sensor_ids


def _divided(
    state: State, wanted: frozenset[int], buckets: int, bucket: int = 0, step: int = 1
) -> Iterator[tuple[int, State]]:
    """Halve the state until each part is one of the wanted buckets: a pass for each halving, not for each bucket."""
    if step == buckets:
        yield bucket, state
        return
    for half in (bucket, bucket + step):
        if any(each % (2 * step) == half for each in wanted):
            members = [sensor for sensor in state.sensor_ids if bucket_of(sensor, 2 * step) == half]
            yield from _divided(state.select(members), wanted, buckets, half, 2 * step)


def bucket_of(sensor_id: str, buckets: int) -> int:
    """The bucket of a sensor, by CRC-32; twice as many buckets split each in two."""
    return crc32(sensor_id.encode()) % buckets


def _name(version: int, attempt: int) -> str:
    return f"{version:020}-{attempt:016x}.state"


def _placed(name: str, keys: list[int], body: list[bytes]) -> dict[int, Place]:
    places, offset = {}, 0
    for key, value in zip(keys, body, strict=True):
        places[key] = Place(name, offset, len(value), crc32(value))
        offset += len(value)
    return places


def _header(manifest: Manifest) -> bytes:
    header = json.dumps({"format": FORMAT, **asdict(manifest)}, separators=(",", ":")).encode()
    return _PREFIX.pack(_MAGIC, len(header), crc32(header)) + header


def _parts(data: bytes | None) -> tuple[bytes, bytes]:
    """Header and body; both empty where the object is missing or its header is damaged."""
    if data is None or len(data) < _PREFIX.size:
        return b"", b""
    magic, length, checksum = _PREFIX.unpack_from(data)
    header = data[_PREFIX.size : _PREFIX.size + length]
    if magic != _MAGIC or crc32(header) != checksum:
        return b"", b""
    return header, data[_PREFIX.size + length :]


def _manifest(name: str, header: bytes) -> Manifest:
    fields = json.loads(header)
    require(
        f"The state {name} has format",
        fields.pop("format"),
        FORMAT,
        "Run the newer version of the pipeline that wrote it, or delete the state: it is rebuilt from Bronze.",
    )
    places = {int(bucket): Place(**place) for bucket, place in fields.pop("places").items()}
    return Manifest(places=places, outbox=Place(**fields.pop("outbox")), **fields)


def _taken(bodies: Mapping[str, bytes], place: Place) -> bytes | None:
    value = bodies[place.name][place.offset : place.offset + place.length]
    return value if len(value) == place.length and crc32(value) == place.checksum else None
