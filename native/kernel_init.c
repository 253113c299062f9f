/* The kernel-init: pid 1 of a restored process's pid namespace, and its parent.
 *
 *   kernel-init --control FD [--files FD] --pid N --ppid N --sid N --pgid N [--uid-map "IN OUT"]
 *               [--gid-map "IN OUT"] [--monotonic "SEC NSEC"] [--boottime "SEC NSEC"]
 *               [--bounding HEX] [--ipc] [--folder PATH --options TEXT]... [--own PATH]...
 *               [--terminals] [--report FD] [--keep FD]... STUB
 *
 * 1. Enters new user (when maps are given), pid, mount and time namespaces.
 * 2. Forks pid 1, which enters a new IPC namespace where that is asked for, so that only processes
 *    of the new pid namespace are in it. It mounts a /proc of its own if it may and, where asked
 *    for, a /dev/pts (--terminals), and file systems in memory over folders, into which it binds
 *    what the host has there but for the names that will be the restored process's own (those of
 *    folders end with a slash). Then it makes the processes that the restored one remembers:
 *    session leader, parent, group leader, each with its old pid (clone3(2), set_tid, Linux 5.5).
 *    Programs that watch getppid(2), such as ipykernel, find what they expect.
 * 3. The last one becomes the stub. Over the control socket, of type SOCK_SEQPACKET with
 *    SO_PASSCRED on the driver's side, pid 1 sends "init" (or "init without /proc") and the
 *    stub-to-be "stub", so that the driver learns both pids in its own namespace (unix(7)); then it
 *    waits for one byte and executes STUB. The driver seizes it meanwhile. A closed socket ends it.
 * 4. Pid 1 reaps, forwards signals to the restored process and ends with its status; the kernel
 *    then kills whatever is left in the namespace. Over the report socket the parent sends a wait
 *    status (an int, waitpid(2)) whenever the restored process stops, continues or ends.
 *
 * A failure is sent as "error STEP: TEXT".
 *
 * From the pipe of --files the parent of pid 1 learns, when all has ended, which files the driver
 * has made for the restored process: paths, each with a zero byte behind it. It removes them,
 * unless the last one is empty: then the process ran, and they are its own. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x00000080
#endif
#ifndef CAP_CHECKPOINT_RESTORE
#define CAP_CHECKPOINT_RESTORE 40
#endif

enum { MAX_KEEP = 64, CAP_WORDS = 2 };

static int control = -1, report = -1, files = -1;
static volatile pid_t forward_to;

static struct {
  pid_t pid, ppid, sid, pgid;
  const char *uid_map, *gid_map, *monotonic, *boottime, *stub;
  unsigned long long bounding;
  int keep[MAX_KEEP], kept, ipc, folders, owned;
  const char **folder, **options, **own;
  int terminals;
} want = {.bounding = ~0ULL};

__attribute__((noreturn)) static void fail(const char *step) {
  char text[256];
  int length = snprintf(text, sizeof text, "error %s: %s", step, strerror(errno));
  if (control >= 0)
    (void)!write(control, text, (size_t)length);
  _exit(111);
}

static void write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0 || write(fd, text, strlen(text)) < 0)
    fail(path);
  close(fd);
}

static void write_map(const char *path, const char *map) {
  char line[80];
  snprintf(line, sizeof line, "%s 1\n", map);
  write_file(path, line);
}

static void forward(int signal) {
  if (forward_to > 0)
    kill(forward_to, signal);
}

static void forward_signals_to(pid_t child) {
  static const int forwarded[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
  struct sigaction action = {.sa_handler = forward, .sa_flags = SA_RESTART};
  forward_to = child;
  for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; i++)
    sigaction(forwarded[i], &action, NULL);
}

/* A process that only stands for another: signals to the restored one's group are not for it. */
static void ignore_signals(void) {
  for (int signal = 1; signal < 32; signal++)
    if (signal != SIGCHLD)
      sigaction(signal, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
}

/* Close all descriptors but `kept` and have /dev/null as standard streams: whoever reads from the
 * caller's pipes must not wait for this process. */
static void close_everything_but(int kept) {
  control = -1;
  for (int fd = 0; fd < 3; fd++)
    close(fd);
  if (kept < 3)
    kept = 2;
  if ((kept > 3 && syscall(SYS_close_range, 3, kept - 1, 0)) ||
      syscall(SYS_close_range, kept + 1, ~0U, 0))
    for (int fd = 3; fd < 65536; fd++)
      if (fd != kept)
        close(fd);
  int null = open("/dev/null", O_RDWR);
  if (null == 0) {
    (void)!dup(0);
    (void)!dup(0);
  }
}

/* Remove what the driver has made for a process that never ran. */
static void remove_files(void) {
  static char paths[1 << 16];
  size_t length = 0;
  ssize_t more;
  if (files < 0 || fcntl(files, F_SETFL, O_NONBLOCK))
    return;
  while (length < sizeof paths - 1 &&
         (more = read(files, paths + length, sizeof paths - 1 - length)) > 0)
    length += (size_t)more;
  if (length == 0 || paths[length - 1] || length == 1 || !paths[length - 2])
    return;
  for (char *path = paths; path < paths + length; path += strlen(path) + 1)
    unlink(path);
}

/* Reap until `child` ends; return its status as an exit code. Report what becomes of it. */
static int wait_for(pid_t child, int report) {
  for (;;) {
    int status;
    pid_t gone = waitpid(-1, &status, report < 0 ? 0 : WUNTRACED | WCONTINUED);
    if (gone == child && report >= 0)
      (void)!send(report, &status, sizeof status, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (gone == child && !WIFSTOPPED(status) && !WIFCONTINUED(status))
      return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (gone < 0 && errno == ECHILD)
      return 111;
  }
}

static pid_t clone_with_pid(pid_t pid) {
  pid_t set_tid[1] = {pid};
  struct clone_args arguments = {
      .exit_signal = SIGCHLD, .set_tid = (uintptr_t)set_tid, .set_tid_size = 1};
  long child = syscall(SYS_clone3, &arguments, sizeof arguments);
  if (child < 0)
    fail("clone3 with set_tid");
  return (pid_t)child;
}

static void keep_one_capability(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[CAP_WORDS];
  if (syscall(SYS_capget, &header, data))
    fail("capget");
  data[CAP_CHECKPOINT_RESTORE / 32].inheritable |= 1U << CAP_CHECKPOINT_RESTORE % 32;
  if (syscall(SYS_capset, &header, data))
    fail("capset");
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHECKPOINT_RESTORE, 0, 0))
    fail("ambient capability");
}

