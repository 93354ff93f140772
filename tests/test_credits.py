"""The books an outlet keeps of its peers; the clock is the test's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.block import WireError
from streamer.credits import MAX_PEERS, CreditBook
from streamer.deadline import Way

A, B = b"route a", b"route b"


def book(**spare: int) -> CreditBook:
    """Peers that spoke at time 0, named as their routes."""
    made = CreditBook(10.0)
    for name, room in spare.items():
        made.credit(name.encode(), name, f"life {name}", 0, room, 0.0)
    return made


def test_nobody_has_anything_at_first() -> None:
    assert book().choose(0.0) is None
    assert book().total(0.0) == 0


def test_those_that_have_room_take_turns() -> None:
    peers = book(a=512, b=512, c=0)
    chosen = []
    for k in range(40):
        route = peers.choose(0.0)
        assert route is not None
        peers.sent(peers.peers[route], 12)
        chosen.append(route)
        if k == 20:  # one tells what it has done: no reason to give it all that comes next
            peers.credit(b"a", "a", "life a", peers.peers[b"a"].sent, 512, 0.0)
    assert chosen == [b"a", b"b"] * 20
    assert peers.total(0.0) == 512 - 9 * 12 + 512 - 20 * 12


def test_who_is_new_is_next() -> None:
    peers = book(a=512, b=512)
    for route in (b"a", b"b"):
        peers.sent(peers.peers[route], 1)
    peers.credit(b"c", "c", "life c", 0, 512, 0.0)
    assert peers.choose(0.0) == b"c"


def test_who_falls_behind_is_passed_over() -> None:
    """One does a quarter of what the other one does, and is given so much; each tells when it has half of its room."""
    peers = book(a=400, b=400)
    given = dict.fromkeys(peers.peers, 0)
    done = dict.fromkeys(peers.peers, 0)
    for _ in range(4000):
        route = peers.choose(0.0)
        if route is not None:
            peers.sent(peers.peers[route], 10)
            given[route] += 10
        for route, speed in ((b"a", 8), (b"b", 2)):
            done[route] = min(done[route] + speed, given[route])
            held = given[route] - done[route]
            if held <= 200:
                peers.credit(route, route.decode(), f"life {route.decode()}", given[route], 400 - held, 0.0)
    assert given[b"a"] / given[b"b"] == pytest.approx(4, rel=0.1)


def test_who_is_alone_is_not_passed_over() -> None:
    peers = book(a=400)
    peers.sent(peers.peers[b"a"], 399)
    assert peers.choose(0.0) == b"a"


def test_who_has_nothing_to_spare_is_not_chosen() -> None:
    peers = book(a=0)
    assert peers.choose(0.0) is None
    peers = book(a=4)
    peers.sent(peers.peers[b"a"], 6)  # the last block was larger than the room
    assert peers.choose(0.0) is None
    assert peers.total(0.0) == 0


def test_a_credit_is_absolute() -> None:
    peers = book(a=10)
    peers.sent(peers.peers[b"a"], 8)
    for _ in range(3):  # repeated, it says nothing new
        peers.credit(b"a", "a", "life a", 0, 10, 1.0)
    assert peers.total(1.0) == 2
    peers.credit(b"a", "a", "life a", 8, 10, 1.0)
    assert peers.total(1.0) == 10


def test_silence_takes_the_credits_away_and_a_word_brings_them_back() -> None:
    peers = book(a=10)
    assert peers.total(10.0) == 10
    assert peers.total(10.1) == 0
    assert peers.choose(10.1) is None
    peers.credit(b"a", "a", "life a", 0, 10, 11.0)
    assert peers.choose(11.0) == b"a"


def test_ways_are_the_latest_news_whoever_has_it() -> None:
    peers = book(a=10, b=10)
    assert peers.ways == {}
    peers.credit(b"a", "a", "life a", 0, 10, 1.0, {"framer": Way(500, 2)})
    peers.credit(b"b", "b", "life b", 0, 10, 1.1, {"framer": Way(4, 1)})
    assert peers.ways == {"framer": (4, 1)}
    for again in ({"framer": Way(500, 2)}, None):  # what has nothing to do says what it heard last, or nothing
        peers.credit(b"a", "a", "life a", 0, 10, 2.0, again)
        assert peers.ways == {"framer": (4, 1)}
    peers.credit(b"a", "a", "life a", 0, 10, 2.1, {"framer": Way(5, 2)})
    assert peers.ways == {"framer": (5, 2)}


def test_who_was_told_the_end_gets_nothing() -> None:
    peers = book(a=10)
    peers.peers[b"a"].ended = True
    assert peers.choose(0.0) is None


def test_a_new_life_on_a_known_route_starts_anew() -> None:
    peers = book(a=10)
    peers.peers[b"a"].sent += 10
    peers.credit(b"a", "a", "another life", 0, 10, 1.0)
    assert peers.total(1.0) == 10


def test_same_life_over_a_new_route_replaces_the_old_one() -> None:
    peers = book(a=10)
    peers.peers[b"a"].sent += 10  # and lost on the way
    peers.credit(B, "a", "life a", 0, 10, 1.0)
    assert list(peers.peers) == [B]
    assert peers.total(1.0) == 10


def test_first_word_over_a_new_route_may_be_an_old_one() -> None:
    peers = book(a=100)
    peers.peers[b"a"].sent += 50
    peers.credit(B, "a", "life a", 0, 100, 1.0)  # queued before the cut, when nothing had come yet
    peers.credit(B, "a", "life a", 50, 50, 1.1)  # and said after the 50 had come
    assert peers.total(1.1) == 50


def test_peers_that_are_long_gone_make_room_for_new_ones() -> None:
    peers = CreditBook(10.0)
    for i in range(MAX_PEERS):
        peers.credit(b"%d" % i, f"framer-{i}", f"life {i}", 0, 1, 0.0 if i < 3 else 100.0)
    with pytest.raises(WireError, match="peers"):
        peers.credit(b"new", "new-0", "new", 0, 1, 100.0)
    peers.credit(b"new", "new-0", "new", 0, 1, 100.1)
    assert len(peers.peers) == MAX_PEERS - 2


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 40), st.booleans()), max_size=60))
def test_never_more_than_granted_and_one_block(steps: list[tuple[int, int, bool]]) -> None:
    """An honest peer over one connection: what it was sent before each block is less than what it asked for."""
    peers = CreditBook(10.0)
    received = granted = 0
    for n_events, spare, speaks in steps:
        if speaks:
            granted = max(granted, received + spare)
            peers.credit(A, "a", "life", received, spare, 0.0)
        if peers.choose(0.0) is not None:
            assert received < granted
            peers.peers[A].sent += n_events
            received += n_events
    if A in peers.peers:
        assert peers.peers[A].sent == received
