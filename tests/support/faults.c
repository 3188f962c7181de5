/* Counts the system calls that change what lies below a folder, and makes one of them fail, or kills the process in it.

   Loaded before the C library (LD_PRELOAD), whose functions it stands in for. What is asked for, and what has been seen, lies in
   memory that forked processes share, so that a parent arms a fault, forks, and reads what became of it. While armed, clocks stand
   still until there are several processes, which wait for one another: two runs of the same work then write the same bytes. */

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
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { COUNT, FAIL, FULL, SHORT, INTERRUPT, TERMINATE, KILL };

#define CALLS 8192

static struct shared {
    int armed, still;
    enum kind kind;
    long at; /* which call, from 1 */
    long count;
    char root[PATH_MAX];
    char calls[CALLS][512]; /* name and path; of a rename, both paths */
} nothing, *shared = &nothing;

__attribute__((constructor)) static void start(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) abort();
}

void faults_arm(const char *root, int kind, long at) {
    strncpy(shared->root, root, PATH_MAX - 1);
    shared->kind = kind;
    shared->at = at;
    shared->count = 0;
    shared->armed = shared->still = 1;
}

void faults_disarm(void) { shared->armed = 0; }

long faults_count(void) { return shared->count; }

const char *faults_call(long number) { return number >= 1 && number <= CALLS ? shared->calls[number - 1] : ""; }

