"""The gate before the embedded broker, with a broker that answers as a test tells it."""

import asyncio
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.local import free_ports, is_free
from apps.longpoll import DESCRIBE_CLUSTER, FETCH, FIND_COORDINATOR, HELD_S, METADATA, SMALL
from apps.process import Process

PRODUCE = 0
SILENT = b""
"""No answer: a broker gives none to a producer that wants none."""

Answer = Callable[[int, int], bytes]
"""(API key, port of the broker) -> what follows the correlation id."""


def framed(payload: bytes) -> bytes:
    return struct.pack(">i", len(payload)) + payload


async def frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(struct.unpack(">i", await reader.readexactly(4))[0])


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Of a gate that listens, and of the broker behind it."""
    port, broker_port = free_ports(2)
    gate = Process("gate", [sys.executable, "-m", "apps.longpoll", str(port), str(broker_port)], tmp_path / "log")
    gate.start()
    try:
        gate.await_ready(lambda: not is_free(port), 20)
        yield port, broker_port
        assert gate.last_lines() == ""
    finally:
        gate.stop()


def ask(ports: tuple[int, int], requests: list[tuple[int, int]], answer: Answer) -> tuple[list[bytes], float]:
    """Send (API key, correlation id) through a gate to a broker: the answers, and the seconds that they took."""
    before = time.monotonic()
    answers = asyncio.run(asking(*ports, requests, answer))
    return answers, time.monotonic() - before


async def asking(port: int, broker_port: int, requests: list[tuple[int, int]], answer: Answer) -> list[bytes]:
    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in requests:
            api_key, _, correlation_id = struct.unpack_from(">hhi", await frame(reader))
            if payload := answer(api_key, broker_port):
                writer.write(framed(struct.pack(">i", correlation_id) + payload))
        await reader.read()
        writer.close()
        gone.set()

    gone = asyncio.Event()
    async with await asyncio.start_server(broker, "127.0.0.1", broker_port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for api_key, correlation_id in requests:
            writer.write(framed(struct.pack(">hhi", api_key, 0, correlation_id) + b"rest"))
        answers = [await frame(reader) for api_key, _ in requests if answer(api_key, broker_port)]
        writer.close()
        await writer.wait_closed()
        await gone.wait()  # the gate hangs up when its client does
    return answers


def test_answers_come_unchanged_and_in_order(ports: tuple[int, int]) -> None:
    answers, _ = ask(ports, [(PRODUCE, 7), (18, 8), (PRODUCE, 9)], lambda api_key, _: bytes([api_key]) * 100)
    assert answers == [struct.pack(">i", number) + bytes([key]) * 100 for key, number in ((0, 7), (18, 8), (0, 9))]


def test_a_request_without_an_answer_does_not_confuse_the_next(ports: tuple[int, int]) -> None:
    def answer(api_key: int, broker_port: int) -> bytes:
        return SILENT if api_key == PRODUCE else b"at " + b"127.0.0.1" + struct.pack(">i", broker_port)

    answers, _ = ask(ports, [(PRODUCE, 1), (METADATA, 2)], answer)
    assert answers == [struct.pack(">i", 2) + b"at 127.0.0.1" + struct.pack(">i", ports[0])]


@pytest.mark.parametrize("api_key", [METADATA, FIND_COORDINATOR, DESCRIBE_CLUSTER])
def test_the_broker_s_address_becomes_the_gate_s(ports: tuple[int, int], api_key: int) -> None:
    answers, _ = ask(ports, [(api_key, 1)], lambda _, its: b"<127.0.0.1" + struct.pack(">i", its) + b">")
    assert answers == [struct.pack(">i", 1) + b"<127.0.0.1" + struct.pack(">i", ports[0]) + b">"]


def test_data_that_look_like_the_address_stay_as_they_are(ports: tuple[int, int]) -> None:
    answers, _ = ask(ports, [(FETCH, 1)], lambda _, its: b"<127.0.0.1" + struct.pack(">i", its) + b">")
    assert not answers[0].endswith(struct.pack(">i", ports[0]) + b">")


def test_small_answers_to_a_fetch_wait_and_large_ones_do_not(ports: tuple[int, int]) -> None:
    _, small = ask(ports, [(FETCH, number) for number in range(10)], lambda *_: b"x")
    _, large = ask(ports, [(FETCH, number) for number in range(10)], lambda *_: b"x" * SMALL)
    assert small >= 10 * HELD_S
    assert large < small


def test_a_broker_that_is_not_there_closes_the_connection(ports: tuple[int, int]) -> None:
    with socket.create_connection(("127.0.0.1", ports[0]), 5) as client:
        assert client.recv(1) == b""
