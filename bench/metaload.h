/* What the parts of metaload share. */
#ifndef METALOAD_H
#define METALOAD_H

#include <stddef.h>
#include <stdint.h>

#define MAX_CLIENTS 64

void die(const char *what);
uint64_t now_ns(void);
uint64_t mix(uint64_t x);
/* A path in `dir`, of a name of 75 bytes as LMCache writes it, whose rank is `rank`. */
void name_of(char *out, size_t size, const char *dir, int ranks, int rank, uint64_t number);
/* Opens the file, reads all its `size` bytes at once, closes it. */
void read_whole(const char *path, char *buffer, size_t size);
/* Asks for a name that isn't there. */
void miss(const char *path);
/* Sorts `ns`, and prints "what": {"per_s": ..., "p50_us": ..., "p99_us": ...}. */
void print_samples(const char *what, uint32_t *ns, uint64_t count, uint64_t operations, uint64_t took_ns);
/* Waits for so many children; ends the process group when one fails. */
void reap(int children);

/* metaload_names.c */
void fill(uint64_t files, uint64_t size, uint64_t each, int dir_count, char **dirs);
void walk(int dir_count, char **dirs);
uint64_t list_dir(const char *dir);
void absent(uint64_t names, int rounds, const char *dir);
void mixed(int threads, double seconds, uint64_t size, int dir_count, char **dirs);

#endif
