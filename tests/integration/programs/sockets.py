"""Programs with sockets that others have an interest in, too. The protocol is that of the
conformance programs."""

import array
import os
import select
import socket
import struct
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance" / "programs"))

from protocol import UnsupportedError, expect, main, program, restored


def strange_socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
    try:
        return socket.socket(family, kind, protocol)
    except OSError as error:
        raise UnsupportedError(f"socket({family}, {kind}): {error.strerror}") from None


@program
def netlink():
    _route = strange_socket(socket.AF_NETLINK, socket.SOCK_RAW)
    yield


@program
def packet():
    _packet = strange_socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    yield


@program
def raw():
    _raw = strange_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    yield


@program
def filtered():
    """A classic BPF program that takes everything."""
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    code = array.array("B", struct.pack("=HBBI", 6, 0, 0, 0xFFFF))
    address, _ = code.buffer_info()
    end.setsockopt(socket.SOL_SOCKET, 26, struct.pack("@H6xN", 1, address))  # SO_ATTACH_FILTER
    yield


@program
def pending_with_data():
    server = socket.socket(socket.AF_UNIX)
    server.bind("server")
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("server")
    client.sendall(b"hello")
    yield
    accepted, _ = server.accept()
    expect("received", accepted.recv(10), b"hello")


@program
def out_of_band():
    left, right = socket.socketpair()
    try:
        left.send(b"urgent", socket.MSG_OOB)
    except OSError as error:
        raise UnsupportedError(f"MSG_OOB in a unix socket: {error.strerror}") from None
    yield
    expect("received", right.recv(1, socket.MSG_OOB), b"t")


@program
def epoll_on_its_way():
    left, right = socket.socketpair()
    with select.epoll() as poller:
        rights = array.array("i", [poller.fileno()])
        left.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    yield
    expect("received", len(right.recvmsg(10, 100)[1]), 1)


@program
def server():
    """Listens at the path that is its name."""
    end = socket.socket(socket.AF_UNIX)
    end.bind("server")
    end.listen()
    yield
    print(f"at {end.getsockname()}", flush=True)
    accepted, _ = end.accept()
    accepted.sendall(b"here I am")
    accepted.recv(10)


@program
def below():
    """Listens in a folder of its own."""
    os.mkdir("deep")
    end = socket.socket(socket.AF_UNIX)
    end.bind("deep/server")
    end.listen()
    yield


@program
def logger():
    """Sends datagrams to a socket that somebody else has, as to /dev/log."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.connect("\0" + os.environ["LOG"])
    end.send(b"before")
    yield
    end.send(b"after")


@program
def unread_datagrams():
    end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    end.bind(("127.0.0.1", 0))
    end.sendto(b"x", end.getsockname())
    yield
    end.setblocking(False)
    try:
        end.recv(10)
    except BlockingIOError:
        expect("lost in a copy alone", restored(), True)
    else:
        expect("kept by the original", restored(), False)


@program
def unaccepted():
    """Connections that others have made, and that wait to be accepted."""
    tcp, unix = socket.socket(), socket.socket(socket.AF_UNIX)
    tcp.bind(("127.0.0.1", 0))
    tcp.listen()
    unix.bind("server")
    unix.listen()
    child = """import socket, sys
tcp = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
unix = socket.socket(socket.AF_UNIX)
unix.connect("server")
print("connected", flush=True)
sys.stdin.read()"""
    # A process of its own, which is not ours to save.
    first, second = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.dup2(first[0], 0)
            os.dup2(second[1], 1)
            port = str(tcp.getsockname()[1])
            os.execv(sys.executable, [sys.executable, "-c", child, port])
        os._exit(0)
    os.wait()
    os.close(first[0])
    os.close(second[1])
    expect("told", os.read(second[0], 9), b"connected")
    os.close(second[0])
    yield
    for server in (tcp, unix):
        server.setblocking(False)
        try:
            server.accept()
        except BlockingIOError:
            expect("lost in a copy alone", restored(), True)
        else:
            expect("kept by the original", restored(), False)
    os.close(first[1])


if __name__ == "__main__":
    main()
