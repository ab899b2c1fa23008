/* metaload's loads over many names: filling directories and walking them, absent names, many threads at once. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "metaload.h"

/* ---- fill and walk ---- */

void fill(uint64_t files, uint64_t size, uint64_t each, int dir_count, char **dirs)
{
    struct timespec day_ago[2];
    clock_gettime(CLOCK_REALTIME, &day_ago[0]);
    day_ago[0].tv_sec -= 24 * 60 * 60;
    day_ago[1] = day_ago[0];
    setpgid(0, 0);
    for (int d = 0; d < dir_count; d++) {
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (child)
            continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        char path[PATH_MAX], below[PATH_MAX / 2];
        const char *dir = dirs[d];
        uint64_t made = 0;
        for (uint64_t i = (uint64_t)d; i < files; i += (uint64_t)dir_count, made++) {
            if (each && made % each == 0) {
                snprintf(below, sizeof below, "%s/%d-%llu", dirs[d], d, (unsigned long long)(made / each));
                if (mkdir(below, 0755))
                    die(below);
                dir = below;
            }
            name_of(path, sizeof path, dir, dir_count, d, i);
            int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
            if (fd < 0 || (size && (posix_fallocate(fd, 0, (off_t)size) || futimens(fd, day_ago))) || close(fd))
                die(path);
        }
        _exit(0);
    }
    reap(dir_count);
    printf("{\"files\": %llu}\n", (unsigned long long)files);
}

static uint64_t list_at(int parent, const char *name)
{
    enum { BYTES = 256 << 10 };
    uint64_t count = 0;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    char *entries = malloc(BYTES);
    if (fd < 0 || !entries)
        die(name);
    for (;;) {
        long got = syscall(SYS_getdents64, fd, entries, BYTES);
        if (got < 0)
            die("getdents64");
        if (got == 0)
            break;
        for (long at = 0; at < got;) {
            const struct dirent64 *entry = (const struct dirent64 *)(entries + at);
            if (entry->d_name[0] != '.')
                count += entry->d_type == DT_DIR ? list_at(fd, entry->d_name) : 1;
            at += entry->d_reclen;
        }
    }
    free(entries);
    close(fd);
    return count;
}

uint64_t list_dir(const char *dir)
{
    return list_at(AT_FDCWD, dir);
}

static void *walk_one(void *dir)
{
    return (void *)(uintptr_t)list_dir(dir);
}

void walk(int dir_count, char **dirs)
{
    pthread_t threads[MAX_CLIENTS];
    uint64_t files = 0, begin = now_ns();
    if (dir_count > MAX_CLIENTS)
        die("too many directories");
    for (int d = 0; d < dir_count; d++)
        if (pthread_create(&threads[d], NULL, walk_one, dirs[d]))
            die("pthread_create");
    for (int d = 0; d < dir_count; d++) {
        void *count;
        pthread_join(threads[d], &count);
        files += (uintptr_t)count;
    }
    printf("{\"files\": %llu, \"ms\": %.2f}\n", (unsigned long long)files, (double)(now_ns() - begin) / 1e6);
}

/* ---- absent: the same names again and again ---- */

void absent(uint64_t names, int rounds, const char *dir)
{
    char path[PATH_MAX];
    uint32_t *samples = malloc(names * sizeof *samples);
    uint64_t base = (uint64_t)getpid() << 32;
    printf("[");
    for (int round = 0; round < rounds; round++) {
        uint64_t begin = now_ns(), before = begin;
        for (uint64_t i = 0; i < names; i++) {
            name_of(path, sizeof path, dir, 4, 0, base + i);
            if (!access(path, F_OK) || errno != ENOENT)
                die(path);
            uint64_t after = now_ns();
            samples[i] = (uint32_t)(after - before);
            before = after;
        }
        printf(round ? ", {" : "{");
        print_samples("absent", samples, names, names, before - begin);
        printf("}");
    }
    printf("]\n");
}

/* ---- mixed: many threads, each with files of its own ---- */

enum operation { CREATE, STAT, READ, ABSENT, UNLINK, OPERATIONS };
static const char *const operation_names[OPERATIONS] = {"create", "stat", "open_read", "miss", "unlink"};
static const enum operation turns[8] = {CREATE, STAT, READ, ABSENT, CREATE, READ, UNLINK, UNLINK};
enum { FILES_BEFORE = 16 };

