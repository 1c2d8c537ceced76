/* Counts the calls that change files below one folder, and kills or fails the process at one.

   Loaded with LD_PRELOAD before libc. Python arms it through ctypes:

       arm(folder, action, first, last, errno, kinds, trace)
           action  COUNT: only count; KILL: SIGKILL just before call `first`; TORN: half of the
                   bytes, then SIGKILL; FAIL: calls `first` to `last` (0: all after it) of `kinds`
                   return `errno`, without being made
           trace   a file descriptor that gets one line a call, or -1
       counted()   calls seen since
       disarm()    stop counting

   What calls libc from inside libc (fopen, mkstemp) is not seen; nothing here writes that way. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, TORN, FAIL };
enum { WRITE = 1, MAKE = 2, SYNC = 4, MOVE = 8, REMOVE = 16, OPEN = 32 };
#define LINE (3 * PATH_MAX)

static char folder[PATH_MAX];
static int armed, action, wanted_errno, kinds, trace = -1;
static long first, last;
static atomic_long seen;

void arm(const char *path, int what, long from, long to, int error, int which, int traced) {
  armed = 0;
  strncpy(folder, path, PATH_MAX - 1);
  action = what, first = from, last = to, wanted_errno = error, kinds = which, trace = traced;
  seen = 0;
  armed = 1;
}

void disarm(void) { armed = 0; }

long counted(void) { return seen; }

static void die(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

/* Take `.`, `..` and doubled slashes out of an absolute path. */
static void tidy(char *path) {
  char *to = path, *from = path;
  while (*from) {
    while (*from == '/') from++;
    size_t size = strcspn(from, "/");
    if (size == 2 && from[0] == '.' && from[1] == '.') {
      while (to > path && *--to != '/');
    } else if (size && !(size == 1 && from[0] == '.')) {
      *to++ = '/';
      memmove(to, from, size);
      to += size;
    }
    from += size;
  }
  *to = 0;
}

/* The absolute path that a call names: `name` seen from folder `at`, or the file open as `at`. */
static void resolved(int at, const char *name, char *out) {
  char link[64];
  if (name && name[0] == '/') {
    snprintf(out, PATH_MAX, "%s", name);
    tidy(out);
    return;
  }
  if (at == AT_FDCWD)
    snprintf(link, sizeof link, "/proc/self/cwd");
  else
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
  ssize_t size = readlink(link, out, PATH_MAX - 1);
  out[size < 0 ? 0 : size] = 0;
  if (name && size > 0 && size + strlen(name) + 2 < PATH_MAX) {
    out[size] = '/';
    strcpy(out + size + 1, name);
    tidy(out);
  }
}

static int below(const char *path) {
  size_t size = strlen(folder);
  return !strncmp(path, folder, size) && (path[size] == '/' || path[size] == 0);
}

static void note(long number, const char *call, const char *path, const char *other, long bytes) {
  char line[LINE];
  int size = snprintf(line, LINE, "%ld\t%s\t%ld\t%s\t%s\n", number, call, bytes, path, other);
  if (trace >= 0) syscall(SYS_write, trace, line, size < LINE ? size : LINE - 1);
}

