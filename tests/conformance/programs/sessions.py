"""Programs in pseudo-terminals that the process holds, as pexpect, ptyprocess and script(1) start
them: sessions, job control, and dialogues that go on."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
import tty

from protocol import PATIENCE, expect, main, program

PROMPT = b"next> "
INTERRUPT, SUSPEND = b"\x03", b"\x1a"


class Terminal:
    """The master of a terminal in which a child leads a session."""

    def __init__(self, action):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                action()
                status = 0
            os._exit(status)
        self.text = b""

    def type(self, data):
        os.write(self.master, data)

    def until(self, wanted):
        """Wait until this is printed; all that was printed up to it, which is forgotten."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(wanted, self.text)):
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self.master], [], [], left)[0]:
                raise AssertionError(f"no {wanted} in {self.text}")
            try:
                self.text += os.read(self.master, 1 << 16)
            except OSError as error:
                raise AssertionError(f"no {wanted} in {self.text}: {error}") from error
        before, self.text = self.text[: match.start()], self.text[match.end() :]
        return before.replace(b"\r", b"")

    def say(self, line, wanted):
        """Type a line, and wait for what it leads to."""
        self.type(line + b"\n")
        return self.until(wanted)

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def status(self):
        """How the child has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def shell(*options):
    """bash, at its prompt."""

    def action():
        environment = {"PS1": PROMPT.decode(), "PATH": os.environ["PATH"], "TERM": "dumb"}
        os.execve("/bin/bash", ["bash", "--norc", "--noprofile", *options, "-i"], environment)

    terminal = Terminal(action)
    terminal.until(PROMPT)
    return terminal


def finish(terminal):
    terminal.type(b"exit 5\n")
    expect("status of the shell", terminal.status(), 5)


def answer(terminal, line):
    """What a shell prints for a line. News of its jobs may come between that and the prompt."""
    terminal.type(line + b"; echo end of answer\n")
    terminal.until(rb"echo end of answer\r\n")
    found = terminal.until(rb"end of answer\r\n")
    terminal.until(PROMPT)
    return found


def states(terminal):
    """Of a shell's jobs."""
    return re.findall(rb"(?m)^\[\d+\][-+ ]+(\w+)", answer(terminal, b"jobs"))


def state(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0]


def until_state(pid, wanted):
    deadline = time.monotonic() + PATIENCE
    while state(pid) != wanted:
        expect("in time", time.monotonic() < deadline, True)
        time.sleep(0.001)


@program
def dialogue():
    """A shell knows what it was told, and where it stood; it reads lines as a terminal gives
    them."""
    terminal = shell("--noediting")
    answer(terminal, b"x=remembered; cd /usr")
    yield
    expect("variable", answer(terminal, b"echo $x $PWD"), b"remembered /usr\n")
    finish(terminal)


@program
def dialogue_with_an_editor():
    """The shell edits the line itself (readline), which was begun before."""
    terminal = shell()
    terminal.type(b"echo begun wronk")
    terminal.until(rb"begun wronk")
    yield
    terminal.type(b"\x7fg and ended\n")
    terminal.until(rb"\r\nbegun wrong and ended\r\n" + PROMPT)
    finish(terminal)


@program
def question_in_a_shell():
    """A builtin that waits for a line, in a script that goes on."""
    terminal = shell("--noediting")
    terminal.type(b"read -p 'your name: ' name; echo hello $name\n")
    terminal.until(rb"\nyour name: ")
    yield
    terminal.say(b"gopher", rb"hello gopher\r\n" + PROMPT)
    finish(terminal)


@program
def jobs():
    """One in the foreground before, stopped; one in the background; one that waits for the
    foreground. `fg` continues them."""
    terminal = shell("--noediting")
    terminal.type(b"cat\n")
    terminal.say(b"echoed", rb"echoed\r\nechoed\r\n")
    terminal.type(SUSPEND)
    terminal.until(rb"Stopped +cat\r\n" + PROMPT)
    terminal.say(b"sleep 1000 &", PROMPT)
    terminal.say(b"cat - &", PROMPT)
    waiting = int(answer(terminal, b"echo $!"))
    until_state(waiting, "T")
    expect("jobs", states(terminal), [b"Stopped", b"Running", b"Stopped"])
    yield
    expect("jobs", states(terminal), [b"Stopped", b"Running", b"Stopped"])
    expect("state", state(waiting), "T")
    terminal.say(b"fg %3", rb"cat -\r\n")
    terminal.say(b"to the third", rb"to the third\r\nto the third\r\n")
    terminal.type(INTERRUPT)
    terminal.until(PROMPT)
    terminal.say(b"fg %1", rb"cat\r\n")
    terminal.say(b"to the first", rb"to the first\r\nto the first\r\n")
    terminal.type(SUSPEND)
    terminal.until(rb"Stopped +cat\r\n" + PROMPT)
    terminal.say(b"fg %1", rb"cat\r\n")
    terminal.say(b"again", rb"again\r\nagain\r\n")
    terminal.type(b"\x04")
    terminal.until(PROMPT)
    expect("by a signal", answer(terminal, b"kill %2; wait %2; echo $?")[-4:], b"143\n")
    finish(terminal)


@program
def interrupt():
    """Ctrl-C through the master ends the whole foreground, and not the shell."""
    terminal = shell("--noediting")
    terminal.type(b"cat | cat\n")
    terminal.say(b"echoed", rb"echoed\r\nechoed\r\n")
    yield
    terminal.say(b"again", rb"again\r\nagain\r\n")
    terminal.type(INTERRUPT)
    terminal.until(PROMPT)
    expect("status", answer(terminal, b"echo ${PIPESTATUS[@]}"), b"130 130\n")
    finish(terminal)


