"""A gate before the embedded broker that makes idle consumers wait: `python -m apps.longpoll PORT BROKER_PORT`.

The embedded broker answers a fetch at once, even with nothing, where Kafka would wait for `fetch.wait.max.ms`. So
each idle consumer asks again thousands of times a second, and four of them keep two cores busy with nothing. The
gate hands everything on as it is, but small answers to a fetch a little later; and where the broker tells its
address, it tells its own.
"""

import asyncio
import struct
import sys

HOST = "127.0.0.1"
FETCH, METADATA, FIND_COORDINATOR, DESCRIBE_CLUSTER = 1, 3, 10, 60
ADDRESSED = {METADATA, FIND_COORDINATOR, DESCRIBE_CLUSTER}
"""Requests whose answers hold the broker's address."""

SMALL = 2_048
"""Bytes of an answer that holds nothing, or little that could not wait."""
HELD_S = 0.05

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


async def serve(port: int, broker_port: int) -> None:
    """Listen until cancelled. Every connection gets one of its own to the broker."""

    async def connected(reader: Reader, writer: Writer) -> None:
        try:
            broker_reader, broker_writer = await asyncio.open_connection(HOST, broker_port)
        except OSError:
            writer.close()
            return
        asked: dict[int, int] = {}
        ways = {
            asyncio.create_task(requests(reader, broker_writer, asked)),
            asyncio.create_task(answers(broker_reader, writer, asked, port, broker_port)),
        }
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        broker_writer.close()
        writer.close()

    server = await asyncio.start_server(connected, HOST, port)
    async with server:
        await server.serve_forever()


async def requests(reader: Reader, broker: Writer, asked: dict[int, int]) -> None:
    """Hand requests on, to the end of the connection; note in `asked` what each was (correlation id -> API key)."""
    while True:
        request = await frame(reader)
        api_key, _, correlation_id = struct.unpack_from(">hhi", request)
        asked[correlation_id] = api_key
        broker.write(struct.pack(">i", len(request)) + request)
        await broker.drain()


async def answers(broker: Reader, writer: Writer, asked: dict[int, int], port: int, broker_port: int) -> None:
    """Hand answers on, in their order."""
    theirs, ours = (HOST.encode() + struct.pack(">i", each) for each in (broker_port, port))
    while True:
        answer = await frame(broker)
        api_key = asked.pop(struct.unpack_from(">i", answer)[0], None)
        if api_key in ADDRESSED:
            answer = answer.replace(theirs, ours)
        elif api_key == FETCH and len(answer) < SMALL:
            await asyncio.sleep(HELD_S)  # what this module is for
        writer.write(struct.pack(">i", len(answer)) + answer)
        await writer.drain()


async def frame(reader: Reader) -> bytes:
    """One request or answer. Raises IncompleteReadError at the end of the connection."""
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    return await reader.readexactly(size)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