/* What happens to a call: 0 it is made, -1 it fails (errno is set), 1 half of it, then the end. */
static int judge(const char *call, int kind, int at, const char *name, int to, const char *other,
                 long bytes) {
  char path[PATH_MAX], second[PATH_MAX] = "";
  int before = errno, verdict = 0;
  if (!armed) return 0;
  resolved(at, name, path);
  if (other) resolved(to, other, second);
  if (below(path) || (other && below(second))) {
    long number = atomic_fetch_add(&seen, 1) + 1;
    note(number, call, path, second, bytes);
    if (action == KILL && number == first) die();
    if (action == TORN && number == first) {
      if (kind != WRITE) die();
      verdict = 1;
    }
    if (action == FAIL && number >= first && (!last || number <= last) && (kind & kinds))
      verdict = -1;
  }
  errno = verdict < 0 ? wanted_errno : before;
  return verdict;
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* A call that is made whole or not at all. */
#define WHOLE(result, name, declared, passed, kind, at, path, to, other, bytes) \
  result name declared { \
    REAL(name); \
    if (judge(#name, kind, at, path, to, other, bytes) < 0) return -1; \
    return real passed; \
  }

/* A call that moves `size` bytes and may be torn; `halved` are its arguments with half of them. */
#define PIECES(name, declared, passed, halved, at, size) \
  ssize_t name declared { \
    REAL(name); \
    int verdict = judge(#name, WRITE, at, NULL, 0, NULL, size); \
    if (verdict < 0) return -1; \
    if (!verdict) return real passed; \
    (void)!real halved; \
    die(); \
    return -1; \
  }

static long total(const struct iovec *pieces, int count) {
  long bytes = 0;
  for (int i = 0; i < count; i++) bytes += pieces[i].iov_len;
  return bytes;
}

PIECES(write, (int fd, const void *from, size_t size), (fd, from, size), (fd, from, size / 2), fd,
       size)
PIECES(pwrite, (int fd, const void *from, size_t size, off_t where), (fd, from, size, where),
       (fd, from, size / 2, where), fd, size)
PIECES(pwrite64, (int fd, const void *from, size_t size, off64_t where), (fd, from, size, where),
       (fd, from, size / 2, where), fd, size)
PIECES(writev, (int fd, const struct iovec *pieces, int count), (fd, pieces, count),
       (fd, pieces, count / 2), fd, total(pieces, count))
PIECES(pwritev, (int fd, const struct iovec *pieces, int count, off_t where),
       (fd, pieces, count, where), (fd, pieces, count / 2, where), fd, total(pieces, count))
PIECES(pwritev64, (int fd, const struct iovec *pieces, int count, off64_t where),
       (fd, pieces, count, where), (fd, pieces, count / 2, where), fd, total(pieces, count))
PIECES(sendfile, (int fd, int from, off_t *where, size_t size), (fd, from, where, size),
       (fd, from, where, size / 2), fd, size)
PIECES(sendfile64, (int fd, int from, off64_t *where, size_t size), (fd, from, where, size),
       (fd, from, where, size / 2), fd, size)
PIECES(copy_file_range,
       (int from, off64_t *begin, int fd, off64_t *where, size_t size, unsigned flags),
       (from, begin, fd, where, size, flags), (from, begin, fd, where, size / 2, flags), fd, size)

WHOLE(int, ftruncate, (int fd, off_t size), (fd, size), MAKE, fd, NULL, 0, NULL, size)
WHOLE(int, ftruncate64, (int fd, off64_t size), (fd, size), MAKE, fd, NULL, 0, NULL, size)
WHOLE(int, truncate, (const char *path, off_t size), (path, size), MAKE, AT_FDCWD, path, 0, NULL,
      size)
WHOLE(int, truncate64, (const char *path, off64_t size), (path, size), MAKE, AT_FDCWD, path, 0,
      NULL, size)
WHOLE(int, fallocate, (int fd, int mode, off_t from, off_t size), (fd, mode, from, size), MAKE, fd,
      NULL, 0, NULL, size)
WHOLE(int, fallocate64, (int fd, int mode, off64_t from, off64_t size), (fd, mode, from, size),
      MAKE, fd, NULL, 0, NULL, size)
WHOLE(int, fsync, (int fd), (fd), SYNC, fd, NULL, 0, NULL, 0)
WHOLE(int, fdatasync, (int fd), (fd), SYNC, fd, NULL, 0, NULL, 0)
WHOLE(int, rename, (const char *old, const char *new), (old, new), MOVE, AT_FDCWD, old, AT_FDCWD,
      new, 0)
WHOLE(int, renameat, (int at, const char *old, int to, const char *new), (at, old, to, new), MOVE,
      at, old, to, new, 0)
WHOLE(int, renameat2, (int at, const char *old, int to, const char *new, unsigned flags),
      (at, old, to, new, flags), MOVE, at, old, to, new, 0)
WHOLE(int, link, (const char *old, const char *new), (old, new), MAKE, AT_FDCWD, old, AT_FDCWD,
      new, 0)
WHOLE(int, symlink, (const char *old, const char *new), (old, new), MAKE, AT_FDCWD, new, 0, NULL, 0)
WHOLE(int, mkdir, (const char *path, mode_t mode), (path, mode), MAKE, AT_FDCWD, path, 0, NULL, 0)
WHOLE(int, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), MAKE, at, path, 0,
      NULL, 0)
WHOLE(int, unlink, (const char *path), (path), REMOVE, AT_FDCWD, path, 0, NULL, 0)
WHOLE(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), REMOVE, at, path, 0,
      NULL, 0)
WHOLE(int, rmdir, (const char *path), (path), REMOVE, AT_FDCWD, path, 0, NULL, 0)

/* returns the error instead of setting it */
int posix_fallocate(int fd, off_t from, off_t size) {
  REAL(posix_fallocate);
  if (judge("posix_fallocate", MAKE, fd, NULL, 0, NULL, size) < 0) return wanted_errno;
  return real(fd, from, size);
}

int posix_fallocate64(int fd, off64_t from, off64_t size) {
  REAL(posix_fallocate64);
  if (judge("posix_fallocate64", MAKE, fd, NULL, 0, NULL, size) < 0) return wanted_errno;
  return real(fd, from, size);
}

/* Opening to write counts; where that makes a file, it needs room on the disk as well. */
static int refused(const char *call, int at, const char *path, int flags) {
  struct stat about;
  if (!armed || !(flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))) return 0;
  int before = errno;
  int makes = (flags & O_CREAT) && fstatat(at, path, &about, 0) != 0;
  errno = before;
  return judge(call, makes ? MAKE : OPEN, at, path, 0, NULL, 0) < 0;
}

static mode_t mode_of(int flags, va_list rest) {
  return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPENS(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = mode_of(flags, rest); \
    va_end(rest); \
    return refused(#name, AT_FDCWD, path, flags) ? -1 : real(path, flags, mode); \
  }

#define OPENS_AT(name) \
  int name(int at, const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = mode_of(flags, rest); \
    va_end(rest); \
    return refused(#name, at, path, flags) ? -1 : real(at, path, flags, mode); \
  }

#define CREATES(name) \
  int name(const char *path, mode_t mode) { \
    REAL(name); \
    if (refused(#name, AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC)) return -1; \
    return real(path, mode); \
  }

OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)
CREATES(creat)
CREATES(creat64)
