/* A load of file names: how many creates, opens, stats, lists and unlinks per second.
 *
 *   metaload meta CLIENTS FILES SIZE DIR...   each client its own process, in DIR[client % n]
 *   metaload fill FILES SIZE DIR...           FILES files over the DIRs, a process each; where SIZE isn't 0 so much
 *                                             is allocated to each, not written, and they are a day old
 *   metaload creates RANK SIZE KEEP DIR       one client that creates until its standard input ends; of its files
 *                                             the last KEEP stay
 *   metaload walk DIR...                      getdents64 of all DIRs, a thread each
 *
 * Prints one JSON object. Names are 75 bytes long and of the form that LMCache writes;
 * the rank in them is the client's number, or the number of the DIR.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_CLIENTS 64

static void die(const char *what)
{
    fprintf(stderr, "metaload: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static void name_of(char *out, size_t size, const char *dir, int ranks, int rank, uint64_t number)
{
    snprintf(out, size, "%s/meta-llama-Llama-3.1-8B-Instruct@%d@%d@%010llx%016llx@bfloat16.pt", dir, ranks % 10,
             rank % 10, (unsigned long long)(mix(number) & 0xffffffffffu), (unsigned long long)mix(~number));
}

/* ---- meta: the phases, all clients in step ---- */

enum phase { CREATE, STAT, OPEN_READ, OPEN_CLOSE, MISS, READDIR, UNLINK, PHASES };
static const char *const phase_names[PHASES] = {"create", "stat",    "open_read", "open_close",
                                                "miss",   "readdir", "unlink"};

/* The first two again later: a virtual machine may hand free memory back to its host, so
 * that only pages freed a moment ago can be written at full speed. */
static const enum phase order[] = {CREATE, UNLINK, CREATE, STAT, OPEN_READ, OPEN_CLOSE, MISS, READDIR, UNLINK};

struct shared {
    pthread_barrier_t barrier;
    struct {
        uint64_t begin, end, operations;
    } phases[PHASES][MAX_CLIENTS];
    uint32_t took_ns[]; /* [phase][client][operation]: one sample for each file */
};

struct load {
    int clients, client, dir_count;
    uint64_t files, size;
    char **dirs;
    struct shared *shared;
    char *buffer;
};

static uint64_t list_dir(const char *dir)
{
    static _Thread_local char entries[256 << 10];
    uint64_t count = 0;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        die(dir);
    for (;;) {
        long got = syscall(SYS_getdents64, fd, entries, sizeof entries);
        if (got < 0)
            die("getdents64");
        if (got == 0)
            break;
        for (long at = 0; at < got;) {
            const struct dirent64 *entry = (const struct dirent64 *)(entries + at);
            count += entry->d_name[0] != '.';
            at += entry->d_reclen;
        }
    }
    close(fd);
    return count;
}

static void one(const struct load *load, enum phase phase, const char *path)
{
    struct statx facts;
    int fd;
    switch (phase) {
    case CREATE:
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (fd < 0 || write(fd, load->buffer, load->size) != (ssize_t)load->size || close(fd))
            die(path);
        break;
    case STAT: /* FORCE_SYNC: asks the filesystem, whatever the kernel has cached */
        if (statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &facts) || facts.stx_size != load->size)
            die(path);
        break;
    case OPEN_READ:
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || read(fd, load->buffer, load->size) != (ssize_t)load->size || close(fd))
            die(path);
        break;
    case OPEN_CLOSE:
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || close(fd))
            die(path);
        break;
    case MISS:
        if (!access(path, F_OK) || errno != ENOENT)
            die(path);
        break;
    case UNLINK:
        if (unlink(path))
            die(path);
        break;
    case READDIR:
    case PHASES:
        break;
    }
}

static void run_phase(struct load *load, enum phase phase)
{
    struct shared *shared = load->shared;
    uint32_t *samples = shared->took_ns + ((uint64_t)phase * load->clients + load->client) * load->files;
    uint64_t operations = load->files;
    char path[4096];

    pthread_barrier_wait(&shared->barrier);
    uint64_t begin = now_ns(), before = begin;
    if (phase == READDIR) {
        operations = 0;
        for (int round = 0; round < 3; round++)
            for (int i = 0; i < load->dir_count; i++)
                operations += list_dir(load->dirs[i]);
    } else {
        /* Names that are not there differ from the others in their number only. */
        uint64_t base = ((uint64_t)(phase == MISS) << 40) + ((uint64_t)load->client << 32);
        for (uint64_t i = 0; i < load->files; i++) {
            name_of(path, sizeof path, load->dirs[load->client % load->dir_count], load->clients, load->client,
                    base + i);
            one(load, phase, path);
            uint64_t after = now_ns();
            samples[i] = (uint32_t)(after - before);
            before = after;
        }
    }
    shared->phases[phase][load->client].begin = begin;
    shared->phases[phase][load->client].end = now_ns();
    shared->phases[phase][load->client].operations = operations;
    pthread_barrier_wait(&shared->barrier);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void report(struct load *load)
{
    uint64_t all = load->files * (uint64_t)load->clients;
    for (int phase = 0; phase < PHASES; phase++) {
        uint64_t begin = UINT64_MAX, end = 0, operations = 0;
        for (int c = 0; c < load->clients; c++) {
            if (load->shared->phases[phase][c].begin < begin)
                begin = load->shared->phases[phase][c].begin;
            if (load->shared->phases[phase][c].end > end)
                end = load->shared->phases[phase][c].end;
            operations += load->shared->phases[phase][c].operations;
        }
        uint32_t *samples = load->shared->took_ns + (uint64_t)phase * all;
        qsort(samples, all, sizeof *samples, by_value);
        printf("%s\"%s\": {\"per_s\": %.1f, \"p50_us\": %.2f, \"p99_us\": %.2f}", phase ? ", " : "{",
               phase_names[phase], (double)operations * 1e9 / (double)(end - begin), samples[all / 2] / 1e3,
               samples[all * 99 / 100] / 1e3);
    }
    printf("}\n");
}

static void reap(int children)
{
    for (int status, bad = 0; children; children--) {
        if (wait(&status) < 0)
            die("wait");
        bad |= status;
        if (bad) {
            kill(0, SIGTERM); /* the others wait at a barrier */
            exit(1);
        }
    }
}

static void meta(int clients, uint64_t files, uint64_t size, int dir_count, char **dirs)
{
    if (clients < 1 || clients > MAX_CLIENTS || !files)
        die("bad count");
    size_t bytes = sizeof(struct shared) + (size_t)PHASES * clients * files * sizeof(uint32_t);
    struct shared *shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        die("mmap");
    pthread_barrierattr_t across;
    pthread_barrierattr_init(&across);
    pthread_barrierattr_setpshared(&across, PTHREAD_PROCESS_SHARED);
    pthread_barrier_init(&shared->barrier, &across, (unsigned)clients);

    struct load load = {.clients = clients, .dir_count = dir_count, .files = files, .size = size, .dirs = dirs,
                        .shared = shared, .buffer = malloc(size + 1)};
    memset(load.buffer, 0x5a, size);
    setpgid(0, 0); /* reap() ends this group and nobody else */
    for (load.client = 0; load.client < clients; load.client++) {
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            for (size_t step = 0; step < sizeof order / sizeof *order; step++)
                run_phase(&load, order[step]);
            _exit(0);
        }
    }
    reap(clients);
    report(&load);
}

