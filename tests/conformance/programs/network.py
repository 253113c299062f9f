"""TCP on the loopback interface."""

import contextlib
import select
import socket
import struct

from protocol import UnsupportedError, Worker, expect, main, program, restored


def listener() -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 0))
    server.listen(17)
    return server


def talk(server: socket.socket) -> None:
    """A new connection through the listener works in both directions."""
    with socket.create_connection(server.getsockname(), timeout=30) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            expect("received", accepted.recv(10), b"hello")
            accepted.sendall(b"welcome")
            expect("answer", client.recv(10), b"welcome")


@program
def listening():
    """Keeps accepting, at its port or, where that is taken, at a new one."""
    server = listener()
    port = server.getsockname()[1]
    yield
    if not restored():
        expect("port", server.getsockname()[1], port)
    talk(server)
    expect("reuse", server.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR), 1)


@program
def listening_with_options():
    server = listener()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server.setblocking(False)
    poller = select.epoll()
    poller.register(server, select.EPOLLIN)
    yield
    expect("keepalive", server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
    expect("nodelay", server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), 1)
    with socket.create_connection(server.getsockname(), timeout=30):
        expect("reported", poller.poll(30), [(server.fileno(), select.EPOLLIN)])


@program
def listening_ipv6():
    server = socket.socket(socket.AF_INET6)
    try:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind(("::1", 0))
    except OSError as error:
        raise UnsupportedError(f"IPv6: {error.strerror}") from None
    server.listen()
    yield
    expect("v6 only", server.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY), 1)
    with socket.create_connection(server.getsockname()[:2], timeout=30) as client:
        accepted, _ = server.accept()
        accepted.sendall(b"hello")
        expect("received", client.recv(10), b"hello")


@program
def blocked_in_accept():
    server = listener()
    worker = Worker(server.accept, "accept").blocked()
    yield
    with socket.create_connection(server.getsockname(), timeout=30) as client:
        accepted, _ = worker.result()
        accepted.sendall(b"hello")
        expect("received", client.recv(10), b"hello")


@program
def established():
    """The original keeps its connection; in a restored copy it is closed, and nothing hangs."""
    server = listener()
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    client.sendall(b"on the way")
    numbers = client.fileno(), accepted.fileno()
    yield
    expect("numbers", (client.fileno(), accepted.fileno()), numbers)
    if restored():
        for name, end in (("client", client), ("server", accepted)):
            expect(f"{name} is reported", select.select([end], [], [], 30)[0], [end])
            try:
                received = end.recv(100)
            except OSError:
                continue
            expect(f"{name} received", received, b"")
    else:
        expect("received", accepted.recv(100), b"on the way")
        accepted.sendall(b"answer")
        expect("answer", client.recv(100), b"answer")
    talk(server)


@program
def blocked_in_receive():
    """A thread that waits for a peer which is not there any more after a restore."""
    server = listener()
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    worker = Worker(lambda: client.recv(100), "recv").blocked()
    yield
    if restored():
        with contextlib.suppress(OSError):
            expect("received", worker.result(), b"")
    else:
        accepted.sendall(b"answer")
        expect("received", worker.result(), b"answer")


@program
def unconnected():
    """A socket that was only made."""
    stream = socket.socket()
    yield
    expect("type", stream.type, socket.SOCK_STREAM)
    with listener() as server:
        stream.connect(server.getsockname())
        accepted, _ = server.accept()
        stream.sendall(b"hello")
        expect("received", accepted.recv(10), b"hello")


@program
def bound():
    """A port of TCP that nobody listens at yet."""
    stream = socket.socket()
    stream.bind(("127.0.0.1", 0))
    port = stream.getsockname()[1]
    yield
    if restored():
        expect("it has a port", stream.getsockname()[1] != 0, True)
    else:
        expect("port", stream.getsockname()[1], port)
    stream.listen()
    talk(stream)


def datagrams(family: int, address: str):
    try:
        ends = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(3)]
        for end in ends[:2]:
            end.bind((address, 0))
    except OSError as error:
        raise UnsupportedError(f"{address}: {error.strerror}") from None
    server, client, fresh = ends
    client.connect(server.getsockname()[:2])
    ports = [end.getsockname()[1] for end in ends[:2]]
    yield
    if not restored():
        expect("ports", [end.getsockname()[1] for end in ends[:2]], ports)
    expect("peer", client.getpeername(), server.getsockname())
    client.send(b"hello")
    message, sender = server.recvfrom(100)
    expect("received", (message, sender), (b"hello", client.getsockname()))
    server.sendto(b"answer", sender)
    expect("answer", client.recv(100), b"answer")
    fresh.sendto(b"fresh", server.getsockname())
    expect("of the unbound one", server.recv(100), b"fresh")


