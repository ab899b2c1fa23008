/* A stand-in for libcufile.so.0, to be used with that for libcuda.so.1. It's strict where the real one makes
 * do: whole blocks of 4096 bytes, registered files and memory, descriptors with O_DIRECT, no compatibility
 * mode. What isn't so is a call of its own in the log: MISUSE.
 */
#include "standin.h"
#include <dlfcn.h>

#ifndef DRIVER
#define DRIVER "libcuda.so.1"
#endif

typedef struct { int err, cu_err; } error;
struct descr { int type; union { int fd; void *handle; } h; const void *ops; };
struct file { int fd; };

enum { BASE = 5000, NOT_INITIALIZED = 5001, INVALID_VALUE = 5022, INVALID_FILE_TYPE = 5019 };

static int opened, strict;
static struct { uint64_t at; size_t size; } memory[256];
static char *(*real)(uint64_t, size_t);

static error misuse(const char *what) { standin_call("MISUSE %s", what); return (error){ INVALID_VALUE, 0 }; }

error cuFileSetParameterBool(int parameter, _Bool value)
{
	standin_call("cuFileSetParameterBool %d %d", parameter, value);
	if (parameter == 1 && !value)
		strict = 1;
	return (error){ 0, 0 };
}

error cuFileDriverOpen(void)
{
	standin_call("cuFileDriverOpen");
	int code = standin_fault("cuFileDriverOpen");
	void *cuda = dlopen(DRIVER, RTLD_NOW);
	if (code || !cuda)
		return (error){ code ? code : 5033, 0 };
	real = (char *(*)(uint64_t, size_t))dlsym(cuda, "kvfs_standin_real");
	const char *json = getenv("CUFILE_ENV_PATH_JSON");
	char text[4096] = "";
	int fd = json ? open(json, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0 || read(fd, text, sizeof text - 1) <= 0 || !strstr(text, "\"allow_compat_mode\":false") || !strict)
		return misuse("compatibility mode");
	close(fd);
	opened = 1;
	return (error){ 0, 0 };
}

error cuFileDriverClose(void) { standin_call("cuFileDriverClose"); opened = 0; return (error){ 0, 0 }; }

error cuFileHandleRegister(void **handle, struct descr *descr)
{
	standin_call("cuFileHandleRegister %d", descr->h.fd);
	int code = standin_fault("cuFileHandleRegister"), flags = fcntl(descr->h.fd, F_GETFL);
	struct stat st;
	if (code || !opened)
		return (error){ code ? code : NOT_INITIALIZED, 0 };
	if (descr->type != 1 || flags < 0 || !(flags & O_DIRECT))
		return misuse("a descriptor without O_DIRECT");
	if (fstat(descr->h.fd, &st) || st.st_nlink == 0)
		return (error){ 5031, 0 };
	struct file *file = malloc(sizeof *file);
	file->fd = descr->h.fd;
	*handle = file;
	return (error){ 0, 0 };
}

void cuFileHandleDeregister(void *handle)
{
	struct file *file = handle;
	standin_call("cuFileHandleDeregister %d", file->fd);
	if (fcntl(file->fd, F_GETFL) < 0)
		misuse("closed before it was deregistered");
	free(file);
}

error cuFileBufRegister(const void *at, size_t size, int flags)
{
	(void)flags;
	standin_call("cuFileBufRegister %zu", size);
	int code = standin_fault("cuFileBufRegister");
	if (code || !opened)
		return (error){ code ? code : NOT_INITIALIZED, 0 };
	if (!real((uint64_t)(uintptr_t)at, size))
		return misuse("memory that isn't on the GPU");
	for (int i = 0; i < 256; i++)
		if (!memory[i].size) {
			memory[i].at = (uint64_t)(uintptr_t)at;
			memory[i].size = size;
			return (error){ 0, 0 };
		}
	return (error){ 5012, 0 };
}

error cuFileBufDeregister(const void *at)
{
	standin_call("cuFileBufDeregister");
	for (int i = 0; i < 256; i++)
		if (memory[i].size && memory[i].at == (uint64_t)(uintptr_t)at) {
			if (!real(memory[i].at, memory[i].size))
				misuse("freed before it was deregistered");
			memory[i].size = 0;
			return (error){ 0, 0 };
		}
	return (error){ 5024, 0 };
}

static ssize_t both(const char *name, int writes, void *handle, void *base, size_t size, off_t at, off_t offset)
{
	struct file *file = handle;
	standin_call("%s %d %zu %lld %lld", name, file->fd, size, (long long)at, (long long)offset);
	int code = standin_fault(name), known = 0;
	if (code) {
		if (code < BASE) {
			errno = code;
			return -1;
		}
		return -code;
	}
	uint64_t p = (uint64_t)(uintptr_t)base;
	for (int i = 0; i < 256; i++)
		known |= memory[i].size && memory[i].at == p && offset + size <= memory[i].size;
	char *to = real(p + offset, size);
	if (!known || !to || ((p + offset) | size | at) % 4096 || !size)
		return misuse(!known ? "memory that isn't registered" : "not whole blocks"), -INVALID_VALUE;
	return writes ? pwrite(file->fd, to, size, at) : pread(file->fd, to, size, at);
}

ssize_t cuFileRead(void *handle, void *base, size_t size, off_t at, off_t offset)
{
	return both("cuFileRead", 0, handle, base, size, at, offset);
}

ssize_t cuFileWrite(void *handle, const void *base, size_t size, off_t at, off_t offset)
{
	return both("cuFileWrite", 1, handle, (void *)base, size, at, offset);
}
