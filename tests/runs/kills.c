/* Counts what a process changes below one folder, and kills it, or fills its disk, at the k-th change.
 *
 * Preloaded with LD_PRELOAD. It does nothing until the process calls `arm`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, BEFORE, HALF, FULL }; /* HALF and FULL count only what takes room: writes, new files and folders */

static char folder[PATH_MAX];
static long changes, chosen;
static int how, trace = -1;

/* Count changes below a folder from now on. At the k-th of them: die BEFORE it or after HALF of it, or be FULL from then on.
 * Every change and every fsync is a line in the file `trace`, unless that is -1. */
void arm(const char *below, long k, int mode, int descriptor) {
    snprintf(folder, sizeof folder, "%s/", below);
    changes = 0, chosen = k, how = mode, trace = descriptor;
}

static int below(int directory, const char *path, char *full) {
    char link[64];
    ssize_t length = 0;
    if (!folder[0]) return 0;
    if (path == NULL || path[0] != '/') {
        if (directory == AT_FDCWD) {
            if (getcwd(full, PATH_MAX) == NULL) return 0;
            length = strlen(full);
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            length = readlink(link, full, PATH_MAX - 1);
            if (length < 0) return 0;
        }
        if (path != NULL) length += snprintf(full + length, PATH_MAX - length, "/%s", path);
        full[length] = 0;
    } else {
        snprintf(full, PATH_MAX, "%s", path);
    }
    size_t size = strlen(folder);
    return strncmp(full, folder, size) == 0 || (strlen(full) == size - 1 && strncmp(full, folder, size - 1) == 0);
}

static void note(const char *kind, const char *path) {
    if (trace >= 0) dprintf(trace, "%s %s\n", kind, path);
}

static void die(void) { kill(getpid(), SIGKILL); }

/* Count a change. Return 1 if it must fail for want of room, 2 if half of it must be done. */
static int change(const char *kind, const char *path, int takes_room) {
    if ((how == HALF && strcmp(kind, "write")) || (how == FULL && !takes_room)) return 0;
    changes++;
    note(kind, path);
    if (how == FULL && changes >= chosen) return errno = ENOSPC, 1;
    if (how == BEFORE && changes == chosen) die();
    return how == HALF && changes == chosen ? 2 : 0;
}

#define NEXT(name) static typeof(&name) next; if (next == NULL) next = dlsym(RTLD_NEXT, #name)
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define MODE(flags) va_list list; va_start(list, flags); \
    int mode = (flags) & (O_CREAT | __O_TMPFILE) ? va_arg(list, int) : 0; va_end(list)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        NEXT(name); MODE(flags); char full[PATH_MAX]; \
        if (WRITES(flags) && below(AT_FDCWD, path, full) && change("open", full, 1)) return -1; \
        return next(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        NEXT(name); MODE(flags); char full[PATH_MAX]; \
        if (WRITES(flags) && below(directory, path, full) && change("open", full, 1)) return -1; \
        return next(directory, path, flags, mode); \
    }
#define FOPEN(name) \
    FILE *name(const char *path, const char *flags) { \
        NEXT(name); char full[PATH_MAX]; \
        if (strpbrk(flags, "wa+") && below(AT_FDCWD, path, full) && change("open", full, 1)) return NULL; \
        return next(path, flags); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

#define WRITE(declaration, call, half) \
    declaration { \
        char full[PATH_MAX]; \
        int what = below(descriptor, NULL, full) ? change("write", full, 1) : 0; \
        if (what == 1) return -1; \
        if (what == 2) { half; die(); } \
        return call; \
    }
static ssize_t plain_write(int descriptor, const void *data, size_t size) {
    NEXT(write);
    return next(descriptor, data, size);
}
static ssize_t plain_pwrite(int descriptor, const void *data, size_t size, off64_t place) {
    NEXT(pwrite64);
    return next(descriptor, data, size, place);
}
static ssize_t plain_writev(int descriptor, const struct iovec *parts, int count) {
    NEXT(writev);
    return next(descriptor, parts, count);
}
WRITE(ssize_t write(int descriptor, const void *data, size_t size), plain_write(descriptor, data, size),
      plain_write(descriptor, data, size / 2))
WRITE(ssize_t pwrite(int descriptor, const void *data, size_t size, off_t place),
      plain_pwrite(descriptor, data, size, place), plain_pwrite(descriptor, data, size / 2, place))
WRITE(ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t place),
      plain_pwrite(descriptor, data, size, place), plain_pwrite(descriptor, data, size / 2, place))
WRITE(ssize_t writev(int descriptor, const struct iovec *parts, int count), plain_writev(descriptor, parts, count),
      plain_write(descriptor, parts[0].iov_base, parts[0].iov_len / 2))

#define CHANGE(kind, takes_room, name, declaration, directory, path, ...) \
    int name declaration { \
        NEXT(name); char full[PATH_MAX]; \
        if (below(directory, path, full) && change(kind, full, takes_room)) return -1; \
        return next(__VA_ARGS__); \
    }

/* A folder that exists is no change, whether there is room or not. */
#define MKDIR(name, declaration, directory, path, ...) \
    int name declaration { \
        NEXT(name); char full[PATH_MAX]; \
        if (below(directory, path, full) && access(full, F_OK) && change("mkdir", full, 1)) return -1; \
        return next(__VA_ARGS__); \
    }
MKDIR(mkdir, (const char *path, mode_t mode), AT_FDCWD, path, path, mode)
MKDIR(mkdirat, (int directory, const char *path, mode_t mode), directory, path, directory, path, mode)
CHANGE("rmdir", 0, rmdir, (const char *path), AT_FDCWD, path, path)
CHANGE("unlink", 0, unlink, (const char *path), AT_FDCWD, path, path)
CHANGE("unlink", 0, unlinkat, (int directory, const char *path, int flags), directory, path, directory, path, flags)
CHANGE("truncate", 0, ftruncate, (int descriptor, off_t size), descriptor, NULL, descriptor, size)
CHANGE("truncate", 0, ftruncate64, (int descriptor, off64_t size), descriptor, NULL, descriptor, size)

int rename(const char *from, const char *to) {
    NEXT(rename);
    char full[PATH_MAX];
    if (below(AT_FDCWD, to, full) && change("rename", full, 0)) return -1;
    if (below(AT_FDCWD, from, full)) note("from", full);
    return next(from, to);
}
int renameat(int old, const char *from, int new, const char *to) {
    NEXT(renameat);
    char full[PATH_MAX];
    if (below(new, to, full) && change("rename", full, 0)) return -1;
    return next(old, from, new, to);
}
int fsync(int descriptor) {
    NEXT(fsync);
    char full[PATH_MAX];
    if (below(descriptor, NULL, full)) note("fsync", full);
    return next(descriptor);
}
