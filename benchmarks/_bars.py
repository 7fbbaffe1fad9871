"""What is to hold: how the contestants "ours" and "ours patched" have to compare to others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A ratio that a contestant has to reach.

    Attributes:
        group: of benchmarks.
        workload: one of the group's.
        against: another contestant. The ratio is its seconds to ours: 2.0 is twice as fast.
        at_least: the least ratio.
        kind: "wall" or "cpu".
        contestant: whose bar it is.
    """

    group: str
    workload: str
    against: str
    at_least: float
    kind: str = "wall"
    contestant: str = "ours"


def _bars(
    group: str, workloads: str, at_least: float, against: str, kind: str = "wall"
) -> list[Bar]:
    return [Bar(group, workload, against, at_least, kind) for workload in workloads.split()]


STANDARD_64K = "standard 64 KiB"
_PROTOCOLS = "protocol_1k protocol_10k protocol_100k protocol_idle"
_STREAMS = "streams_1k streams_10k streams_100k"
_SOCKS = "sock_1k sock_10k sock_100k"
_LOOPS = [
    *_bars("loops", "call_soon_chain future_ping_pong", 1.8, "standard"),
    *_bars("loops", "call_soon_batch task_switch", 1.3, "standard"),
    *_bars("loops", "timers_fired timers_cancelled sleepers gather", 1.1, "standard"),
    *_bars("loops", "threadsafe_burst", 5.0, "standard"),
    *_bars("loops", "threadsafe_round_trip executor_round_trip", 1.4, "standard"),
    *_bars("loops", _PROTOCOLS, 1.25, STANDARD_64K),
    *_bars("loops", _PROTOCOLS, 0.9, "uvloop", "cpu"),
    *_bars("loops", _STREAMS, 1.15, STANDARD_64K),
    *_bars("loops", _STREAMS, 0.9, "uvloop", "cpu"),
    *_bars("loops", _SOCKS, 1.5, "standard"),
    *_bars("loops", _SOCKS, 1.0, "uvloop"),
    *_bars("loops", "tls_1k", 1.1, "standard"),
    *_bars("loops", "tls_1k", 1.2, "uvloop"),
    *_bars("loops", "udp", 2.5, "standard"),
    *_bars("loops", "udp", 0.8, "uvloop"),
    *_bars("loops", "http", 1.3, "standard"),
    *_bars("loops", "http", 0.95, "uvloop"),
]
# What patching may cost: a tenth.
_PATCHED = [
    Bar("loops", workload, "ours", 0.9, contestant="ours patched")
    for workload in dict.fromkeys(bar.workload for bar in _LOOPS)
]
_OF_PEER = {
    "await_greenlet": 15.0,
    "sync_to_async": 20.0,
    "beside": 8.0,
    "beside_by_greenlet": 8.0,
    "no_loop": 30.0,
    "chain": 25.0,
    "below_task": 50.0,
}
_BRIDGES = [
    # A blocking call in a task takes at most 1.5 times what it takes in a greenlet of its own.
    *_bars("bridges", "suspended_step", 1 / 1.5, "gevent alone"),
    *[
        Bar("bridges", workload, peer, at_least)
        for workload, at_least in _OF_PEER.items()
        for peer in ("0.2.5", "0.2.5 patched")
    ],
]

BARS = [*_LOOPS, *_PATCHED, *_BRIDGES]

#: The greatest exponent of growth: cost times log n has 0.14 between 100 and 50,000, and what no
#: longer fits into the processor's caches adds to it. In proportion to n would be 1.
GROWTH = 0.35