static void drop_bounding_set(void) {
  for (int capability = 0; capability < 64; capability++)
    if (!(want.bounding >> capability & 1) && prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1)
      prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
}

__attribute__((noreturn)) static void become_stub(void) {
  if (want.sid == want.pid || want.sid == 0)
    setsid();
  else if (want.pgid == want.pid)
    setpgid(0, 0);
  else if (want.pgid > 0 && setpgid(0, want.pgid))
    fail("setpgid");
  struct rlimit files;
  if (!getrlimit(RLIMIT_NOFILE, &files)) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  if (want.uid_map)
    keep_one_capability(); /* while the bounding set still allows it */
  drop_bounding_set();
  if (write(control, "stub", 4) != 4)
    _exit(111);
  char go;
  if (read(control, &go, 1) != 1)
    _exit(111);
  for (int i = 0; i < want.kept; i++)
    fcntl(want.keep[i], F_SETFD, 0);
  fcntl(control, F_SETFD, FD_CLOEXEC);
  char *arguments[] = {(char *)want.stub, NULL}, *environment[] = {NULL};
  execve(want.stub, arguments, environment);
  fail("execute the stub");
}

/* Make the next process of the chain session leader -> parent -> restored process, each a child
 * of the one before; `level` says which. Never returns. */
__attribute__((noreturn)) static void descend(int level) {
  pid_t next = want.pid;
  if (level == 0 && want.sid > 1 && want.sid != want.pid && want.sid != want.ppid)
    next = want.sid;
  else if (level <= 1 && want.ppid > 1)
    next = want.ppid;
  pid_t group = 0;
  if (next == want.pid && want.pgid > 1 && want.pgid != want.pid && want.pgid != want.ppid &&
      want.pgid != want.sid && (group = clone_with_pid(want.pgid)) == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    ignore_signals();
    close_everything_but(-1);
    for (;;)
      pause();
  }
  if (group)
    setpgid(group, group);
  pid_t child = clone_with_pid(next);
  if (child == 0) {
    if (next == want.pid)
      become_stub();
    if (next == want.sid && setsid() < 0)
      fail("setsid");
    if (next == want.pgid && next != want.sid && setpgid(0, 0))
      fail("setpgid");
    descend(next == want.sid && next != want.ppid ? 1 : 2);
  }
  if (level == 0)
    forward_signals_to(want.pid);
  else
    ignore_signals();
  int told = next == want.pid ? report : -1;
  close_everything_but(told);
  exit(wait_for(child, told));
}

