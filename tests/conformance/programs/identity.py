"""What a process is: its names, places, limits and relations."""

import fcntl
import os
import resource
import select
import signal
import subprocess
import sys

from protocol import expect, main, program


@program
def working_directory():
    os.mkdir("inner")
    os.chdir("inner")
    place = os.getcwd()
    yield
    expect("cwd", os.getcwd(), place)
    with open("relative", "w") as file:
        file.write("x")
    assert os.path.exists(f"{place}/relative")


@program
def creation_mask():
    os.umask(0o027)
    yield
    expect("umask", os.umask(0o022), 0o027)


@program
def names():
    """argv, exe, comm and the environment, from inside and from /proc."""
    os.environ["SET_LATER"] = "value"
    with open("/proc/self/comm", "w") as file:
        file.write("conformance")

    def seen() -> dict[str, object]:
        found: dict[str, object] = {"argv": sys.orig_argv, "environ": dict(os.environ)}
        for name in ("cmdline", "environ", "comm", "auxv"):
            with open(f"/proc/self/{name}", "rb") as file:
                found[f"/proc/self/{name}"] = file.read()
        found["exe"] = os.readlink("/proc/self/exe")
        with open("/proc/self/stat") as stat:  # proc_pid_stat(5): addresses of code, data, stack
            fields = stat.read().rpartition(")")[2].split()
        found["layout"] = fields[23:26] + fields[42:49]
        return found

    before = seen()
    yield
    after = seen()
    for name, value in before.items():
        expect(name, after[name], value)


@program
def numbers():
    """Process, parent, group, session and thread ids, users and groups."""

    def seen() -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "group": os.getpgid(0),
            "session": os.getsid(0),
            "users": os.getresuid(),
            "groups": os.getresgid(),
            "supplementary groups": sorted(os.getgroups()),
        }

    before = seen()
    yield
    after = seen()
    for name, value in before.items():
        expect(name, after[name], value)


@program
def privileges():
    """Capabilities and the like, as /proc/self/status shows them (capabilities(7))."""
    wanted = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")

    def seen() -> dict[str, str]:
        with open("/proc/self/status") as status:
            lines = (line.split(":", 1) for line in status)
            return {name: value.strip() for name, value in lines if name in wanted}

    before = seen()
    yield
    expect("privileges", seen(), before)


@program
def limits():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (321, hard))
    resource.setrlimit(resource.RLIMIT_STACK, (16 << 20, -1))

    def seen() -> dict[int, tuple[int, int]]:
        return {kind: resource.getrlimit(kind) for kind in range(16)}

    before = seen()
    yield
    expect("limits", seen(), before)


@program
def scheduling():
    os.nice(5)
    processor = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processor})
    yield
    expect("nice", os.nice(0), 5)
    expect("processors", os.sched_getaffinity(0), {processor})


@program
def batch_scheduling():
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    yield
    expect("policy", os.sched_getscheduler(0), os.SCHED_BATCH)


@program
def oom_score():
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("300")
    yield
    with open("/proc/self/oom_score_adj") as file:
        expect("oom_score_adj", int(file.read()), 300)


@program
def own_executable():
    """/proc/self/exe can be started."""
    yield
    command = ["/proc/self/exe", "-S", "-c", "print(6 * 7)"]
    expect("answer", subprocess.check_output(command, text=True), "42\n")


@program
def subprocesses():
    """Children can be started and waited for."""
    before = subprocess.run(["true"], check=False).returncode
    yield
    expect("before", before, 0)
    done = subprocess.run("echo $((6*7)); exit 3", shell=True, capture_output=True, text=True)
    expect("after", (done.stdout, done.returncode), ("42\n", 3))
    child = os.fork()
    if child == 0:
        os._exit(7)
    expect("fork", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 7)
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return
    raise AssertionError("there is a child that the program never started")


@program
def no_strange_children():
    """The hidden child of a live checkpoint is not seen by wait(2), and no SIGCHLD arrives."""
    import signal

    arrived = []
    signal.signal(signal.SIGCHLD, lambda *_: arrived.append("SIGCHLD"))
    yield
    try:
        found = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        found = None
    expect("child", found, None)
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        expect("children", children.read(), "")
    expect("signals", arrived, [])


@program
def own_pid_descriptor():
    """pidfd_open(2) of the process itself: signals sent through it arrive."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    fd = os.pidfd_open(os.getpid(), os.O_NONBLOCK)
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    yield
    expect("flags", fcntl.fcntl(fd, fcntl.F_GETFL), flags)
    with open(f"/proc/self/fdinfo/{fd}") as info:
        expect("pid", info.read().partition("NSpid:")[2].split()[-1], str(os.getpid()))
    expect("has ended", select.select([fd], [], [], 0)[0], [])
    signal.pidfd_send_signal(fd, signal.SIGUSR1)
    expect("told", signal.sigtimedwait([signal.SIGUSR1], 30).si_pid, os.getpid())


if __name__ == "__main__":
    main()
