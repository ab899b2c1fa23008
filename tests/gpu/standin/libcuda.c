/* A stand-in for libcuda.so.1: "GPU memory" is files in KVFS_STANDIN that several processes map. It proves
 * the protocol and the bookkeeping of who uses it, and nothing about a GPU.
 *
 * It has KVFS_STANDIN_GPUS GPUs (1 without it), whose UUIDs are 16 times the byte 0xa0 + their number.
 */
#include "standin.h"

typedef uint64_t ptr;
typedef struct { char name[64]; } ipc_handle;

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201 };

#define MAX 4096
static struct area { char *at; size_t size; int kind; char name[64]; int fd; } areas[MAX];
enum { FREE, OWN, OPENED, RESERVED };
static int lock;
static __thread int bound;
static int made;

#define ENTER(name, ...) \
	do { standin_call(name " " __VA_ARGS__); int code_ = standin_fault(name); if (code_) return code_; } while (0)

static void take(void) { while (__atomic_test_and_set(&lock, __ATOMIC_ACQUIRE)) ; }
static void give(void) { __atomic_clear(&lock, __ATOMIC_RELEASE); }

static struct area *area_of(ptr p)
{
	char *at = (char *)(uintptr_t)(p & ~GPU_BIT);
	if (!(p & GPU_BIT))
		return NULL;
	for (int i = 0; i < MAX; i++)
		if (areas[i].kind && at >= areas[i].at && at < areas[i].at + areas[i].size)
			return &areas[i];
	return NULL;
}

/* Host memory for a range in GPU memory; NULL if it isn't in one allocation. */
static char *real(ptr p, size_t len)
{
	take();
	struct area *a = area_of(p);
	char *at = (char *)(uintptr_t)(p & ~GPU_BIT);
	if (a && len > (size_t)(a->at + a->size - at))
		a = NULL;
	give();
	return a ? at : NULL;
}

/* For the stand-in of libcufile. */
char *kvfs_standin_real(ptr p, size_t len) { return real(p, len); }

static int enter(char *at, size_t size, int kind, const char *name, int fd, ptr *p)
{
	take();
	for (int i = 0; i < MAX; i++)
		if (!areas[i].kind) {
			areas[i] = (struct area){ at, size, kind, "", fd };
			strcpy(areas[i].name, name);
			give();
			*p = (ptr)(uintptr_t)at | GPU_BIT;
			return 0;
		}
	give();
	return OUT_OF_MEMORY;
}

static int map_file(int fd, size_t size, int kind, const char *name, ptr *p)
{
	char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		return OUT_OF_MEMORY;
	return enter(at, size, kind, name, fd, p);
}

static int leave(ptr p, int kind)
{
	take();
	struct area *a = area_of(p);
	if (!a || a->kind != kind || a->at != (char *)(uintptr_t)(p & ~GPU_BIT)) {
		give();
		return INVALID_VALUE;
	}
	munmap(a->at, a->size);
	if (kind == OWN) {
		char path[4096];
		standin_path(path, sizeof path, a->name);
		unlink(path);
	}
	a->kind = FREE;
	give();
	return 0;
}

int cuInit(unsigned flags) { ENTER("cuInit"); return flags ? INVALID_VALUE : 0; }
int cuDriverGetVersion(int *v) { *v = 12080; return 0; }

int cuDeviceGetCount(int *n)
{
	ENTER("cuDeviceGetCount");
	const char *s = getenv("KVFS_STANDIN_GPUS");
	*n = s ? atoi(s) : 1;
	return 0;
}

int cuDeviceGet(int *device, int ordinal)
{
	int n = 0;
	cuDeviceGetCount(&n);
	*device = ordinal;
	return ordinal < n ? 0 : INVALID_DEVICE;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) { memset(uuid, 0xa0 + device, 16); return 0; }
