"""unix(7) sockets with names: listeners, connections through them, datagrams; descriptors on their
way in them."""

import array
import os
import select
import socket
import stat
import struct

from protocol import UnsupportedError, expect, main, pattern, program, restored

SCM_RIGHTS = socket.SCM_RIGHTS


def listener(name: str | bytes, kind: int = socket.SOCK_STREAM, backlog: int = 5) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, kind)
    server.bind(name)
    server.listen(backlog)
    return server


def connect(server: socket.socket) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, server.type)
    client.connect(server.getsockname())
    return client


def talk(server: socket.socket) -> None:
    """A new connection through the listener works in both directions."""
    with connect(server) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"hello")
            expect("received", accepted.recv(10), b"hello")
            accepted.sendall(b"welcome")
            expect("answer", client.recv(10), b"welcome")


def abstract() -> bytes:
    """A name that no other test has."""
    return b"\0snapkernel " + os.urandom(8).hex().encode()


def send_rights(end: socket.socket, data: bytes, *descriptors: int) -> None:
    rights = array.array("i", descriptors)
    end.sendmsg([data], [(socket.SOL_SOCKET, SCM_RIGHTS, rights)])


def receive_rights(end: socket.socket, size: int = 100) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = end.recvmsg(size, socket.CMSG_SPACE(400))
    found = array.array("i")
    for _, kind, content in ancillary:
        expect("kind of message", kind, SCM_RIGHTS)
        found.frombytes(content)
    return data, list(found)


@program
def listening():
    """At a path, whose file has the permissions that the program gave it."""
    server = listener("server")
    os.chmod("server", 0o640)
    yield
    name = server.getsockname()
    if not restored():
        expect("name", name, "server")
    expect("mode", stat.S_IMODE(os.stat(name).st_mode), 0o640)
    talk(server)


@program
def listening_absolute():
    """At an absolute path, with a number; an epoll watches it."""
    path = os.path.abspath("server-7")
    if len(path) > 105:
        raise UnsupportedError(f"{path} is too long for a socket")
    server = listener(path)
    poller = select.epoll()
    poller.register(server, select.EPOLLIN)
    os.chdir("/")
    yield
    talk(server)
    with connect(server):
        expect("reported", poller.poll(30), [(server.fileno(), select.EPOLLIN)])


@program
def listening_abstract():
    name = abstract()
    server = listener(name, socket.SOCK_SEQPACKET)
    yield
    if not restored():
        expect("name", server.getsockname(), name)
    talk(server)


@program
def listening_unlinked():
    """Nobody can connect any more, and the path is free."""
    server = listener("gone")
    os.unlink("gone")
    yield
    expect("name", server.getsockname(), "gone")
    expect("file", os.path.exists("gone"), False)
    server.setblocking(False)
    expect("nobody waits", select.select([server], [], [], 0)[0], [])


@program
def backlog():
    """Two may wait for a backlog of one."""
    server = listener(abstract(), backlog=1)
    yield
    waiting = []
    for _ in range(2):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        client.connect(server.getsockname())
        waiting.append(client)
    with socket.socket(socket.AF_UNIX) as third:
        third.setblocking(False)
        try:
            third.connect(server.getsockname())
        except BlockingIOError:
            return
    raise AssertionError("three wait")


def _connected(server: socket.socket):
    client = connect(server)
    accepted, _ = server.accept()
    client.sendall(pattern(5000))
    accepted.sendall(b"back")
    other = connect(server)
    twin, _ = server.accept()
    other.sendall(b"other")
    yield
    for end in (accepted, twin):
        expect("own name", end.getsockname(), server.getsockname())
    for end in (client, other):
        expect("name of the peer", end.getpeername(), server.getsockname())
        expect("own name of a client", end.getsockname(), "")
    expect("name of a client", accepted.getpeername(), "")
    expect("received", accepted.recv(10_000) == pattern(5000), True)
    expect("back", client.recv(100), b"back")
    expect("of the other", twin.recv(100), b"other")
    credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    expect("peer", struct.unpack("iII", credentials), (os.getpid(), os.geteuid(), os.getegid()))
    talk(server)


