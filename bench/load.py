"""A load from one process: keep-alive connections, each sending its next request when it has its answer.

    python -m bench.load PORT CONNECTIONS SECONDS < requests

Requests come as JSON lines {"path", "key", "body"}; the result is one JSON line.
"""

import asyncio
import json
import sys
import time
from itertools import cycle
from typing import Any


def wire(request: dict[str, Any]) -> bytes:
    """One HTTP/1.1 request as bytes."""
    body = request["body"].encode()
    head = (
        f"POST {request['path']} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {request['key']}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def connection(port: int, requests: Any, until: float, times: list[float], faults: list[str]) -> None:
    """Requests one after the other until the time is over."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (start := time.perf_counter()) < until:
        writer.write(next(requests))
        head = await reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        at = lower.index(b"content-length:") + 15
        body = await reader.readexactly(int(lower[at : lower.index(b"\r\n", at)]))
        if not head.startswith(b"HTTP/1.1 200"):
            faults.append(f"{head[:12].decode()} {body[:200].decode()}")
        times.append(time.perf_counter() - start)
    writer.close()


async def run(port: int, connections: int, seconds: float, requests: list[bytes]) -> dict[str, Any]:
    """Load for some seconds; times in milliseconds."""
    times: list[float] = []
    faults: list[str] = []
    start = time.perf_counter()
    step = max(1, len(requests) // connections)
    feeds = [cycle(requests[i * step :] + requests[: i * step]) for i in range(connections)]
    await asyncio.gather(*(connection(port, feed, start + seconds, times, faults) for feed in feeds))
    spent = time.perf_counter() - start
    times.sort()
    return {
        "rate": len(times) / spent,
        "p50": 1000 * times[len(times) // 2],
        "p99": 1000 * times[int(len(times) * 0.99)],
        "requests": len(times),
        "faults": len(faults),
        "fault": faults[:1],
    }


if __name__ == "__main__":
    asked = [wire(json.loads(line)) for line in sys.stdin]
    outcome = asyncio.run(run(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), asked))
    sys.stdout.write(json.dumps(outcome) + "\n")
