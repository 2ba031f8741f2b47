/* Fuzz target: any bytes as a configuration file. */
#include <stdint.h>

#include "config/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    asen_yaml_document *document;
    if (asen_yaml_parse((const char *)data, size, "fuzz.yaml", &document) == 0)
        asen_yaml_free(document);
    return 0;
}