@program
def accepted():
    yield from _connected(listener("server"))


@program
def accepted_abstract():
    yield from _connected(listener(abstract()))


@program
def accepted_seqpacket():
    yield from _connected(listener(abstract(), socket.SOCK_SEQPACKET))


@program
def accepted_without_listener():
    """The listener was closed, and its file removed."""
    server = listener("server")
    clients = [connect(server) for _ in range(2)]
    ends = [server.accept()[0] for _ in range(2)]
    server.close()
    os.unlink("server")
    yield
    for client, end in zip(clients, ends, strict=True):
        expect("own name", end.getsockname(), "server")
        expect("name of the peer", client.getpeername(), "server")
        client.sendall(b"hello")
        expect("received", end.recv(10), b"hello")
    expect("file", os.path.exists("server"), False)


@program
def accepted_from_bound_client():
    server = listener("server")
    client = socket.socket(socket.AF_UNIX)
    client.bind("client")
    client.connect("server")
    accepted, name = server.accept()
    expect("name of the client", name, "client")
    yield
    expect("name of the peer", accepted.getpeername(), client.getsockname())
    if not restored():
        expect("own name", client.getsockname(), "client")
    client.sendall(b"hello")
    expect("received", accepted.recv(10), b"hello")
    talk(server)


@program
def accepted_and_closed():
    """What a closed peer has sent can be read, and its name is known."""
    server = listener("server")
    client, other = connect(server), connect(server)
    accepted, _ = server.accept()
    kept, _ = server.accept()
    accepted.sendall(b"last words")
    accepted.close()
    other.sendall(b"of a client")
    other.close()
    yield
    expect("name of the peer", client.getpeername(), server.getsockname())
    expect("last words", client.recv(100), b"last words")
    expect("end", client.recv(100), b"")
    expect("own name", kept.getsockname(), server.getsockname())
    expect("of a client", kept.recv(100), b"of a client")
    expect("its end", kept.recv(100), b"")


@program
def reset():
    """The peer was closed before it had read everything."""
    left, right = socket.socketpair()
    right.sendall(b"before")
    left.sendall(b"never read")
    right.close()
    yield
    expect("before", left.recv(100), b"before")
    try:
        left.recv(100)
    except ConnectionResetError:
        expect("end", left.recv(100), b"")
        return
    raise AssertionError("the connection was not reset")


@program
def pending():
    """Connected, and not accepted yet."""
    server = listener("server")
    clients = [connect(server) for _ in range(3)]
    yield
    for number, client in enumerate(clients):
        expect("name of the peer", client.getpeername(), server.getsockname())
        client.sendall(b"%d" % number)
    for number, client in enumerate(clients):
        accepted, _ = server.accept()
        expect("in order", accepted.recv(10), b"%d" % number)
        accepted.sendall(b"answer")
        expect("answer", client.recv(10), b"answer")
    talk(server)


@program
def unconnected():
    """A socket that was only made, and one that was only bound."""
    plain, bound = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    bound.bind("bound")
    yield
    try:
        plain.recv(1)
    except OSError:
        pass
    else:
        raise AssertionError("an unconnected socket says that it is at its end")
    bound.listen()
    plain.connect(bound.getsockname())
    accepted, _ = bound.accept()
    plain.sendall(b"hello")
    expect("received", accepted.recv(10), b"hello")


@program
def shut_down_both_ways():
    left, right = socket.socketpair()
    left.sendall(b"before")
    left.shutdown(socket.SHUT_RDWR)
    yield
    expect("queued", right.recv(100), b"before")
    expect("end", right.recv(100), b"")
    expect("its own end", left.recv(100), b"")


