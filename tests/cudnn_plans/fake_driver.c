/* A stand-in for libcuda.so.1, for planning without a GPU (DESIGN: no device, but a driver to load).
 *
 * cuDNN compiles fused graphs at run time and hands the result to the driver, so for such plans a
 * driver must be loadable although nothing will run. This one says "no device", knows no export
 * table, gives out handles for libraries, modules, kernels and functions, resolves every name
 * within itself, and answers success to everything else. It stands on the loader path of the
 * planner's process only. */
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

enum { SUCCESS = 0, NO_DEVICE = 100, NOT_FOUND = 500, DRIVER_VERSION = 13000 };

#define EXPORT __attribute__((visibility("default")))

static int object; /* what all handles point to */

static int anything(void) { return SUCCESS; }

EXPORT int cuInit(unsigned flags)
{
    (void)flags;
    return NO_DEVICE;
}

EXPORT int cuDriverGetVersion(int *version)
{
    *version = DRIVER_VERSION;
    return SUCCESS;
}

EXPORT int cuDeviceGetCount(int *count)
{
    *count = 0;
    return SUCCESS;
}

EXPORT int cuGetExportTable(const void **table, const void *id)
{
    (void)id;
    *table = NULL;
    return NOT_FOUND;
}

EXPORT int cuGetErrorString(int error, const char **text)
{
    *text = error == NO_DEVICE ? "no device: this is a stand-in" : "stand-in driver";
    return SUCCESS;
}

EXPORT int cuGetErrorName(int error, const char **text) { return cuGetErrorString(error, text); }

/* Loaded code and what is found in it: some handle that is not NULL. */
#define GIVES_HANDLE(name)                                                                                             \
    EXPORT int name(void **out)                                                                                        \
    {                                                                                                                  \
        *out = &object;                                                                                                \
        return SUCCESS;                                                                                                \
    }
GIVES_HANDLE(cuLibraryLoadData)
GIVES_HANDLE(cuLibraryLoadFromFile)
GIVES_HANDLE(cuLibraryGetKernel)
GIVES_HANDLE(cuLibraryGetModule)
GIVES_HANDLE(cuKernelGetFunction)
GIVES_HANDLE(cuModuleLoadData)
GIVES_HANDLE(cuModuleLoadDataEx)
GIVES_HANDLE(cuModuleLoadFatBinary)
GIVES_HANDLE(cuModuleGetFunction)
GIVES_HANDLE(cuCtxGetCurrent)

/* What cuDNN's library is linked against, or looks up by itself, and what cannot be left out therefore. */
#define ACCEPTS(name)                                                                                                  \
    EXPORT int name(void) { return SUCCESS; }
ACCEPTS(cuModuleUnload)
ACCEPTS(cuModuleGetGlobal_v2)
ACCEPTS(cuTensorMapEncodeIm2col)
ACCEPTS(cuTensorMapEncodeTiled)
ACCEPTS(cuCtxGetDevice)
ACCEPTS(cuCtxGetLimit)
ACCEPTS(cuCtxPopCurrent)
ACCEPTS(cuCtxPushCurrent)
ACCEPTS(cuStreamGetCtx)
ACCEPTS(cuStreamSynchronize)
ACCEPTS(cuLinkCreate)
ACCEPTS(cuLinkCreate_v2)
ACCEPTS(cuLinkAddData)
ACCEPTS(cuLinkAddData_v2)
ACCEPTS(cuLinkAddFile_v2)
ACCEPTS(cuLinkComplete)
ACCEPTS(cuLinkDestroy)
ACCEPTS(cuLaunchKernel)
ACCEPTS(cuLaunchCooperativeKernel)
ACCEPTS(cuLaunchKernelEx)
ACCEPTS(cuDeviceGet)
ACCEPTS(cuDeviceGetAttribute)
ACCEPTS(cuDevicePrimaryCtxRetain)
ACCEPTS(cuDevicePrimaryCtxRelease)
ACCEPTS(cuDevicePrimaryCtxReset)
ACCEPTS(cuFuncGetAttribute)
ACCEPTS(cuFuncSetAttribute)
ACCEPTS(cuLibraryUnload)
ACCEPTS(cuKernelSetAttribute)
ACCEPTS(cuKernelGetAttribute)
ACCEPTS(cuMemcpyDtoH_v2)
ACCEPTS(cuOccupancyMaxPotentialClusterSize)
ACCEPTS(cuOccupancyMaxActiveBlocksPerMultiprocessor)

static void *resolve(const char *name)
{
    void *self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD), *found = NULL;
    if (self != NULL) {
        found = dlsym(self, name);
        dlclose(self);
    }
    return found != NULL ? found : (void *)anything;
}

EXPORT int cuGetProcAddress_v2(const char *name, void **out, int version, unsigned long long flags, int *status)
{
    (void)version, (void)flags;
    *out = resolve(strcmp(name, "cuGetProcAddress") == 0 ? "cuGetProcAddress_v2" : name);
    if (status != NULL)
        *status = SUCCESS;
    return SUCCESS;
}

EXPORT int cuGetProcAddress(const char *name, void **out, int version, unsigned long long flags)
{
    return cuGetProcAddress_v2(name, out, version, flags, NULL);
}
