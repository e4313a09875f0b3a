"""A web server of this machine for files, that answers late: what a bucket is like, without one.

`python -m bench.core.range_server FOLDER MILLISECONDS` prints its port, and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from . import PROGRAM

_RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d*)", re.IGNORECASE)


async def _answer(folder: Path, delay: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        while request := await reader.readuntil(b"\r\n\r\n"):
            method, path = request.split(b" ", 2)[:2]
            await asyncio.sleep(delay)
            file = folder / unquote(path.decode()).lstrip("/").partition("?")[0]
            if not file.is_file():
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            size = file.stat().st_size
            asked = _RANGE.search(request)
            start = int(asked[1]) if asked else 0
            stop = min(size, int(asked[2]) + 1 if asked and asked[2] else size)
            part = f"206 Partial Content\r\nContent-Range: bytes {start}-{stop - 1}/{size}" if asked else "200 OK"
            head = f"HTTP/1.1 {part}\r\n"
            head += f'Content-Length: {stop - start}\r\nAccept-Ranges: bytes\r\nETag: "{size}"\r\n\r\n'
            writer.write(head.encode())
            if method == b"GET":
                with open(file, "rb") as contents:
                    writer.write(os.pread(contents.fileno(), stop - start, start))
            await writer.drain()
    writer.close()


async def _serve(folder: Path, delay: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _answer(folder, delay, reader, writer)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def serving(folder: Path, milliseconds: float) -> Iterator[str]:
    """The address of a server of that folder, which runs in a process of its own."""
    words = [sys.executable, "-m", __name__, str(folder), str(milliseconds)]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.communicate("")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python -m {__spec__.name} FOLDER MILLISECONDS (part of {PROGRAM})")
    asyncio.run(_serve(Path(sys.argv[1]), float(sys.argv[2]) / 1000))