/* Write the path that a descriptor and a name stand for; either may be missing (AT_FDCWD, NULL). */
static void place(int descriptor, const char *name, char *path) {
    char link[64];
    ssize_t length = 0;
    if (!name || *name != '/') {
        if (descriptor == AT_FDCWD)
            strcpy(link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        length = readlink(link, path, PATH_MAX - 1);
        if (length < 0) length = 0;
        path[length] = 0;
        if (name) path[length++] = '/';
    }
    if (name) snprintf(path + length, PATH_MAX - length, "%s", name);
}

enum verdict { PASS, REFUSE, HALF };

/* Count a call, and say what is to become of it. HALF is asked for of calls that write `size` bytes, two or more. */
static enum verdict judge(const char *call, const char *path, int number, size_t size) {
    size_t length = strlen(shared->root);
    if (!shared->armed || (path && (strncmp(path, shared->root, length) || (path[length] && path[length] != '/')))) return PASS;
    long count = __sync_add_and_fetch(&shared->count, 1);
    if (count <= CALLS) {
        const char *shown = path && path[length] ? path + length + 1 : "";
        snprintf(shared->calls[count - 1], sizeof shared->calls[0], "%s %.480s", call, shown);
    }
    if (shared->at < 1 || count < shared->at) return PASS;
    int first = count == shared->at;
    switch (shared->kind) {
    case FAIL:
        if (!first) return PASS;
        break;
    case FULL: /* from here on nothing has room: the first write fills the disk */
        if (number != ENOSPC) return PASS;
        if (first && size > 1) return HALF;
        break;
    case SHORT:
        return first && size > 1 ? HALF : PASS;
    case INTERRUPT:
        if (!first || !size) return PASS;
        number = EINTR;
        break;
    case TERMINATE:
        if (first) kill(getpid(), SIGTERM);
        return PASS;
    case KILL:
        if (first && size > 1) return HALF; /* and then it dies, see `end` */
        if (first) kill(getpid(), SIGKILL);
        return PASS;
    default:
        return PASS;
    }
    errno = number;
    return REFUSE;
}

/* What comes after half of a write. */
static void end(void) {
    if (shared->kind == KILL) kill(getpid(), SIGKILL);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define ON_PATH(name, descriptor, path_, number, result, ...) \
    REAL(name); \
    char path[PATH_MAX]; \
    if (shared->armed) { \
        place(descriptor, path_, path); \
        if (judge(#name, path, number, 0) == REFUSE) return -1; \
    } \
    return real(__VA_ARGS__)

#define CALL_ON_PATH(name, parameters, descriptor, path, number, ...) \
    int name parameters { ON_PATH(name, descriptor, path, number, int, __VA_ARGS__); }

/* Where a name was before it was moved is worth knowing, too. */
static int judge_rename(const char *call, int fd, const char *from, int other, const char *to) {
    char before[PATH_MAX], path[PATH_MAX], both[64 + PATH_MAX];
    if (!shared->armed) return 0;
    size_t length = strlen(shared->root);
    place(fd, from, before);
    place(other, to, path);
    snprintf(both, sizeof both, "%s %s ->", call, strncmp(before, shared->root, length) ? before : before + length + 1);
    return judge(both, path, EIO, 0) == REFUSE;
}

#define RENAME(name, parameters, fd, from, other, to, ...) \
    int name parameters { \
        REAL(name); \
        return judge_rename(#name, fd, from, other, to) ? -1 : real(__VA_ARGS__); \
    }

RENAME(rename, (const char *from, const char *to), AT_FDCWD, from, AT_FDCWD, to, from, to)
RENAME(renameat, (int fd, const char *from, int other, const char *to), fd, from, other, to, fd, from, other, to)
RENAME(renameat2, (int fd, const char *from, int other, const char *to, unsigned flags), fd, from, other, to,
       fd, from, other, to, flags)
CALL_ON_PATH(link, (const char *from, const char *to), AT_FDCWD, to, ENOSPC, from, to)
CALL_ON_PATH(linkat, (int fd, const char *from, int other, const char *to, int flags), other, to, ENOSPC,
             fd, from, other, to, flags)
CALL_ON_PATH(symlink, (const char *target, const char *to), AT_FDCWD, to, ENOSPC, target, to)
CALL_ON_PATH(unlink, (const char *name), AT_FDCWD, name, EIO, name)
CALL_ON_PATH(unlinkat, (int fd, const char *name, int flags), fd, name, EIO, fd, name, flags)
CALL_ON_PATH(rmdir, (const char *name), AT_FDCWD, name, EIO, name)
CALL_ON_PATH(mkdir, (const char *name, mode_t mode), AT_FDCWD, name, ENOSPC, name, mode)
CALL_ON_PATH(mkdirat, (int fd, const char *name, mode_t mode), fd, name, ENOSPC, fd, name, mode)
CALL_ON_PATH(chmod, (const char *name, mode_t mode), AT_FDCWD, name, EIO, name, mode)
CALL_ON_PATH(fchmod, (int fd, mode_t mode), fd, NULL, EIO, fd, mode)
CALL_ON_PATH(fchmodat, (int fd, const char *name, mode_t mode, int flags), fd, name, EIO, fd, name, mode, flags)
CALL_ON_PATH(truncate, (const char *name, off_t length), AT_FDCWD, name, EIO, name, length)
CALL_ON_PATH(truncate64, (const char *name, off64_t length), AT_FDCWD, name, EIO, name, length)
CALL_ON_PATH(ftruncate, (int fd, off_t length), fd, NULL, EIO, fd, length)
CALL_ON_PATH(ftruncate64, (int fd, off64_t length), fd, NULL, EIO, fd, length)
CALL_ON_PATH(flock, (int fd, int operation), fd, NULL, ENOLCK, fd, operation)

/* No power is cut here, so files are kept in memory as well as on a disk, and tests need not wait for one. */
#define SYNC(name) \
    int name(int fd) { \
        char path[PATH_MAX]; \
        REAL(name); \
        if (!shared->armed) return real(fd); \
        place(fd, NULL, path); \
        return judge(#name, path, EIO, 0) == REFUSE ? -1 : 0; \
    }

SYNC(fsync)
SYNC(fdatasync)

#define OPEN(name, parameters, descriptor, path_, ...) \
    int name parameters { \
        REAL(name); \
        char path[PATH_MAX]; \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        if (shared->armed && flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) { \
            place(descriptor, path_, path); \
            if (judge("open", path, ENOSPC, 0) == REFUSE) return -1; \
        } \
        return real(__VA_ARGS__, mode); \
    }

OPEN(open, (const char *name, int flags, ...), AT_FDCWD, name, name, flags)
OPEN(open64, (const char *name, int flags, ...), AT_FDCWD, name, name, flags)
OPEN(openat, (int fd, const char *name, int flags, ...), fd, name, fd, name, flags)
OPEN(openat64, (int fd, const char *name, int flags, ...), fd, name, fd, name, flags)

#define WRITE(name, type, parameters, shown, target, size, half, ...) \
    type name parameters { \
        REAL(name); \
        char path[PATH_MAX]; \
        enum verdict verdict = PASS; \
        if (shared->armed) { \
            place(target, NULL, path); \
            verdict = judge(shown, path, ENOSPC, size); \
        } \
        if (verdict == REFUSE) return -1; \
        if (verdict == HALF) half; \
        type result = real(__VA_ARGS__); \
        if (verdict == HALF) end(); \
        return result; \
    }

WRITE(write, ssize_t, (int fd, const void *data, size_t size), "write", fd, size, size /= 2, fd, data, size)
WRITE(pwrite, ssize_t, (int fd, const void *data, size_t size, off_t offset), "pwrite", fd, size, size /= 2,
      fd, data, size, offset)
WRITE(pwrite64, ssize_t, (int fd, const void *data, size_t size, off64_t offset), "pwrite", fd, size, size /= 2,
      fd, data, size, offset)
WRITE(writev, ssize_t, (int fd, const struct iovec *parts, int count), "writev", fd, (size_t)count, count /= 2, fd, parts, count)
WRITE(sendfile, ssize_t, (int to, int from, off_t *offset, size_t size), "sendfile", to, size, size = 1, to, from, offset, size)
WRITE(sendfile64, ssize_t, (int to, int from, off64_t *offset, size_t size), "sendfile", to, size, size = 1,
      to, from, offset, size)
WRITE(copy_file_range, ssize_t, (int from, off64_t *here, int to, off64_t *there, size_t size, unsigned flags),
      "copy_file_range", to, size, size = 1, from, here, to, there, size, flags)

#define MAP(name, offset_type) \
    void *name(void *address, size_t length, int protection, int flags, int fd, offset_type offset) { \
        REAL(name); \
        char path[PATH_MAX]; \
        if (shared->armed && fd >= 0 && !(flags & MAP_ANONYMOUS)) { \
            place(fd, NULL, path); \
            if (judge("mmap", path, ENOMEM, 0) == REFUSE) return MAP_FAILED; \
        } \
        return real(address, length, protection, flags, fd, offset); \
    }

MAP(mmap, off_t)
MAP(mmap64, off64_t)

pid_t fork(void) {
    REAL(fork);
    shared->still = 0;
    return judge("fork", NULL, EAGAIN, 0) == REFUSE ? -1 : real();
}

/* A function cannot stand in for vfork, whose child would return from it; fork does the same, more slowly. */
pid_t vfork(void) { return fork(); }

int clock_gettime(clockid_t clock, struct timespec *time) {
    REAL(clock_gettime);
    if (!shared->armed || !shared->still) return real(clock, time);
    time->tv_sec = clock == CLOCK_REALTIME ? 1767225600 : 1000;
    time->tv_nsec = 0;
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
