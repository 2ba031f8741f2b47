/* The device that is simulated: its limits, from a JSON description (as in cuDNN's device properties) or
 * an A100's. Environment, read once:
 *   CUDASIM_DEVICE   the JSON's path
 *   CUDASIM_MEMORY   bytes that cudaMalloc gives at most ("256M"); 4G, or what the device has
 *   CUDASIM_DRIVER   none | old | nodevice: what a machine without a usable GPU answers */
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sim.h"

namespace cudasim {

static double json_number(const std::string &text, const char *key, double otherwise)
{
    size_t at = text.find("\"" + std::string(key) + "\"");
    size_t colon = at == std::string::npos ? at : text.find(':', at);
    return colon == std::string::npos ? otherwise : atof(text.c_str() + colon + 1);
}

static std::string json_string(const std::string &text, const char *key, const char *otherwise)
{
    size_t at = text.find("\"" + std::string(key) + "\"");
    size_t open = at == std::string::npos ? at : text.find('"', text.find(':', at));
    size_t close = open == std::string::npos ? open : text.find('"', open + 1);
    return close == std::string::npos ? otherwise : text.substr(open + 1, close - open - 1);
}

static std::string file_text(const char *path)
{
    std::string text;
    FILE *f = path ? fopen(path, "r") : nullptr;
    if (path && !f)
        fatal("CUDASIM_DEVICE: cannot read %s", path);
    for (int c; f && (c = fgetc(f)) != EOF;)
        text += (char)c;
    if (f)
        fclose(f);
    return text;
}

static size_t size_of(const char *text)
{
    char *end;
    double value = strtod(text, &end);
    return (size_t)(value * (*end == 'K' ? 0x1p10 : *end == 'M' ? 0x1p20 : *end == 'G' ? 0x1p30 : 1));
}

static device_t device_new()
{
    device_t d{};
    std::string json = file_text(getenv("CUDASIM_DEVICE"));
    cudaDeviceProp &p = d.properties;
    int version = (int)json_number(json, "deviceVer", 800);
    snprintf(p.name, sizeof p.name, "%s (simulated)", json_string(json, "deviceName", "NVIDIA A100").c_str());
    p.major = version / 100;
    p.minor = version % 100 / 10;
    p.totalGlobalMem = (size_t)json_number(json, "totalGlobalMem", 85e9);
    p.sharedMemPerBlock = (size_t)json_number(json, "maxSharedMemoryPerBlock", 49152);
    p.sharedMemPerBlockOptin = (size_t)json_number(json, "maxSharedMemoryPerBlockOptin", 166912);
    p.reservedSharedMemPerBlock = (size_t)json_number(json, "reservedSharedMemoryPerBlock", 1024);
    p.sharedMemPerMultiprocessor = p.sharedMemPerBlockOptin + p.reservedSharedMemPerBlock;
    p.regsPerBlock = (int)json_number(json, "regsPerBlock", 65536);
    p.regsPerMultiprocessor = (int)json_number(json, "maxRegistersPerSM", 65536);
    p.warpSize = 32;
    p.maxThreadsPerBlock = (int)json_number(json, "maxThreadsPerBlock", 1024);
    p.maxThreadsPerMultiProcessor = (int)json_number(json, "maxThreadsPerSM", 2048);
    p.maxBlocksPerMultiProcessor = (int)json_number(json, "maxCtasPerSM", 32);
    p.multiProcessorCount = (int)json_number(json, "multiProcessorCount", 108);
    p.l2CacheSize = (int)json_number(json, "l2CacheSize", 41943040);
    p.totalConstMem = 65536;
    int block[3] = {1024, 1024, 64}, grid[3] = {2147483647, 65535, 65535};
    memcpy(p.maxThreadsDim, block, sizeof block);
    memcpy(p.maxGridSize, grid, sizeof grid);
    p.unifiedAddressing = p.canMapHostMemory = p.concurrentKernels = p.managedMemory = 1;
    p.asyncEngineCount = 2;
    p.memPitch = 2147483647;
    p.textureAlignment = 512;
    const char *memory = getenv("CUDASIM_MEMORY"), *driver = getenv("CUDASIM_DRIVER");
    size_t limit = (size_t)4 << 30;
    d.memory_limit = memory ? size_of(memory) : p.totalGlobalMem < limit ? p.totalGlobalMem : limit;
    if (memory)
        p.totalGlobalMem = d.memory_limit;
    d.driver = CUDART_VERSION;
    d.present = true;
    if (driver && strcmp(driver, "none") == 0)
        d.driver = 0;
    if (driver && strcmp(driver, "old") == 0)
        d.driver = 11040;
    if (driver && strcmp(driver, "nodevice") == 0)
        d.present = false;
    return d;
}

const device_t &device()
{
    static device_t d = device_new();
    return d;
}

cudaError_t device_error()
{
    if (forked())
        return cudaErrorInitializationError;
    if (device().driver / 1000 < CUDART_VERSION / 1000)
        return cudaErrorInsufficientDriver;
    return device().present ? cudaSuccess : cudaErrorNoDevice;
}

} // namespace cudasim
