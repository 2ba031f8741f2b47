/* A stand-in for libFuzzer: mutates a seed corpus by a seeded xorshift and calls the target in this
 * process, under whatever sanitizers it was built with.
 *
 *   driver CORPUS_FOLDER COUNT SEED
 *
 * Ends with an error where a case takes more than a second of processor time; a crash leaves its input in the file
 * that ASENPP_FUZZ_LAST names (written before each case, when set). */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_SEEDS 256
#define MAX_BYTES 65536

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct {
    uint8_t *bytes;
    size_t size;
} seed;

static seed seeds[MAX_SEEDS];
static int seeds_count;
static uint64_t state;

static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static size_t below(size_t n)
{
    return n ? (size_t)(next_random() % n) : 0;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int read_seeds(const char *folder)
{
    DIR *directory = opendir(folder);
    if (directory == NULL)
        return -1;
    struct dirent *entry;
    while ((entry = readdir(directory)) != NULL && seeds_count < MAX_SEEDS) {
        char path[4096];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        FILE *file = fopen(path, "rb");
        uint8_t *bytes = malloc(MAX_BYTES);
        if (file == NULL || bytes == NULL)
            return -1;
        seeds[seeds_count++] = (seed){bytes, fread(bytes, 1, MAX_BYTES, file)};
        fclose(file);
    }
    closedir(directory);
    return seeds_count ? 0 : -1;
}

/* One to eight changes: a bit, a byte, an odd value, a range removed, doubled or taken from another seed. */
static size_t mutate(uint8_t *p, size_t size)
{
    static const uint8_t odd[] = {0, 1, 0x7f, 0x80, 0xfe, 0xff, '\n', ':', '&', '*'};
    for (size_t changes = 1 + below(8); changes > 0 && size > 0; changes--) {
        size_t at = below(size), length = 1 + below(32);
        if (length > size - at)
            length = size - at;
        switch (below(7)) {
        case 0:
            p[at] ^= (uint8_t)(1u << below(8));
            break;
        case 1:
            p[at] = (uint8_t)next_random();
            break;
        case 2:
            p[at] = odd[below(sizeof odd)];
            break;
        case 3:
            memmove(p + at, p + at + length, size - at - length);
            size -= length;
            break;
        case 4:
            if (size + length <= MAX_BYTES) {
                memmove(p + at + length, p + at, size - at);
                size += length;
            }
            break;
        case 5: {
            const seed *other = &seeds[below((size_t)seeds_count)];
            size_t from = below(other->size);
            if (length > other->size - from)
                length = other->size - from;
            memcpy(p + at, other->bytes + from, length);
            break;
        }
        default:
            if (below(8) == 0)
                size = at;
        }
    }
    return size;
}

int main(int argc, char **argv)
{
    if (argc != 4 || read_seeds(argv[1])) {
        fprintf(stderr, "usage: driver CORPUS_FOLDER COUNT SEED (the folder holds at least one file)\n");
        return 2;
    }
    long count = strtol(argv[2], NULL, 10);
    state = strtoull(argv[3], NULL, 10) * 0x9e3779b97f4a7c15u | 1;
    const char *last = getenv("ASENPP_FUZZ_LAST");
    static uint8_t buffer[MAX_BYTES];
    double start = now(), slowest = 0;
    for (long i = 0; i < count; i++) {
        const seed *s = &seeds[below((size_t)seeds_count)];
        memcpy(buffer, s->bytes, s->size);
        size_t size = i < seeds_count ? s->size : mutate(buffer, s->size);
        uint8_t *exact = malloc(size ? size : 1); /* so that one byte too far is seen */
        if (exact == NULL)
            return 2;
        memcpy(exact, buffer, size);
        if (last != NULL) {
            FILE *file = fopen(last, "wb");
            if (file == NULL || fwrite(exact, 1, size, file) != size || fclose(file))
                return 2;
        }
        double begin = now();
        LLVMFuzzerTestOneInput(exact, size);
        double spent = now() - begin;
        free(exact);
        slowest = spent > slowest ? spent : slowest;
        if (spent > 1) {
            fprintf(stderr, "case %ld took %.2f s\n", i, spent);
            return 1;
        }
    }
    double spent = now() - start;
    printf("%ld cases, %.0f/s, slowest %.1f ms\n", count, (double)count / (spent > 0 ? spent : 1), 1e3 * slowest);
    return 0;
}
