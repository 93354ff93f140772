"""Who may be sent how much: the books an outlet keeps of its peers. Pure: no socket, no clock."""

from dataclasses import dataclass, field

from streamer.block import WireError
from streamer.deadline import Ways

MAX_PEERS = 256
FAIR = 1 / 4
"""Who can take less than this share of what the one with the most can take is passed over: it is slow, or stuck."""


@dataclass
class Peer:
    """What an outlet knows of one inlet; counts are events. The lower its `turn`, the longer it was sent nothing."""

    name: str
    life: str
    received: int
    spare: int
    sent: int
    heard: float
    ended: bool = False
    turn: int = 0
    ways: Ways = field(default_factory=dict)


class CreditBook:
    """Who may be sent how much. Pure: no socket, no clock.

    Parameters
    ----------
    timeout : float
        Seconds of silence after which a peer's credits do not count.

    Attributes
    ----------
    ways : Ways
        How long blocks take to the sink: the latest news, whichever peer had it. All hand on what they hear of the same
        sinks, and one that has nothing to do hears nothing.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.peers: dict[bytes, Peer] = {}
        self.ways: Ways = {}
        self._turn = 0

    def credit(
        self, route: bytes, name: str, life: str, received: int, spare: int, now: float, ways: Ways | None = None
    ) -> None:
        """A peer's latest word on what it has and what it can take, and what it hands on of the ways to the sink."""
        peer = self.peers.get(route)
        if peer is None or peer.life != life:
            for old in [key for key, known in self.peers.items() if known.life == life]:
                del self.peers[old]  # the same inlet over a new connection: what was under way is lost
            if len(self.peers) >= MAX_PEERS:
                self.forget_silent(now)
            if len(self.peers) >= MAX_PEERS:
                raise WireError("frames", f"more than {MAX_PEERS} peers")
            peer = self.peers[route] = Peer(name, life, received, spare, received, now)
        peer.received, peer.spare, peer.heard = received, spare, now
        if ways and ways != peer.ways:  # what is only said again, as by a heartbeat, is no news
            self.ways = peer.ways = ways
        peer.sent = max(peer.sent, received)  # over a new connection the first word may be older than what came

    def available(self, peer: Peer, now: float) -> int:
        """Events that may be sent to `peer` now."""
        if peer.ended or now - peer.heard > self.timeout:
            return 0
        return max(0, peer.received + peer.spare - peer.sent)

    def choose(self, now: float, owner: str | None = None) -> bytes | None:
        """The route of whose turn it is, of those called `owner` that can take something; None when nobody can.

        A peer tells only now and then what it has done, so what it can take does not say who is free. Who has been sent
        nothing for the longest most likely is.
        """
        spare = {
            route: self.available(peer, now)
            for route, peer in self.peers.items()
            if owner is None or peer.name == owner
        }
        most = max(spare.values(), default=0)
        if not most:
            return None
        return min((route for route, n in spare.items() if n >= FAIR * most), key=lambda route: self.peers[route].turn)

    def sent(self, peer: Peer, n_events: int) -> None:
        """A block has gone to this peer."""
        self._turn += 1
        peer.sent += n_events
        peer.turn = self._turn

    def total(self, now: float) -> int:
        return sum(self.available(peer, now) for peer in self.peers.values())

    def forget_silent(self, now: float) -> None:
        """Drop peers that have been silent for ten timeouts: processes that are long gone."""
        for route in [r for r, peer in self.peers.items() if now - peer.heard > 10 * self.timeout]:
            del self.peers[route]