/* ---- creates: how long each one took, however long it is to go on ---- */

static volatile sig_atomic_t ended;

static void *until_input_ends(void *nothing)
{
    char byte;
    while (read(0, &byte, 1) > 0)
        ;
    ended = 1;
    return nothing;
}

static void print_us(const char *what, const uint32_t *ns, uint64_t count)
{
    printf("\"%s\": [", what);
    for (uint64_t i = 0; i < count; i++)
        printf("%s%.1f", i ? "," : "", ns[i] / 1e3);
    printf("], ");
}

static void creates(int rank, uint64_t size, uint64_t keep, const char *dir)
{
    uint64_t room = 1 << 16, count = 0, gone = 0, base = (uint64_t)getpid() << 32;
    uint32_t *create_ns = malloc(room * sizeof *create_ns), *whole_ns = malloc(room * sizeof *whole_ns);
    char *buffer = malloc(size + 1), path[4096];
    memset(buffer, 0x5a, size);
    pthread_t watcher;
    if (pthread_create(&watcher, NULL, until_input_ends, NULL))
        die("pthread_create");
    printf("ready\n");
    fflush(stdout);
    for (; !ended; count++) {
        if (count == room) {
            room *= 2;
            create_ns = realloc(create_ns, room * sizeof *create_ns);
            whole_ns = realloc(whole_ns, room * sizeof *whole_ns);
        }
        name_of(path, sizeof path, dir, 4, rank, base + count);
        uint64_t begin = now_ns();
        int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        uint64_t created = now_ns();
        if (fd < 0 || write(fd, buffer, size) != (ssize_t)size || close(fd))
            die(path);
        whole_ns[count] = (uint32_t)(now_ns() - begin);
        create_ns[count] = (uint32_t)(created - begin);
        if (count >= keep) {
            name_of(path, sizeof path, dir, 4, rank, base + count - keep);
            gone += unlink(path) && errno == ENOENT;
        }
    }
    printf("{");
    print_us("create_us", create_ns, count);
    print_us("whole_us", whole_ns, count);
    printf("\"gone\": %llu}\n", (unsigned long long)gone);
}

/* ---- fill and walk: for the scan and for the eviction ---- */

static void fill(uint64_t files, uint64_t size, int dir_count, char **dirs)
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
        char path[4096];
        for (uint64_t i = (uint64_t)d; i < files; i += (uint64_t)dir_count) {
            name_of(path, sizeof path, dirs[d], dir_count, d, i);
            int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
            if (fd < 0 || (size && (posix_fallocate(fd, 0, (off_t)size) || futimens(fd, day_ago))) || close(fd))
                die(path);
        }
        _exit(0);
    }
    reap(dir_count);
    printf("{\"files\": %llu}\n", (unsigned long long)files);
}

static void *walk_one(void *dir)
{
    return (void *)(uintptr_t)list_dir(dir);
}

static void walk(int dir_count, char **dirs)
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

int main(int argc, char **argv)
{
    if (argc >= 6 && !strcmp(argv[1], "meta"))
        meta(atoi(argv[2]), strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10), argc - 5, argv + 5);
    else if (argc >= 5 && !strcmp(argv[1], "fill"))
        fill(strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10), argc - 4, argv + 4);
    else if (argc == 6 && !strcmp(argv[1], "creates"))
        creates(atoi(argv[2]), strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10), argv[5]);
    else if (argc >= 3 && !strcmp(argv[1], "walk"))
        walk(argc - 2, argv + 2);
    else {
        fprintf(stderr, "usage: metaload meta CLIENTS FILES SIZE DIR... | fill FILES SIZE DIR... | walk DIR... |\n"
                        "       creates RANK SIZE KEEP DIR\n");
        return 2;
    }
    return 0;
}