@program
def datagrams():
    """Messages with boundaries and with the names of their senders."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind("server")
    clients = []
    for number in range(3):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        client.bind(f"client-{number}")
        client.connect("server")
        clients.append(client)
    nameless = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for number, client in enumerate(clients):
        client.send(b"from %d" % number)
    nameless.sendto(pattern(3000), "server")
    clients[0].send(b"")
    yield
    for number, client in enumerate(clients):
        expect("message", server.recvfrom(100), (b"from %d" % number, client.getsockname()))
    message, sender = server.recvfrom(10_000)
    expect("nameless", (message == pattern(3000), sender), (True, None))
    expect("empty", server.recvfrom(100), (b"", clients[0].getsockname()))
    expect("name of the peer", clients[1].getpeername(), server.getsockname())
    clients[2].send(b"more")
    expect("more", server.recvfrom(100), (b"more", clients[2].getsockname()))
    server.sendto(b"answer", clients[1].getsockname())
    expect("answer", clients[1].recv(100), b"answer")
    nameless.sendto(b"again", server.getsockname())
    expect("again", server.recv(100), b"again")


@program
def datagrams_connected_later():
    """What others had sent before a socket was connected to one of them."""
    ends = []
    for _ in range(3):
        end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        end.bind(abstract())
        ends.append(end)
    server, friend, other = ends
    other.sendto(b"before", server.getsockname())
    server.connect(friend.getsockname())
    friend.connect(server.getsockname())
    friend.send(b"after")
    server.send(b"to the friend")
    yield
    expect("before", server.recvfrom(100), (b"before", other.getsockname()))
    expect("after", server.recvfrom(100), (b"after", friend.getsockname()))
    expect("to the friend", friend.recv(100), b"to the friend")
    try:
        other.sendto(b"not a friend", server.getsockname())
    except PermissionError:
        pass
    else:
        raise AssertionError("a connected socket took a message of another one")
    friend.send(b"on")
    expect("goes on", server.recv(100), b"on")


@program
def descriptor_on_its_way():
    """A pipe's end that is nowhere but in a socket."""
    left, right = socket.socketpair()
    reader, writer = os.pipe()
    os.write(writer, b"in the pipe ")
    left.sendall(b"before")
    send_rights(left, b"take this", writer)
    left.sendall(b"and after")
    os.close(writer)
    yield
    expect("before", right.recv(6), b"before")
    data, descriptors = receive_rights(right, 9)
    expect("with it", (data, len(descriptors)), (b"take this", 1))
    expect("after", right.recv(100), b"and after")
    os.write(descriptors[0], b"went through")
    os.close(descriptors[0])
    expect("through", os.read(reader, 100), b"in the pipe went through")
    expect("end", os.read(reader, 100), b"")


@program
def descriptors_in_datagrams():
    """Of all kinds, some of which the process has as well."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with open("file", "w+b") as file:
        file.write(pattern(1000))
        file.flush()
        file.seek(100)
        send_rights(left, b"file", file.fileno())
    counter = os.eventfd(7)
    send_rights(left, b"counter twice", counter, counter)
    left.send(b"none")
    yield
    data, (there,) = receive_rights(right)
    expect("file", (data, os.read(there, 50)), (b"file", pattern(1000)[100:150]))
    data, (one, two) = receive_rights(right)
    expect("counter", (data, os.eventfd_read(one)), (b"counter twice", 7))
    os.eventfd_write(two, 3)
    expect("the same counter", os.eventfd_read(counter), 3)
    expect("without", receive_rights(right), (b"none", []))


@program
def socket_on_its_way():
    """In which something is on its way."""
    left, right = socket.socketpair()
    inner, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    send_rights(far, b"inside", writer)
    far.send(b"second")
    send_rights(left, b"outside", inner.fileno())
    inner.close()
    os.close(writer)
    yield
    data, (number,) = receive_rights(right)
    expect("outside", data, b"outside")
    with socket.socket(fileno=number) as taken:
        data, (pipe,) = receive_rights(taken)
        expect("inside", data, b"inside")
        expect("second", taken.recv(100), b"second")
        taken.send(b"answer")
    expect("answer", far.recv(100), b"answer")
    os.write(pipe, b"through")
    expect("through", os.read(reader, 100), b"through")


if __name__ == "__main__":
    main()