@program
def window():
    """Who works in the foreground is told when the window changes, and sees its size."""

    def action():
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGWINCH, lambda *_: None)
        ready = [reader]
        while 0 not in ready:
            size = os.get_terminal_size(0)
            os.write(1, b"window %d %d\n" % (size.columns, size.lines))
            ready = select.select([0, reader], [], [])[0]
            if reader in ready:
                os.read(reader, 100)

    terminal = Terminal(action)
    terminal.until(rb"window 0 0\r\n")
    terminal.resize(30, 100)
    terminal.until(rb"window 100 30\r\n")
    yield
    terminal.resize(31, 101)
    terminal.until(rb"window 101 31\r\n")
    terminal.type(b"end\n")
    expect("status", terminal.status(), 0)


@program
def raw_and_cooked():
    """A child that reads every byte, and goes back to lines."""

    def action():
        cooked = termios.tcgetattr(0)
        tty.setraw(0)
        os.write(1, b"raw\n")
        while (byte := os.read(0, 1)) != b"q":
            os.write(1, byte.hex().encode() + b"\n")
        termios.tcsetattr(0, termios.TCSADRAIN, cooked)
        os.write(1, b"cooked\n")
        os.write(1, b"line " + os.read(0, 100))

    terminal = Terminal(action)
    terminal.until(rb"raw\n")
    terminal.say(b"\x03", rb"03\n0a\n")
    yield
    terminal.type(b"\x04\x1a")
    terminal.until(rb"04\n1a\n")
    terminal.type(b"q")
    terminal.until(rb"cooked\r\n")
    terminal.type(b"abd\x7fc\n")
    terminal.until(rb"line abc\r\n")
    expect("status", terminal.status(), 0)


@program
def data_both_ways():
    """The child is busy; lines that were typed, and what it printed, wait."""

    def action():
        attributes = termios.tcgetattr(0)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(0, termios.TCSANOW, attributes)
        for number in range(100):
            os.write(1, b"line %d\n" % number)
        os.kill(os.getpid(), signal.SIGSTOP)
        for _ in range(3):
            os.write(1, b"read " + os.read(0, 100))

    terminal = Terminal(action)
    os.waitid(os.P_PID, terminal.pid, os.WSTOPPED)
    terminal.type(b"one\ntwo\nthr")
    yield
    os.kill(terminal.pid, signal.SIGCONT)
    terminal.type(b"ee\n")
    found = terminal.until(rb"read three\r\n")
    printed = b"".join(b"line %d\n" % number for number in range(100))
    expect("printed", found, printed + b"read one\nread two\n")
    expect("status", terminal.status(), 0)


@program
def hang_up():
    """When the master is closed, the session's foreground and its leader get SIGHUP."""

    def action():
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(writer)
            os.setpgid(0, 0)
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpgrp())
            print("foreground", flush=True)
            signal.pause()
        os.close(reader)
        signal.pause()

    terminal = Terminal(action)
    terminal.until(rb"foreground\r\n")
    (child,) = children(terminal.pid)
    yield
    with open(os.pidfd_open(child), "rb", buffering=0) as ended:
        os.close(terminal.master)
        expect("leader", terminal.status(), -signal.SIGHUP)
        expect("child", select.select([ended], [], [], PATIENCE)[0], [ended])


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return list(map(int, file.read().split()))


@program
def own_terminal():
    """Children open /dev/tty, and one has given it up."""

    def action():
        without = os.fork()
        if without == 0:
            own = os.open("/dev/tty", os.O_RDWR)
            fcntl.ioctl(own, termios.TIOCNOTTY)
            os.close(own)
            os.write(1, b"has none\n")
            signal.signal(signal.SIGUSR1, lambda *_: None)
            signal.pause()
            with contextlib.suppress(OSError):
                os.open("/dev/tty", os.O_RDWR)
                os._exit(1)
            os._exit(0)
        user = os.fork()
        if user == 0:
            with open("/dev/tty") as own:
                os.write(1, b"has one\n")
                os.write(1, b"read " + own.readline().encode())
            os._exit(0)
        os.waitpid(user, 0)
        os.kill(without, signal.SIGUSR1)
        status = os.waitpid(without, 0)[1]
        own = os.open("/dev/tty", os.O_RDWR)
        os.write(1, b"foreground %d\n" % (os.tcgetpgrp(own) == os.getpgrp()))
        os._exit(os.waitstatus_to_exitcode(status))

    terminal = Terminal(action)
    terminal.until(rb"(?s)has none\r\n.*has one\r\n|has one\r\n.*has none\r\n")
    until_state(terminal.pid, "S")
    yield
    terminal.type(b"a line\n")
    terminal.until(rb"read a line\r\n")
    terminal.until(rb"foreground 1\r\n")
    expect("status", terminal.status(), 0)


@program
def terminal_in_a_terminal():
    """A program that starts a shell in a terminal of its own, as script(1) does."""

    def action():
        tty.setraw(0)
        status = pty.spawn(["bash", "--norc", "--noprofile", "--noediting", "-i"])
        os._exit(os.waitstatus_to_exitcode(status))

    os.environ["PS1"] = PROMPT.decode()
    terminal = Terminal(action)
    terminal.until(PROMPT)
    terminal.type(b"cat\n")
    terminal.say(b"inner", rb"inner\r\ninner\r\n")
    yield
    terminal.say(b"still", rb"still\r\nstill\r\n")
    terminal.type(SUSPEND)
    terminal.until(rb"Stopped +cat\r\n" + PROMPT)
    terminal.say(b"fg", rb"cat\r\n")
    terminal.type(b"\x04")
    terminal.until(PROMPT)
    finish(terminal)


if __name__ == "__main__":
    main()
