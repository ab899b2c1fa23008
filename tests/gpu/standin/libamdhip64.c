/* The stand-in for libcuda.so.1 under HIP's names. */
#include "libcuda.c"

int hipInit(unsigned flags) { return cuInit(flags); }
int hipGetDeviceCount(int *n) { return cuDeviceGetCount(n); }
int hipDeviceGetUuid(unsigned char *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
int hipSetDevice(int device) { (void)device; return cuCtxSetCurrent((void *)1); }
int hipDeviceSynchronize(void) { return cuCtxSynchronize(); }
int hipMalloc(ptr *p, size_t size) { return cuMemAlloc_v2(p, size); }
int hipFree(ptr p) { return cuMemFree_v2(p); }
int hipMemset(ptr p, int byte, size_t len) { return cuMemsetD8_v2(p, byte, len); }
int hipIpcGetMemHandle(ipc_handle *handle, ptr p) { return cuIpcGetMemHandle(handle, p); }
int hipIpcOpenMemHandle(ptr *p, ipc_handle handle, unsigned f) { return cuIpcOpenMemHandle_v2(p, handle, f); }
int hipIpcCloseMemHandle(ptr p) { return cuIpcCloseMemHandle(p); }
int hipMemGetAddressRange(ptr *base, size_t *size, ptr p) { return cuMemGetAddressRange_v2(base, size, p); }
int hipHostRegister(void *at, size_t size, unsigned flags) { return cuMemHostRegister_v2(at, size, flags); }
int hipStreamCreateWithFlags(void **stream, unsigned flags) { return cuStreamCreate(stream, flags); }
int hipStreamSynchronize(void *stream) { return cuStreamSynchronize(stream); }
int hipMemcpyHtoDAsync(ptr to, const void *from, size_t n, void *s) { return cuMemcpyHtoDAsync_v2(to, from, n, s); }
int hipMemcpyDtoHAsync(void *to, ptr from, size_t n, void *s) { return cuMemcpyDtoHAsync_v2(to, from, n, s); }
int hipMemcpyDtoDAsync(ptr to, ptr from, size_t n, void *s) { return cuMemcpyDtoDAsync_v2(to, from, n, s); }
