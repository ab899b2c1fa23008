/* A GPU whose memory is the host's: what LMCache's GDS backend asks of CUDA when it is told to use no GDS.
 * Compiled twice, as libcudart.so and as libcufile.so. */

#include <stdlib.h>
#include <string.h>

#ifdef CUDART
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    (void)kind;
    memcpy(to, from, bytes);
    return 0;
}
#else
typedef struct { int cufile, cuda; } Status;
static const Status good;

/* The buffer is registered all the same. */
Status cuFileBufRegister(const void *buffer, size_t bytes, int flags) {
    (void)buffer, (void)bytes, (void)flags;
    return good;
}
Status cuFileBufDeregister(const void *buffer) {
    (void)buffer;
    return good;
}

/* Looked up when the binding is imported. Whoever gets here uses GDS after all. */
void cuFileDriverOpen(void) { abort(); }
void cuFileDriverClose(void) { abort(); }
void cuFileHandleRegister(void) { abort(); }
void cuFileHandleDeregister(void) { abort(); }
void cuFileRead(void) { abort(); }
void cuFileWrite(void) { abort(); }
#endif
