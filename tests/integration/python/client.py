"""Uses a node through the Python library `redis`, as a typical program would.

Run by the test `python_library_works`: client.py PORT PROTOCOL. Prints `ok` at the end.
"""

import sys
import threading
import time

import redis


def check(found, expected):
    assert found == expected, f"{found!r}, expected {expected!r}"


def strings(client):
    check(client.ping(), True)
    check(client.set("k", "v"), True)
    check(client.get("k"), b"v")
    check(client.get("none"), None)
    check(client.set("k", "w", nx=True), None)
    check(client.set("k", "w", xx=True, get=True), b"v")
    check(client.mset({"a": 1, "b": b"\x00\xff\r\n", "": ""}), True)
    check(client.mget("a", "none", "b", ""), [b"1", None, b"\x00\xff\r\n", b""])
    check(client.append("k", "xyz"), 4)
    check(client.strlen("k"), 4)
    check(client.type("k"), b"string")
    check(client.incr("n"), 1)
    check(client.incrby("n", 41), 42)
    check(client.decr("n", 2), 40)
    check(client.exists("k", "n", "none"), 2)
    check(client.delete("k", "none"), 1)
    check(client.unlink("n"), 1)
    big = bytes(range(256)) * 4096 * 4
    check(client.set("big", big), True)
    assert client.get("big") == big


def expiry(client):
    client.set("short", "v", px=80)
    client.set("long", "v", ex=100)
    check(client.ttl("long"), 100)
    check(client.persist("long"), True)
    check(client.ttl("long"), -1)
    check(client.pexpire("long", 100_000), True)
    assert 99_000 < client.pttl("long") <= 100_000
    deadline = time.monotonic() + 10
    while client.get("short") is not None:
        assert time.monotonic() < deadline, "never expires"


def keys(client):
    client.flushall()
    names = {f"key:{number}".encode() for number in range(500)}
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.set(name, name)
    check(pipeline.execute(), [True] * 500)
    check(set(client.scan_iter(count=50)), names)
    check(set(client.keys("key:49?")), {f"key:49{digit}".encode() for digit in range(10)})
    check(client.dbsize(), 500)
    assert client.randomkey() in names


def errors(client):
    client.set("text", "abc")
    try:
        client.incr("text")
        raise AssertionError("INCR of text")
    except redis.ResponseError as error:
        assert "not an integer" in str(error), error


def server(client):
    info = client.info()
    assert info["redis_version"] and info["connected_clients"] >= 1, info
    assert client.client_id() > 0
    check(client.client_setname("tester"), True)
    check(client.client_getname() in (b"tester", "tester"), True)
    assert any(entry["name"] == "tester" for entry in client.client_list())
    assert abs(client.time()[0] - time.time()) < 5
    assert "maxclients" in client.config_get("maxclients")


def threads(client):
    client.set("shared", 0)
    workers = [
        threading.Thread(target=lambda: [client.incr("shared") for _ in range(100)])
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    check(client.get("shared"), b"800")


def main():
    port, protocol = int(sys.argv[1]), int(sys.argv[2])
    client = redis.Redis(port=port, protocol=protocol, socket_timeout=30)
    for part in (strings, expiry, keys, errors, server, threads):
        part(client)
    client.flushall()
    print("ok")


main()
