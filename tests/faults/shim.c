/* Preloaded into a process, this lets one chosen system call that changes files fail, or the process die in it.

   Calls that write, create, rename, sync, cut or remove something under the folder FAULT_ROOT are counted. arm(n, mode)
   chooses the n-th from now on, counted from 0: mode 'k' kills the process (a write does its first half before), mode
   'f' lets the call fail as on a full disk, and from then on every one by which something would grow. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long left = -1, counted = 0;
static char armed = 0, is_full = 0;

void arm(long calls, char mode) { left = calls, armed = mode, counted = 0; }
long count(void) { return counted; }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int is_ours(const char *path) {
    const char *root = getenv("FAULT_ROOT");
    return root && path && strncmp(path, root, strlen(root)) == 0;
}

static int fd_is_ours(int fd) {
    char link[40], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_ours(path);
}

static int path_is_ours(int dir, const char *path) {
    char here[PATH_MAX];
    if (path[0] == '/') return is_ours(path);
    return dir == AT_FDCWD ? is_ours(getcwd(here, sizeof here)) : fd_is_ours(dir);
}

/* Whether the call at hand has to fail. A write that is to be the last thing done does half of its work. */
static int fails(int grows, int fd, const void *data, size_t size) {
    counted++;
    if (armed && left-- == 0) {
        if (armed == 'k') {
            if (data && size > 1 && REAL(write)(fd, data, size / 2) < 0) _exit(99);
            kill(getpid(), SIGKILL);
            pause();
        }
        is_full = grows = 1;
    }
    if (is_full && grows) errno = ENOSPC;
    return is_full && grows;
}

ssize_t write(int fd, const void *data, size_t size) {
    if (fd_is_ours(fd) && fails(1, fd, data, size)) return -1;
    return REAL(write)(fd, data, size);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    if (fd_is_ours(fd) && fails(1, fd, NULL, 0)) return -1;
    return REAL(writev)(fd, parts, n);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    if (fd_is_ours(fd) && fails(1, fd, NULL, 0)) return -1;
    return REAL(pwrite64)(fd, data, size, place);
}
int fsync(int fd) { return fd_is_ours(fd) && fails(0, fd, NULL, 0) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return fd_is_ours(fd) && fails(0, fd, NULL, 0) ? -1 : REAL(fdatasync)(fd); }
int ftruncate64(int fd, off64_t n) { return fd_is_ours(fd) && fails(0, fd, NULL, 0) ? -1 : REAL(ftruncate64)(fd, n); }
int rename(const char *a, const char *b) {
    return path_is_ours(AT_FDCWD, b) && fails(0, -1, NULL, 0) ? -1 : REAL(rename)(a, b);
}
int renameat(int da, const char *a, int db, const char *b) {
    return path_is_ours(db, b) && fails(0, -1, NULL, 0) ? -1 : REAL(renameat)(da, a, db, b);
}
int renameat2(int da, const char *a, int db, const char *b, unsigned flags) {
    return path_is_ours(db, b) && fails(0, -1, NULL, 0) ? -1 : REAL(renameat2)(da, a, db, b, flags);
}
int unlink(const char *p) { return path_is_ours(AT_FDCWD, p) && fails(0, -1, NULL, 0) ? -1 : REAL(unlink)(p); }
int unlinkat(int d, const char *p, int f) { return path_is_ours(d, p) && fails(0, -1, NULL, 0) ? -1 : REAL(unlinkat)(d, p, f); }
int rmdir(const char *p) { return path_is_ours(AT_FDCWD, p) && fails(0, -1, NULL, 0) ? -1 : REAL(rmdir)(p); }
int mkdir(const char *p, mode_t m) { return path_is_ours(AT_FDCWD, p) && fails(1, -1, NULL, 0) ? -1 : REAL(mkdir)(p, m); }

static int creates(int dir, const char *path, int flags) {
    return (flags & (O_CREAT | O_TRUNC)) && path_is_ours(dir, path) && fails(1, -1, NULL, 0);
}
#define MODE(flags) mode_t mode = 0; if (flags & O_CREAT) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }
int open(const char *p, int flags, ...) { MODE(flags) return creates(AT_FDCWD, p, flags) ? -1 : REAL(open)(p, flags, mode); }
int open64(const char *p, int flags, ...) { MODE(flags) return creates(AT_FDCWD, p, flags) ? -1 : REAL(open64)(p, flags, mode); }
int openat(int d, const char *p, int flags, ...) { MODE(flags) return creates(d, p, flags) ? -1 : REAL(openat)(d, p, flags, mode); }
int openat64(int d, const char *p, int flags, ...) { MODE(flags) return creates(d, p, flags) ? -1 : REAL(openat64)(d, p, flags, mode); }