int cuDeviceGetUuid(unsigned char *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
int cuDeviceGetName(char *name, int len, int device) { snprintf(name, len, "stand-in %d", device); return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device)
{
	ENTER("cuDevicePrimaryCtxRetain", "%d", device);
	*context = (void *)(uintptr_t)(device + 1);
	return 0;
}
int cuCtxSetCurrent(void *context) { bound = context != NULL; return 0; }
int cuCtxSynchronize(void) { return standin_fault("cuCtxSynchronize"); }

int cuMemAlloc_v2(ptr *p, size_t size)
{
	char name[64], path[4096];
	ENTER("cuMemAlloc", "%zu", size);
	if (!bound)
		return INVALID_CONTEXT;
	snprintf(name, sizeof name, "gpu-%d-%d", (int)getpid(), __atomic_add_fetch(&made, 1, __ATOMIC_SEQ_CST));
	standin_path(path, sizeof path, name);
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, size))
		return OUT_OF_MEMORY;
	int code = map_file(fd, size, OWN, name, p);
	close(fd);
	/* What was there before isn't zeros. */
	if (!code)
		memset((void *)(uintptr_t)(*p & ~GPU_BIT), 0xee, size);
	return code;
}

int cuMemFree_v2(ptr p) { ENTER("cuMemFree"); return leave(p, OWN); }

int cuMemGetAddressRange_v2(ptr *base, size_t *size, ptr p)
{
	take();
	struct area *a = area_of(p);
	if (a) {
		*base = (ptr)(uintptr_t)a->at | GPU_BIT;
		*size = a->size;
	}
	give();
	return a ? 0 : INVALID_VALUE;
}

int cuMemsetD8_v2(ptr p, unsigned char byte, size_t len)
{
	ENTER("cuMemsetD8", "%zu", len);
	char *at = real(p, len);
	return at ? (memset(at, byte, len), 0) : INVALID_VALUE;
}

int cuIpcGetMemHandle(ipc_handle *handle, ptr p)
{
	ENTER("cuIpcGetMemHandle");
	take();
	struct area *a = area_of(p);
	memset(handle, 0, sizeof *handle);
	if (a && a->kind == OWN)
		strcpy(handle->name, a->name);
	give();
	return a && a->kind == OWN ? 0 : INVALID_VALUE;
}

int cuIpcOpenMemHandle_v2(ptr *p, ipc_handle handle, unsigned flags)
{
	char path[4096];
	struct stat st;
	ENTER("cuIpcOpenMemHandle", "%.63s", handle.name);
	if (!bound || flags != 1)
		return INVALID_CONTEXT;
	if (memcmp(handle.name, "gpu-", 4) || !memchr(handle.name, 0, 64) || strchr(handle.name, '/'))
		return INVALID_VALUE;
	/* As the real one: not in the process that exported it, and once. */
	if (atoi(handle.name + 4) == getpid())
		return INVALID_CONTEXT;
	take();
	for (int i = 0; i < MAX; i++)
		if (areas[i].kind == OPENED && !strcmp(areas[i].name, handle.name)) {
			give();
			standin_call("TWICE %s", handle.name);
			return 208; /* ALREADY_MAPPED */
		}
	give();
	standin_path(path, sizeof path, handle.name);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st))
		return INVALID_VALUE;
	int code = map_file(fd, st.st_size, OPENED, handle.name, p);
	close(fd);
	return code;
}

int cuIpcCloseMemHandle(ptr p) { ENTER("cuIpcCloseMemHandle"); return leave(p, OPENED); }

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
	*free_bytes = *total = (size_t)1 << 32;
	return 0;
}

/* VMM: an allocation is a descriptor. */
int cuMemGetAllocationGranularity(size_t *bytes, const void *prop, unsigned option)
{
	(void)prop, (void)option;
	*bytes = 2 << 20;
	return 0;
}

int cuMemCreate(uint64_t *memory, size_t size, const void *prop, uint64_t flags)
{
	(void)prop, (void)flags;
	int fd = memfd_create("vmm", MFD_CLOEXEC);
	*memory = fd;
	return fd < 0 || size % (2 << 20) || ftruncate(fd, size) ? OUT_OF_MEMORY : 0;
}

