/* A libcuda.so.1 whose GPU memory is one block of host memory on GPU 1: shows that kvfs._cuda passes each
 * argument where the driver expects it. Functions that need a context fail without one, as the driver's do. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef unsigned long long u64;
struct handle { char bytes[64]; };

#define SIZE (4u << 20)
static char *block;
static __thread long current[8];
static __thread int depth;
int fake_legacy = 1, fake_synchronized, fake_opened;

#define CONTEXT if (!depth || current[depth - 1] != 0x1001) return 201

char *fake_block(void) { return block ? block : (block = aligned_alloc(4096, SIZE)); }

int cuInit(unsigned flags) { return flags ? 1 : 0; }
int cuDeviceGetCount(int *n) { *n = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 10 + ordinal; return ordinal < 2 ? 0 : 101; }
int cuDeviceGetUuid_v2(char *uuid, int device) { memset(uuid, 0, 16); uuid[15] = device; return 0; }
int cuDevicePrimaryCtxRetain(long *context, int device) { *context = 0x1000 + device - 10; return 0; }
int cuCtxPushCurrent_v2(long context) { current[depth++] = context; return 0; }
int cuCtxPopCurrent_v2(long *context) { *context = current[--depth]; return 0; }
int fake_depth(void) { return depth; }

int cuPointerGetAttribute(void *value, int attribute, u64 p) {
	if (p - (u64)block >= SIZE) return 1;
	if (attribute == 9) { *(int *)value = 1; return 0; }
	if (attribute == 13) { *(int *)value = fake_legacy; return 0; }
	return 1;
}
int cuMemGetAddressRange_v2(u64 *base, size_t *size, u64 p) {
	CONTEXT;
	if (p - (u64)block >= SIZE) return 1;
	*base = (u64)block;
	*size = SIZE;
	return 0;
}
int cuIpcGetMemHandle(struct handle *handle, u64 base) {
	CONTEXT;
	if (base != (u64)block) return 1;
	memset(handle->bytes, 0, 64);
	handle->bytes[0] = 7;
	handle->bytes[63] = 9;
	return 0;
}
int cuIpcOpenMemHandle_v2(u64 *p, struct handle handle, unsigned flags) {
	CONTEXT;
	if (handle.bytes[0] != 7 || handle.bytes[63] != 9 || flags != 1) return 1;
	*p = (u64)block;
	fake_opened++;
	return 0;
}
int cuIpcCloseMemHandle(u64 p) { CONTEXT; fake_opened--; return p == (u64)block ? 0 : 1; }
int cuMemRetainAllocationHandle(u64 *allocation, void *p) {
	CONTEXT;
	*allocation = 0x123456789abcdefull;
	return (u64)p - (u64)block < SIZE ? 0 : 1;
}
int cuMemExportToShareableHandle(void *fd, u64 allocation, int type, u64 flags) {
	if (allocation != 0x123456789abcdefull || type != 1 || flags) return 1;
	*(int *)fd = memfd_create("allocation", 0);
	return 0;
}
int cuMemRelease(u64 allocation) { return allocation == 0x123456789abcdefull ? 0 : 1; }
int cuCtxSynchronize(void) { CONTEXT; fake_synchronized = 1; return 0; }
int cuStreamSynchronize(u64 stream) { CONTEXT; fake_synchronized = (int)stream; return 0; }
int cuMemcpyHtoD_v2(u64 to, const void *from, size_t n) { CONTEXT; memcpy((void *)to, from, n); return 0; }
int cuMemcpyDtoH_v2(void *to, u64 from, size_t n) { CONTEXT; memcpy(to, (void *)from, n); return 0; }