/* Every mount of devpts is an instance with numbers of its own (Linux 4.7). Group 5 is "tty"
 * nearly everywhere; in a user namespace it is not there. */
static void mount_terminals(void) {
  const unsigned long flags = MS_NOSUID | MS_NOEXEC;
  if (mount("devpts", "/dev/pts", "devpts", flags, "ptmxmode=0666,mode=0620,gid=5") &&
      mount("devpts", "/dev/pts", "devpts", flags, "ptmxmode=0666,mode=0620"))
    fail("mount /dev/pts");
}

enum { NOT_OWN, OWN, ABOVE_OWN };

/* Whether a path is one of the restored process's own, or a folder of such. */
static int whose(const char *path) {
  size_t length = strlen(path);
  int found = NOT_OWN;
  for (int i = 0; i < want.owned; i++)
    if (!strcmp(want.own[i], path))
      return OWN;
    else if (!strncmp(want.own[i], path, length) && want.own[i][length] == '/')
      found = ABOVE_OWN;
  return found;
}

/* Put something at a path that is the same as what is at `from`. What cannot be had is left out. */
static void bind_one(const char *from, const char *path, mode_t mode) {
  char target[PATH_MAX];
  if (S_ISLNK(mode)) {
    ssize_t end = readlink(from, target, sizeof target - 1);
    if (end > 0) {
      target[end] = 0;
      (void)!symlink(target, path);
    }
  } else if (S_ISDIR(mode)) {
    if (!mkdir(path, 0700) && mount(from, path, NULL, MS_BIND | MS_REC, NULL))
      rmdir(path);
  } else {
    if (!mknod(path, S_IFREG | 0600, 0) && mount(from, path, NULL, MS_BIND, NULL))
      unlink(path);
  }
}

/* Bind what is in a folder of the host, which is open, to the same names in `folder`. */
static void bind_all(int host, const char *folder) {
  char path[PATH_MAX], from[PATH_MAX];
  DIR *entries = fdopendir(host);
  for (struct dirent *entry; entries && (entry = readdir(entries));) {
    struct stat status;
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name) >= (int)sizeof path ||
        fstatat(host, entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
      continue;
    int mine = whose(path);
    int inner = mine == ABOVE_OWN && S_ISDIR(status.st_mode)
                    ? openat(host, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                    : -1;
    if (inner >= 0)
      bind_all(inner, path);
    else if (mine == NOT_OWN) {
      snprintf(from, sizeof from, "/proc/self/fd/%d/%s", host, entry->d_name);
      bind_one(from, path, status.st_mode);
    }
  }
  if (entries)
    closedir(entries);
  else
    close(host);
}

/* A file system of our own over a folder, with the folders that will be needed in it. */
static void mount_folder(const char *folder, const char *options) {
  char path[PATH_MAX];
  size_t length = strlen(folder);
  int host = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (host < 0 || mount("snapkernel", folder, "tmpfs", MS_NOSUID | MS_NODEV, options))
    fail("mount a private folder");
  for (int i = 0; i < want.owned; i++) {
    if (strncmp(want.own[i], folder, length) || want.own[i][length] != '/')
      continue;
    for (const char *end = want.own[i] + length + 1; (end = strchr(end, '/')); end++) {
      snprintf(path, sizeof path, "%.*s", (int)(end - want.own[i]), want.own[i]);
      if (mkdir(path, 0700) && errno != EEXIST)
        fail("make a folder in a private folder");
    }
  }
  bind_all(host, folder);
}

__attribute__((noreturn)) static void run_init(void) {
  if (setsid() < 0)
    fail("setsid");
  if (want.ipc && unshare(CLONE_NEWIPC))
    fail("new IPC namespace");
  /* What the host mounts and unmounts later goes for this namespace too, and not the other way. */
  if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL))
    fail("keep mounts to ourselves");
  const char *ready = "init";
  if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL)) {
    /* Where parts of /proc are hidden, as in containers, a user gets none that shows all. */
    if (errno != EPERM)
      fail("mount /proc");
    ready = "init without /proc";
  }
  for (int i = 0; i < want.folders; i++)
    mount_folder(want.folder[i], want.options[i]);
  if (want.terminals)
    mount_terminals();
  if (write(control, ready, strlen(ready)) < 0)
    _exit(111);
  descend(0);
}

