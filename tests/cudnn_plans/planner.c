/* Plans convolutions with the real cuDNN for a GPU that is not there: kernels/cudnn_graph.c, the very
 * code of the plugin, against a device property descriptor.
 *
 *     planner DEVICE.json < graphs > plans
 *
 * A line of input is a conv_spec, its words in order, then the compute capability, how many plans
 * are wanted (0: one, with the filter off), all in decimal. A line of output, tab-separated:
 *     found proposed refused too_large unbuildable refused_notes refused_behavior status milliseconds
 * then for each plan  engine notes behavior workspace  and at last cuDNN's words for what failed. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda.h"
#include "cudnn_graph.h"

enum { WORDS = sizeof(conv_spec) / sizeof(int64_t), MAX_PLANS = 8 };

static int fail(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return code;
}

asen_services cuda_host = {.fail = fail};

static char *read_file(const char *path, size_t *length)
{
    char *text = NULL;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0)
        goto done;
    long size = ftell(file);
    if (size < 0 || fseek(file, 0, SEEK_SET) != 0 || (text = malloc((size_t)size + 1)) == NULL)
        goto done;
    *length = fread(text, 1, (size_t)size, file);
    text[*length] = '\0';
done:
    if (file != NULL)
        fclose(file);
    return text;
}

static cudnnStatus_t describe(const char *path, cudnnBackendDescriptor_t *out)
{
    size_t length = 0;
    char *json = read_file(path, &length);
    if (json == NULL)
        return CUDNN_STATUS_BAD_PARAM;
    cudnnStatus_t status = cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, out);
    if (status == CUDNN_STATUS_SUCCESS)
        status = cudnnBackendSetAttribute(*out, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                                          (int64_t)length, json);
    if (status == CUDNN_STATUS_SUCCESS)
        status = cudnnBackendFinalize(*out);
    free(json);
    return status;
}

static double milliseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static int plan(const conv_target *target, const conv_spec *spec, int wanted)
{
    conv_plan plans[MAX_PLANS];
    conv_search search;
    int found = 0;
    unsigned refused = wanted == 0 ? 0 : conv_refused_notes(spec, target->sm);
    double began = milliseconds();
    if (conv_plans_find(target, spec, refused, wanted == 0 ? 1 : wanted < MAX_PLANS ? wanted : MAX_PLANS, plans, &found,
                        &search) != ASEN_OK)
        return 1;
    printf("%d\t%d\t%d\t%d\t%d\t%u\t%u\t%d\t%.1f", found, search.proposed, search.refused, search.too_large,
           search.unbuildable, search.refused_notes, search.refused_behavior, (int)search.status, milliseconds() - began);
    for (int i = 0; i < found; i++) {
        printf("\t%lld\t%u\t%u\t%lld", (long long)plans[i].engine, plans[i].notes, plans[i].behavior,
               (long long)plans[i].workspace);
        conv_plan_free(&plans[i]);
    }
    for (char *c = search.why; *c; c++)
        if (*c == '\n' || *c == '\t')
            *c = ' ';
    printf("\t%s%s%s\n", search.call ? search.call : "", search.why[0] ? ": " : "", search.why);
    return fflush(stdout) == 0 ? 0 : 1;
}

/* 1: a line was read; 0: the end; -1: not a line of ours. */
static int read_line(conv_spec *spec, int *sm, int *wanted)
{
    char line[1024], *at = line, *end;
    int64_t word[WORDS + 2];
    if (fgets(line, sizeof line, stdin) == NULL)
        return 0;
    for (int i = 0; i < WORDS + 2; i++) {
        word[i] = strtoll(at, &end, 10);
        if (end == at)
            return -1;
        at = end;
    }
    memcpy(spec, word, sizeof *spec);
    *sm = (int)word[WORDS];
    *wanted = (int)word[WORDS + 1];
    return 1;
}

int main(int argc, char **argv)
{
    conv_target target = {0};
    conv_spec spec;
    int wanted = 0, more;
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        printf("%zu\n", cudnnGetVersion());
        return 0;
    }
    if (argc != 2) {
        fprintf(stderr, "usage: planner DEVICE.json < graphs\n");
        return 2;
    }
    cudnnStatus_t status = describe(argv[1], &target.device);
    if (status != CUDNN_STATUS_SUCCESS) {
        char why[512] = "";
        cudnnGetLastErrorString(why, sizeof why);
        fprintf(stderr, "%s: cuDNN cannot use it as a device: %s %s\n", argv[1], cudnnGetErrorString(status), why);
        return 1;
    }
    while ((more = read_line(&spec, &target.sm, &wanted)) == 1)
        if (plan(&target, &spec, wanted) != 0)
            return 1;
    cudnnBackendDestroyDescriptor(target.device);
    if (more < 0) {
        fprintf(stderr, "a line of input is not %d numbers\n", (int)WORDS + 2);
        return 2;
    }
    return 0;
}