int cuMemExportToShareableHandle(int *fd, uint64_t memory, unsigned type, uint64_t flags)
{
	*fd = type == 1 && !flags ? fcntl((int)memory, F_DUPFD_CLOEXEC, 3) : -1;
	return *fd < 0 ? INVALID_VALUE : 0;
}

int cuMemImportFromShareableHandle(uint64_t *memory, void *fd, unsigned type)
{
	ENTER("cuMemImportFromShareableHandle", "%u", type);
	int copy = type == 1 ? fcntl((int)(uintptr_t)fd, F_DUPFD_CLOEXEC, 3) : -1;
	*memory = copy;
	return copy < 0 ? INVALID_VALUE : 0;
}

int cuMemRelease(uint64_t memory) { ENTER("cuMemRelease"); return close(memory) ? INVALID_VALUE : 0; }

int cuMemAddressReserve(ptr *p, size_t size, size_t align, ptr hint, uint64_t flags)
{
	(void)align, (void)hint, (void)flags;
	ENTER("cuMemAddressReserve", "%zu", size);
	char *at = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return at == MAP_FAILED ? OUT_OF_MEMORY : enter(at, size, RESERVED, "", -1, p);
}

int cuMemMap(ptr p, size_t size, size_t offset, uint64_t memory, uint64_t flags)
{
	(void)flags;
	ENTER("cuMemMap", "%zu", size);
	struct stat st;
	char *at = real(p, size);
	if (!at || offset || fstat(memory, &st) || (size_t)st.st_size < size)
		return INVALID_VALUE;
	return mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, memory, 0) == at ? 0 : OUT_OF_MEMORY;
}

int cuMemSetAccess(ptr p, size_t size, const void *desc, size_t count)
{
	(void)desc;
	return real(p, size) && count == 1 ? standin_fault("cuMemSetAccess") : INVALID_VALUE;
}

int cuMemUnmap(ptr p, size_t size) { ENTER("cuMemUnmap"); return real(p, size) ? 0 : INVALID_VALUE; }
int cuMemAddressFree(ptr p, size_t size) { (void)size; ENTER("cuMemAddressFree"); return leave(p, RESERVED); }

int cuMemHostRegister_v2(void *at, size_t size, unsigned flags)
{
	(void)at, (void)flags;
	ENTER("cuMemHostRegister", "%zu", size);
	return 0;
}

int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)1; return flags == 1 ? 0 : INVALID_VALUE; }
int cuStreamSynchronize(void *stream) { (void)stream; return standin_fault("cuStreamSynchronize"); }

static int copy(char *to, const char *from, size_t len)
{
	if (!bound)
		return INVALID_CONTEXT;
	if (!to || !from)
		return INVALID_VALUE;
	memcpy(to, from, len);
	return 0;
}

int cuMemcpyHtoDAsync_v2(ptr to, const void *from, size_t len, void *stream)
{
	(void)stream;
	ENTER("cuMemcpyHtoDAsync", "%zu", len);
	return copy(real(to, len), from, len);
}

int cuMemcpyDtoHAsync_v2(void *to, ptr from, size_t len, void *stream)
{
	(void)stream;
	ENTER("cuMemcpyDtoHAsync", "%zu", len);
	return copy(to, real(from, len), len);
}

int cuMemcpyDtoDAsync_v2(ptr to, ptr from, size_t len, void *stream)
{
	(void)stream;
	ENTER("cuMemcpyDtoDAsync", "%zu", len);
	return copy(real(to, len), real(from, len), len);
}

int cuMemcpyDtoD_v2(ptr to, ptr from, size_t len) { return copy(real(to, len), real(from, len), len); }
int cuMemcpyHtoD_v2(ptr to, const void *from, size_t len) { return copy(real(to, len), from, len); }
int cuMemcpyDtoH_v2(void *to, ptr from, size_t len) { return copy(to, real(from, len), len); }