@program
def udp():
    """Bound, connected to one another, and only made."""
    yield from datagrams(socket.AF_INET, "127.0.0.1")


@program
def udp_ipv6():
    yield from datagrams(socket.AF_INET6, "::1")


@program
def udp_shared_port():
    """SO_REUSEPORT: two sockets of the process, and the original keeps what is sent to it."""
    ends = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    ends[0].bind(("127.0.0.1", 0))
    port = ends[0].getsockname()[1]
    ends[1].bind(("127.0.0.1", port))
    yield
    found = {end.getsockname()[1] for end in ends}
    expect("one port", len(found), 1)
    if not restored():
        expect("port", found, {port})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(20):
            sender.sendto(b"%d" % number, ("127.0.0.1", *found))
    received = set()
    while len(received) < 20:
        readable = select.select(ends, [], [], 30)[0]
        expect("something comes", bool(readable), True)
        received |= {end.recv(100) for end in readable}
    expect("received", received, {b"%d" % number for number in range(20)})


@program
def udp_options():
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    wanted = {
        (socket.SOL_SOCKET, socket.SO_BROADCAST): 1,
        (socket.SOL_SOCKET, socket.SO_PRIORITY): 3,
        (socket.IPPROTO_IP, socket.IP_TOS): 16,
        (socket.IPPROTO_IP, socket.IP_TTL): 17,
        (socket.IPPROTO_IP, socket.IP_MULTICAST_TTL): 5,
        (socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP): 0,
        (socket.IPPROTO_IP, 8): 1,  # IP_PKTINFO
        (socket.IPPROTO_IP, 10): 2,  # IP_MTU_DISCOVER
    }
    for (level, option), value in wanted.items():
        if option != socket.SO_PRIORITY:
            end.setsockopt(level, option, value)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 3)
    yield
    found = {key: end.getsockopt(*key) for key in wanted}
    expect("options", found, wanted)


@program
def tcp_options():
    """Of a socket that is neither bound nor connected."""
    end = socket.socket()
    wanted = {
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
        (socket.SOL_SOCKET, socket.SO_REUSEPORT): 1,
        (socket.SOL_SOCKET, socket.SO_RCVLOWAT): 7,
        (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 99,
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 9,
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 4,
        (socket.IPPROTO_TCP, socket.TCP_MAXSEG): 1000,
        (socket.IPPROTO_TCP, socket.TCP_SYNCNT): 3,
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 12345,
        (socket.IPPROTO_IP, socket.IP_TTL): 17,
    }
    for (level, option), value in wanted.items():
        end.setsockopt(level, option, value)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 8))
    end.setsockopt(socket.IPPROTO_TCP, 13, b"reno")  # TCP_CONGESTION
    yield
    found = {key: end.getsockopt(*key) for key in wanted}
    expect("options", found, wanted)
    linger = struct.unpack("ii", end.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))
    expect("linger", linger, (1, 8))
    congestion = end.getsockopt(socket.IPPROTO_TCP, 13, 16)
    expect("congestion control", congestion.rstrip(b"\0"), b"reno")


def member(family: int, group: str) -> socket.socket:
    """A socket that has joined a group at the loopback interface."""
    end = socket.socket(family, socket.SOCK_DGRAM)
    index = socket.if_nametoindex("lo")
    try:
        if family == socket.AF_INET:
            wanted = struct.pack("=4s4si", socket.inet_aton(group), bytes(4), index)
            end.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, wanted)
        else:
            wanted = struct.pack("=16sI", socket.inet_pton(family, group), index)
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, wanted)
        end.bind(("", 0))
    except OSError as error:
        raise UnsupportedError(f"multicast: {error.strerror}") from None
    return end


def receives(end: socket.socket, group: str) -> None:
    index = socket.if_nametoindex("lo")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        way = struct.pack("=4s4si", bytes(4), socket.inet_aton("127.0.0.1"), index)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, way)
        sender.sendto(b"to the group", (group, end.getsockname()[1]))
    expect("reported", select.select([end], [], [], 30)[0], [end])
    expect("received", end.recv(100), b"to the group")


@program
def multicast():
    end = member(socket.AF_INET, "239.1.2.3")
    receives(end, "239.1.2.3")
    yield
    receives(end, "239.1.2.3")


@program
def multicast_ipv6():
    """Only a member can leave the group, once."""
    end = member(socket.AF_INET6, "ff12::1234")
    yield
    index = socket.if_nametoindex("lo")
    group = struct.pack("=16sI", socket.inet_pton(socket.AF_INET6, "ff12::1234"), index)
    end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP, group)
    try:
        end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP, group)
    except OSError:
        return
    raise AssertionError("left the group twice")


if __name__ == "__main__":
    main()
