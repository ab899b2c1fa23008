/* A load of file names: how many creates, opens, stats, lists and unlinks per second.
 *
 *   metaload meta CLIENTS FILES SIZE DIR...   each client its own process, in DIR[client % n]
 *   metaload fill FILES SIZE DIR...           FILES files over the DIRs, a process each; where SIZE isn't 0 so much
 *                                             is allocated to each, not written, and they are a day old
 *   metaload tree FILES EACH DIR...           the same of size 0, in directories below them of EACH files
 *   metaload creates RANK SIZE KEEP DIR       one client that creates until its standard input ends; of its files
 *                                             the last KEEP stay
 *   metaload walk DIR...                      getdents64 of all DIRs and what is below, a thread each
 *   metaload absent NAMES ROUNDS DIR          so many names that aren't there, asked for again in each round
 *   metaload mixed THREADS SECONDS SIZE DIR...  threads that create, stat, read, look for absent names, and unlink
 *
 * Prints one JSON object. Names are 75 bytes long and of the form that LMCache writes;
 * the rank in them is the client's number, or the number of the DIR.
 */
#define _GNU_SOURCE
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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "metaload.h"

void die(const char *what)
{
    fprintf(stderr, "metaload: %s: %s\n", what, strerror(errno));
    exit(1);
}

void read_whole(const char *path, char *buffer, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, buffer, size) != (ssize_t)size || close(fd))
        die(path);
}

void miss(const char *path)
{
    if (!access(path, F_OK) || errno != ENOENT)
        die(path);
}

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

void name_of(char *out, size_t size, const char *dir, int ranks, int rank, uint64_t number)
{
    snprintf(out, size, "%s/meta-llama-Llama-3.1-8B-Instruct@%d@%d@%010llx%016llx@bfloat16.pt", dir, ranks % 10,
             rank % 10, (unsigned long long)(mix(number) & 0xffffffffffu), (unsigned long long)mix(~number));
}

/* ---- meta: the phases, all clients in step ---- */

enum phase { CREATE, FIRST_STAT, STAT, OPEN_READ, OPEN_CLOSE, MISS, READDIR, COLD_STAT, UNLINK, PHASES };
static const char *const phase_names[PHASES] = {"create", "first_stat", "stat",      "open_read", "open_close",
                                                "miss",   "readdir",    "cold_stat", "unlink"};

/* The first two again later: a virtual machine may hand free memory back to its host, so
 * that only pages freed a moment ago can be written at full speed. */
static const enum phase order[] = {CREATE,     UNLINK, CREATE,  FIRST_STAT, STAT,  OPEN_READ,
                                   OPEN_CLOSE, MISS,   READDIR, COLD_STAT,  UNLINK};

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
    case FIRST_STAT: /* the write has made what the kernel knew of the file's times and size stale */
    case COLD_STAT:  /* the kernel knows nothing of the file, not even its name */
        if (statx(AT_FDCWD, path, 0, STATX_BASIC_STATS, &facts) || facts.stx_size != load->size)
            die(path);
        break;
    case OPEN_READ:
        read_whole(path, load->buffer, load->size);
        break;
    case OPEN_CLOSE:
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || close(fd))
            die(path);
        break;
    case MISS:
        miss(path);
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

/* Has the kernel forget names and attributes, of all file systems. */
static void forget_names(void)
{
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "2", 1) != 1 || close(fd))
        die("/proc/sys/vm/drop_caches");
    usleep(200000); /* what a daemon is told of that is its own time */
}

static void run_phase(struct load *load, enum phase phase)
{
    struct shared *shared = load->shared;
    uint32_t *samples = shared->took_ns + ((uint64_t)phase * load->clients + load->client) * load->files;
    uint64_t operations = load->files;
    char path[4096];

    if (phase == COLD_STAT && load->client == 0)
        forget_names();
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

void print_samples(const char *what, uint32_t *ns, uint64_t count, uint64_t operations, uint64_t took_ns)
{
    qsort(ns, count, sizeof *ns, by_value);
    printf("\"%s\": {\"per_s\": %.1f, \"p50_us\": %.2f, \"p99_us\": %.2f}", what,
           (double)operations * 1e9 / (double)took_ns, count ? ns[count / 2] / 1e3 : 0,
           count ? ns[count * 99 / 100] / 1e3 : 0);
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
        printf(phase ? ", " : "{");
        print_samples(phase_names[phase], load->shared->took_ns + (uint64_t)phase * all, all, operations, end - begin);
    }
    printf("}\n");
}

void reap(int children)
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

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
#define NUMBER(i) strtoull(argv[i], NULL, 10)
    if (argc >= 6 && !strcmp(what, "meta"))
        meta(atoi(argv[2]), NUMBER(3), NUMBER(4), argc - 5, argv + 5);
    else if (argc >= 5 && !strcmp(what, "fill"))
        fill(NUMBER(2), NUMBER(3), 0, argc - 4, argv + 4);
    else if (argc >= 5 && !strcmp(what, "tree"))
        fill(NUMBER(2), 0, NUMBER(3), argc - 4, argv + 4);
    else if (argc == 6 && !strcmp(what, "creates"))
        creates(atoi(argv[2]), NUMBER(3), NUMBER(4), argv[5]);
    else if (argc >= 3 && !strcmp(what, "walk"))
        walk(argc - 2, argv + 2);
    else if (argc == 5 && !strcmp(what, "absent"))
        absent(NUMBER(2), atoi(argv[3]), argv[4]);
    else if (argc >= 6 && !strcmp(what, "mixed"))
        mixed(atoi(argv[2]), atof(argv[3]), NUMBER(4), argc - 5, argv + 5);
    else {
        fprintf(stderr, "usage: metaload meta CLIENTS FILES SIZE DIR... | fill FILES SIZE DIR... | tree FILES EACH DIR... |\n"
                        "       creates RANK SIZE KEEP DIR | walk DIR... | absent NAMES ROUNDS DIR |\n"
                        "       mixed THREADS SECONDS SIZE DIR...\n");
        return 2;
    }
    return 0;
}
