/* The library of the fake CUDA driver, which cuda.bindings loads as libcuda.so.1: `fake_cuda.py` compiles and loads it.

   All functions are found through cuGetProcAddress. Those with an effect are written in Python, which passes them to `provide`.
   Here are those that only tell properties of the GPU, and those that destroy objects, because they are also called while Python
   is shutting down. All others return CUDA_ERROR_NOT_SUPPORTED. */

#include <stdio.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 801 };

typedef unsigned long long word;
typedef struct {
    const char *name;
    void *function;
} entry;

static int succeed(void) { return SUCCESS; }

static int not_supported(void) { return NOT_SUPPORTED; }

static int get_version(int *version) { return *version = 13000, SUCCESS; }

static int get_count(int *count) { return *count = 2, SUCCESS; }

static int get_device(int *device, int ordinal) { return *device = ordinal, SUCCESS; }

static int get_name(char *name, int size, int device) {
    (void)device;
    return snprintf(name, size, "Fake GPU"), SUCCESS;
}

static int get_uuid(char *uuid, int device) {
    return memset(uuid, 7 + device, 16), SUCCESS;
}

/* An H200, without what cuda.core would only use if it is there, such as pools of memory. */
static int get_attribute(int *value, int attribute, int device) {
    static const struct {
        int attribute, value;
    } attributes[] = {
        {1, 1024},   /* threads of a block */
        {8, 49152},  /* bytes of shared memory of a block, */
        {97, 232448}, /* and if a kernel asks for more */
        {10, 32},    /* threads of a warp */
        {12, 65536}, /* registers of a block */
        {16, 132},   /* multiprocessors */
        {41, 1},     /* one address space for host and GPU */
        {75, 9},     /* compute capability */
        {76, 0},
    };
    (void)device;
    *value = 0;
    for (size_t i = 0; i < sizeof attributes / sizeof *attributes; i++)
        if (attributes[i].attribute == attribute) *value = attributes[i].value;
    return SUCCESS;
}

static int get_api_version(void *context, unsigned *version) {
    (void)context;
    return *version = 13000, SUCCESS;
}

static int get_parameter(void *kernel, size_t index, size_t *offset, size_t *size) {
    (void)kernel, (void)index, (void)offset, (void)size;
    return 1; /* CUDA_ERROR_INVALID_VALUE: there is none */
}

/* What graphs keep is never destroyed. */
static int create_user_object(void **object) { return *object = object, SUCCESS; }

static int get_error(int error, const char **text) {
    static __thread char buffer[40];
    snprintf(buffer, sizeof buffer, "error %d", error);
    return *text = buffer, SUCCESS;
}

static entry entries[128] = {
    {"cuDriverGetVersion", get_version},
    {"cuDeviceGetCount", get_count},
    {"cuDeviceGet", get_device},
    {"cuDeviceGetName", get_name},
    {"cuDeviceGetUuid", get_uuid},
    {"cuDeviceGetAttribute", get_attribute},
    {"cuCtxGetApiVersion", get_api_version},
    {"cuKernelGetParamInfo", get_parameter},
    {"cuGetErrorName", get_error},
    {"cuGetErrorString", get_error},
    {"cuUserObjectCreate", create_user_object},
    {"cuUserObjectRelease", succeed},
    {"cuGraphRetainUserObject", succeed},
    {"cuGraphReleaseUserObject", succeed},
    {"cuDevicePrimaryCtxRelease", succeed},
    {"cuLibraryUnload", succeed},
    {"cuStreamDestroy", succeed},
    {"cuEventDestroy", succeed},
    {"cuGraphDestroy", succeed},
    {"cuGraphExecDestroy", succeed},
};

/* Use this function from now on. The names are those of the API, without a version. */
void provide(const char *name, void *function) {
    entry *each = entries;
    while (each->name && strcmp(each->name, name)) each++;
    each->name = each->name ? each->name : strdup(name);
    each->function = function;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, word flags, int *status) {
    (void)version, (void)flags;
    *function = not_supported;
    for (entry *each = entries; each->name; each++)
        if (!strcmp(each->name, name)) *function = each->function;
    if (status) *status = 0;
    return SUCCESS;
}
