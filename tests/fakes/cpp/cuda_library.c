/* libcudart and libcuda of a machine whose device memory is host memory: addresses must be right. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

int cudaStreamCreate(void **stream) { return *stream = malloc(1), *stream == NULL; }
int cudaStreamSynchronize(void *stream) { return stream == NULL; }
int cudaStreamDestroy(void *stream) { return free(stream), 0; }
int cudaMalloc(void **address, size_t size) { return *address = malloc(size), *address == NULL ? 2 : 0; }
int cudaFree(void *address) { return free(address), 0; }
int cudaMallocHost(void **address, size_t size) { return cudaMalloc(address, size); }
int cudaFreeHost(void *address) { return free(address), 0; }
int cudaMemcpyAsync(void *to, const void *source, size_t size, int kind, void *stream) {
    if (stream == NULL || kind < 1 || kind > 2) return 1;
    return memcpy(to, source, size), 0;
}
const char *cudaGetErrorString(int error) { return error == 2 ? "out of memory" : "invalid value"; }

int cuInit(unsigned flags) { return flags != 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char *name, int size, int device) { return strncpy(name, "Orin", (size_t)size), device; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return *value = attribute == 75 ? 8 : 7, device; }
