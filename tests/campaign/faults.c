/* Preloaded into a process: has the system's calls that write files fail when told to.

   fault_arm(kind, nth, error, forever): the nth call of that kind from now on fails with that error, then all after it if asked
   for; a write of error 0 is cut short instead. fault_disarm() returns how many calls failed. Standard streams never fail. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <unistd.h>

enum { NONE, WRITE, FSYNC, RENAME, OPEN, CLOSE, MOST = 4096 };

static int kind, nth, error, forever, failed;
static char written[MOST]; /* whether a descriptor was written to: only then has closing it something to lose */

void fault_arm(int kind_, int nth_, int error_, int forever_)
{
    failed = 0, nth = nth_, error = error_, forever = forever_, kind = kind_;
}

int fault_disarm(void)
{
    kind = NONE;
    return failed;
}

static int fails(int which)
{
    if (kind != which || --nth > 0 || (nth < 0 && !forever))
        return 0;
    failed++;
    errno = error;
    return 1;
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *data, size_t size)
{
    if (file > 2 && file < MOST) {
        written[file] = 1;
        if (fails(WRITE)) {
            if (error)
                return -1;
            size = (size + 1) / 2;
        }
    }
    return REAL(ssize_t, write, int, const void *, size_t)(file, data, size);
}

int fsync(int file)
{
    return fails(FSYNC) ? -1 : REAL(int, fsync, int)(file);
}

int rename(const char *from, const char *to)
{
    return fails(RENAME) ? -1 : REAL(int, rename, const char *, const char *)(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    return fails(RENAME) ? -1 : REAL(int, renameat, int, const char *, int, const char *)(from_folder, from, to_folder, to);
}

int close(int file)
{
    int lost = file > 2 && file < MOST && written[file];
    if (lost)
        written[file] = 0;
    int result = REAL(int, close, int)(file);
    return lost && fails(CLOSE) ? -1 : result;
}

#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR))
#define OPENS(name)                                                                                                    \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                                                      \
        va_end(rest);                                                                                                  \
        return WRITES(flags) && fails(OPEN) ? -1 : REAL(int, name, const char *, int, ...)(path, flags, mode);         \
    }
#define OPENS_AT(name)                                                                                                 \
    int name(int folder, const char *path, int flags, ...)                                                             \
    {                                                                                                                  \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;                                                      \
        va_end(rest);                                                                                                  \
        return WRITES(flags) && fails(OPEN) ? -1                                                                       \
                                            : REAL(int, name, int, const char *, int, ...)(folder, path, flags, mode); \
    }

OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)