static void enter_namespaces(void) {
  char text[160];
  if (want.uid_map) {
    if (unshare(CLONE_NEWUSER))
      fail("new user namespace");
    write_file("/proc/self/setgroups", "deny");
    write_map("/proc/self/uid_map", want.uid_map);
    write_map("/proc/self/gid_map", want.gid_map);
  }
  if (unshare(CLONE_NEWPID | CLONE_NEWNS))
    fail("new pid and mount namespaces");
  if (want.monotonic) {
    if (unshare(CLONE_NEWTIME))
      fail("new time namespace");
    snprintf(text, sizeof text, "monotonic %s\nboottime %s\n", want.monotonic, want.boottime);
    write_file("/proc/self/timens_offsets", text);
  }
}

static void parse(int count, char **words) {
  static const struct option options[] = {
      {"control", 1, NULL, 'c'},  {"pid", 1, NULL, 'p'},       {"ppid", 1, NULL, 'P'},
      {"sid", 1, NULL, 's'},      {"pgid", 1, NULL, 'g'},      {"uid-map", 1, NULL, 'u'},
      {"gid-map", 1, NULL, 'G'},  {"monotonic", 1, NULL, 'm'}, {"boottime", 1, NULL, 'b'},
      {"bounding", 1, NULL, 'B'}, {"keep", 1, NULL, 'k'},      {"ipc", 0, NULL, 'i'},
      {"folder", 1, NULL, 'F'},   {"options", 1, NULL, 'O'},   {"own", 1, NULL, 'o'},
      {"report", 1, NULL, 'r'},   {"terminals", 0, NULL, 't'}, {"files", 1, NULL, 'f'},
      {NULL, 0, NULL, 0}};
  const char **words_of_each = calloc(3 * (size_t)count, sizeof *words_of_each);
  if (!words_of_each)
    exit(2);
  want.folder = words_of_each;
  want.options = words_of_each + count;
  want.own = words_of_each + 2 * count;
  for (int option; (option = getopt_long(count, words, "", options, NULL)) != -1;)
    switch (option) {
    case 'c': control = atoi(optarg); break;
    case 'f': files = atoi(optarg); break;
    case 'p': want.pid = atoi(optarg); break;
    case 'P': want.ppid = atoi(optarg); break;
    case 's': want.sid = atoi(optarg); break;
    case 'g': want.pgid = atoi(optarg); break;
    case 'u': want.uid_map = optarg; break;
    case 'G': want.gid_map = optarg; break;
    case 'm': want.monotonic = optarg; break;
    case 'b': want.boottime = optarg; break;
    case 'i': want.ipc = 1; break;
    case 'F': want.folder[want.folders++] = optarg; break;
    case 'O': want.options[want.folders ? want.folders - 1 : 0] = optarg; break;
    case 'o': want.own[want.owned++] = optarg; break;
    case 'r': report = atoi(optarg); break;
    case 't': want.terminals = 1; break;
    case 'B': want.bounding = strtoull(optarg, NULL, 16); break;
    case 'k':
      if (want.kept == MAX_KEEP)
        exit(2);
      want.keep[want.kept++] = atoi(optarg);
      break;
    default: exit(2);
    }
  if (optind != count - 1 || control < 0 || want.pid < 2 || !want.uid_map != !want.gid_map ||
      !want.monotonic != !want.boottime) {
    fputs("kernel-init: started by snapkernel, not by hand\n", stderr);
    exit(2);
  }
  want.stub = words[optind];
}

int main(int count, char **words) {
  parse(count, words);
  enter_namespaces();
  pid_t init = fork();
  if (init < 0)
    fail("fork");
  if (init == 0)
    run_init();
  forward_signals_to(init);
  close_everything_but(files);
  int status = wait_for(init, -1);
  remove_files();
  return status;
}
