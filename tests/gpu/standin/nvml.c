/* A stand-in for libnvidia-ml.so.1: it says what a file `nvml.txt` beside it says, and nothing about a GPU.
 *
 *   gpu PCI UUID MINOR MODEL      the next GPU; one word for the model
 *   mig UUID                      an instance of the GPU before
 *   process PID                   computes on the GPU or the instance before
 *   fault FUNCTION CODE           it returns CODE; `hang` instead of a number: it never returns
 *
 * The file is read at every call, and each call adds a line "FUNCTION" to `calls.txt`. With -DWITHOUT_PROCESSES
 * the function that lists processes is missing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
#define MOST 16

struct unit { char uuid[64]; unsigned pids[MOST]; unsigned count; };
struct gpu { struct unit whole; char pci[32], model[64]; unsigned minor; struct unit migs[4]; unsigned mig_count; };
struct pci_info {
	char old_id[16];
	unsigned domain, bus, device, device_id, subsystem;
	char id[32];
};
struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };

static void beside(char *path, size_t size, const char *name)
{
	static int here;
	Dl_info info;
	if (!dladdr(&here, &info))
		abort();
	snprintf(path, size, "%s", info.dli_fname);
	char *slash = strrchr(path, '/');
	snprintf(slash + 1, size - (slash + 1 - path), "%s", name);
}

/* Reads the file; the code that the function fails with, or 0. */
static int enter(const char *function, struct gpu gpus[MOST], unsigned *count)
{
	char path[4096], line[512], word[64], action[64];
	int code = 0;
	beside(path, sizeof path, "calls.txt");
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
	dprintf(fd, "%s\n", function);
	close(fd);
	beside(path, sizeof path, "nvml.txt");
	memset(gpus, 0, MOST * sizeof *gpus);
	*count = 0;
	struct unit *unit = NULL;
	FILE *file = fopen(path, "re");
	while (file && fgets(line, sizeof line, file)) {
		struct gpu *gpu = &gpus[*count ? *count - 1 : 0];
		unsigned pid;
		if (!strncmp(line, "gpu ", 4) && *count < MOST) {
			gpu = &gpus[(*count)++];
			sscanf(line, "gpu %31s %63s %u %63s", gpu->pci, gpu->whole.uuid, &gpu->minor, gpu->model);
			unit = &gpu->whole;
		} else if (!strncmp(line, "mig ", 4)) {
			unit = &gpu->migs[gpu->mig_count++];
			sscanf(line, "mig %63s", unit->uuid);
		} else if (sscanf(line, "process %u", &pid) == 1) {
			unit->pids[unit->count++] = pid;
		} else if (sscanf(line, "fault %63s %63s", word, action) == 2 && !strcmp(word, function)) {
			if (!strcmp(action, "hang"))
				for (;;)
					pause();
			code = atoi(action);
		}
	}
	if (file)
		fclose(file);
	return code;
}

#define ENTER \
	struct gpu gpus[MOST]; unsigned gpu_count; \
	int code_ = enter(__func__, gpus, &gpu_count); \
	if (code_) return code_; \
	(void)gpu_count

/* A handle is the number of the GPU plus 1, and 16 times the number of the instance plus 1. */
static struct gpu *gpu_of(struct gpu *gpus, void *handle) { return &gpus[((size_t)handle & 15) - 1]; }
static struct unit *unit_of(struct gpu *gpus, void *handle)
{
	size_t mig = (size_t)handle >> 4;
	return mig ? &gpu_of(gpus, handle)->migs[mig - 1] : &gpu_of(gpus, handle)->whole;
}

int nvmlInit_v2(void) { ENTER; return 0; }
int nvmlInitWithFlags(unsigned flags) { ENTER; (void)flags; return 0; }
int nvmlShutdown(void) { ENTER; return 0; }
const char *nvmlErrorString(int code) { (void)code; return "a fault of the stand-in"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { ENTER; snprintf(text, size, "570.1"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { ENTER; *count = gpu_count; return 0; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle)
{
	ENTER;
	*handle = (void *)(size_t)(index + 1);
	return index < gpu_count ? 0 : INVALID_ARGUMENT;
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned size)
{
	ENTER;
	snprintf(text, size, "%s", unit_of(gpus, handle)->uuid);
	return 0;
}

int nvmlDeviceGetName(void *handle, char *text, unsigned size)
{
	ENTER;
	snprintf(text, size, "%s", gpu_of(gpus, handle)->model);
	return 0;
}

int nvmlDeviceGetMinorNumber(void *handle, unsigned *minor) { ENTER; *minor = gpu_of(gpus, handle)->minor; return 0; }

int nvmlDeviceGetPciInfo_v3(void *handle, struct pci_info *info)
{
	ENTER;
	memset(info, 0, sizeof *info);
	snprintf(info->id, sizeof info->id, "0000%.27s", gpu_of(gpus, handle)->pci);
	return 0;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count)
{
	ENTER;
	(void)handle;
	*count = 4;
	return 0;
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **mig)
{
	ENTER;
	if (index >= gpu_of(gpus, handle)->mig_count)
		return NOT_FOUND;
	*mig = (void *)((size_t)handle | (index + 1) << 4);
	return 0;
}

#ifndef WITHOUT_PROCESSES
static void add(struct unit *unit, struct process *processes, unsigned room, unsigned *count)
{
	for (unsigned i = 0; i < unit->count; i++, ++*count)
		if (*count < room)
			processes[*count] = (struct process){ unit->pids[i], 1 << 20, ~0u, ~0u };
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *processes)
{
	ENTER;
	unsigned room = processes ? *count : 0;
	*count = 0;
	add(unit_of(gpus, handle), processes, room, count);
	/* The whole GPU lists what computes on its instances too. */
	for (unsigned i = 0; !((size_t)handle >> 4) && i < gpu_of(gpus, handle)->mig_count; i++)
		add(&gpu_of(gpus, handle)->migs[i], processes, room, count);
	return *count > room ? INSUFFICIENT_SIZE : 0;
}
#endif
