/* What both stand-ins share: where they are told what to do, and where they say what was done.
 *
 * KVFS_STANDIN names a directory:
 *   calls   one line for each call: "PID NAME ARGS"
 *   faults  lines "NAME ACTION [AFTER]": from the AFTER-th call on in a process (the first, without it) the
 *           function NAME does ACTION: a number is its result; `hang` never returns; `die` kills the process;
 *           `sticky N` makes it and everything after it return N. The file is read at every call.
 */
#ifndef KVFS_STANDIN_H
#define KVFS_STANDIN_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* An address in GPU memory is the memory's own with this bit: who follows it faults. */
#define GPU_BIT 0x4000000000000000ull

static void standin_path(char *path, size_t size, const char *name)
{
	const char *dir = getenv("KVFS_STANDIN");
	snprintf(path, size, "%s/%s", dir ? dir : "/dev/shm", name);
}

static void standin_call(const char *format, ...)
{
	char path[4096], line[512];
	int n = snprintf(line, sizeof line, "%d ", (int)getpid());
	va_list args;
	va_start(args, format);
	n += vsnprintf(line + n, sizeof line - n - 1, format, args);
	va_end(args);
	line[n++] = '\n';
	if (!getenv("KVFS_STANDIN"))
		return;
	standin_path(path, sizeof path, "calls");
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
	if (fd >= 0) {
		if (write(fd, line, n) != n)
			abort();
		close(fd);
	}
}

/* The code that the function fails with, or 0. */
static int standin_fault(const char *function)
{
	static struct { char name[64]; int calls; } seen[64];
	static int sticky;
	char path[4096], line[256], name[64], action[64];
	int i, code = 0;
	if (__atomic_load_n(&sticky, __ATOMIC_SEQ_CST))
		return sticky;
	standin_path(path, sizeof path, "faults");
	FILE *file = fopen(path, "re");
	if (!file)
		return 0;
	while (fgets(line, sizeof line, file)) {
		int after = 1, value = 0;
		if (sscanf(line, "%63s %63s", name, action) != 2 || strcmp(name, function))
			continue;
		if (!strcmp(action, "sticky"))
			sscanf(line, "%*s %*s %d %d", &value, &after);
		else
			sscanf(line, "%*s %*s %d", &after);
		for (i = 0; i < 63 && seen[i].name[0] && strcmp(seen[i].name, name); i++)
			;
		strcpy(seen[i].name, name);
		if (__atomic_add_fetch(&seen[i].calls, 1, __ATOMIC_SEQ_CST) < after)
			continue;
		if (!strcmp(action, "hang"))
			for (;;)
				pause();
		if (!strcmp(action, "spin"))
			for (;;)
				;
		if (!strcmp(action, "die"))
			kill(getpid(), SIGKILL);
		if (!strcmp(action, "sticky"))
			__atomic_store_n(&sticky, value, __ATOMIC_SEQ_CST);
		code = value ? value : atoi(action);
	}
	fclose(file);
	return code;
}
#endif
