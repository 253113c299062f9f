"""TCP on the loopback interface."""

import contextlib
import select
import socket

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


if __name__ == "__main__":
    main()
