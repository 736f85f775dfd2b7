"""docker-api.py VERSION SOCKET ENGINE

Listens on SOCKET and hands all requests to the engine behind the socket ENGINE, as requests of API version VERSION: for clients that ask for
a version which an older engine refuses without need. Run by scripts/test-containers."""

import asyncio
import re
import sys

version, socket, engine = sys.argv[1:]
REQUEST = re.compile(rb"^(GET|HEAD|POST|PUT|DELETE) /v1\.\d+/")
AS_VERSION = rb"\1 /v%s/" % version.encode()


async def pump(reader, writer, edit):
    while data := await reader.read(65536):
        writer.write(edit(data))
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def serve(reader, writer):
    from_engine, to_engine = await asyncio.open_unix_connection(engine)
    # A client begins each request with a write of its own.
    there = pump(reader, to_engine, lambda data: REQUEST.sub(AS_VERSION, data))
    back = pump(from_engine, writer, lambda data: data)
    await asyncio.gather(there, back, return_exceptions=True)
    for end in (writer, to_engine):
        end.close()


async def main():
    server = await asyncio.start_unix_server(serve, socket)
    await server.serve_forever()


asyncio.run(main())