struct worker {
    pthread_t thread;
    int number, dir_count;
    double seconds;
    uint64_t size, made, gone, count[OPERATIONS], room[OPERATIONS];
    char **dirs;
    uint32_t *took_ns[OPERATIONS];
    pthread_barrier_t *barrier;
};

static void note(struct worker *worker, enum operation operation, uint64_t ns)
{
    uint64_t count = worker->count[operation]++;
    if (count == worker->room[operation]) {
        worker->room[operation] = count ? 2 * count : 1024;
        worker->took_ns[operation] =
            realloc(worker->took_ns[operation], worker->room[operation] * sizeof **worker->took_ns);
        if (!worker->took_ns[operation])
            die("realloc");
    }
    worker->took_ns[operation][count] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static void operate(struct worker *worker, enum operation operation, char *buffer)
{
    char path[PATH_MAX];
    struct statx facts;
    uint64_t base = (uint64_t)(worker->number + 1) << 32, there = worker->made - worker->gone;
    uint64_t which = operation == CREATE   ? worker->made
                     : operation == UNLINK ? worker->gone
                     : operation == ABSENT ? (1u << 31) + worker->count[ABSENT]
                                           : worker->gone + mix(worker->count[operation]) % there;
    int rank = worker->number % worker->dir_count;
    name_of(path, sizeof path, worker->dirs[rank], worker->dir_count, rank, base + which);
    int fd = -1;
    switch (operation) {
    case CREATE:
        fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0 || write(fd, buffer, worker->size) != (ssize_t)worker->size || close(fd))
            die(path);
        worker->made++;
        break;
    case STAT:
        if (statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &facts) || facts.stx_size != worker->size)
            die(path);
        break;
    case READ:
        read_whole(path, buffer, worker->size);
        break;
    case ABSENT:
        miss(path);
        break;
    case UNLINK:
        if (unlink(path))
            die(path);
        worker->gone++;
        break;
    case OPERATIONS:
        break;
    }
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    char *buffer = malloc(worker->size + 1);
    memset(buffer, 0x5a, worker->size);
    for (int i = 0; i < FILES_BEFORE; i++) /* not counted, like the last ones' removal */
        operate(worker, CREATE, buffer);
    pthread_barrier_wait(worker->barrier);
    uint64_t before = now_ns(), end = before + (uint64_t)(worker->seconds * 1e9);
    for (uint64_t turn = 0; before < end; turn++) {
        enum operation operation = turns[turn % 8];
        operate(worker, operation, buffer);
        uint64_t after = now_ns();
        note(worker, operation, after - before);
        before = after;
    }
    while (worker->gone < worker->made)
        operate(worker, UNLINK, buffer);
    free(buffer);
    return NULL;
}

void mixed(int threads, double seconds, uint64_t size, int dir_count, char **dirs)
{
    static struct worker workers[MAX_CLIENTS];
    pthread_barrier_t barrier;
    if (threads < 1 || threads > MAX_CLIENTS)
        die("bad count");
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    for (int t = 0; t < threads; t++) {
        workers[t] = (struct worker){.number = t, .dir_count = dir_count, .seconds = seconds, .size = size,
                                     .dirs = dirs, .barrier = &barrier};
        if (pthread_create(&workers[t].thread, NULL, work, &workers[t]))
            die("pthread_create");
    }
    for (int t = 0; t < threads; t++)
        pthread_join(workers[t].thread, NULL);
    uint64_t all = 0;
    printf("{");
    for (int operation = 0; operation < OPERATIONS; operation++) {
        uint64_t count = 0, at = 0;
        for (int t = 0; t < threads; t++)
            count += workers[t].count[operation];
        uint32_t *samples = malloc((count + 1) * sizeof *samples);
        for (int t = 0; t < threads; t++) {
            uint64_t own = workers[t].count[operation];
            if (own)
                memcpy(samples + at, workers[t].took_ns[operation], own * sizeof *samples);
            at += own;
        }
        print_samples(operation_names[operation], samples, count, count, (uint64_t)(seconds * 1e9));
        printf(", ");
        free(samples);
        all += count;
    }
    printf("\"all\": {\"per_s\": %.1f}}\n", (double)all / seconds);
}
