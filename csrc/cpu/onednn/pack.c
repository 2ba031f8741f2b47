/* Packed filters: each parameter is reordered into oneDNN's layout once per change.
 *
 * A pack belongs to (storage id, offset, packed descriptor) and is valid for one edition of the
 * storage (core/storage.h); a later edition is packed into the same memory, so a training step
 * allocates nothing. The edition is read before the values: what was packed while another thread
 * wrote lies under the edition before that write, and is packed anew at the next call.
 * Bounded in bytes; what was not asked for during the last AGE look-ups (several steps of any
 * model) is freed, which is how packs of dead parameters go. Memory that others can write
 * (a wrapped NumPy array, a tensor with a live numpy() view) is packed at every call. */
#include "cpu/onednn/onednn.h"

#ifdef ASEN_ONEDNN
#include <pthread.h>
#include <stdlib.h>

enum { BUCKETS = 512, AGE = 4096 };
static const size_t MAX_BYTES = (size_t)512 << 20;

struct asen_onednn_pack {
    uint64_t storage, edition, used_at;
    int64_t offset;
    dnnl_memory_desc_t desc; /* owned */
    void *data;
    size_t bytes;
    int users;
    bool filled; /* `data` holds the values of `edition` */
    bool listed; /* in the table; else freed by the last user */
    struct asen_onednn_pack *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static asen_onednn_pack *table[BUCKETS];
static size_t total_bytes;
static uint64_t clock_ticks, fills;

static size_t bucket_of(uint64_t storage, int64_t offset)
{
    return (size_t)((storage * 0x9E3779B97F4A7C15u ^ (uint64_t)offset * 0xC2B2AE3D27D4EB4Fu) >> 40) % BUCKETS;
}

static void pack_free(asen_onednn_pack *pack)
{
    if (pack->desc) dnnl_memory_desc_destroy(pack->desc);
    free(pack->data);
    free(pack);
}

/* Takes *link out of the table; frees it unless somebody uses it. Called locked. */
static void pack_unlink(asen_onednn_pack **link)
{
    asen_onednn_pack *pack = *link;
    *link = pack->next;
    pack->listed = false;
    total_bytes -= pack->bytes;
    if (pack->users == 0) pack_free(pack);
}

/* Frees what is older than AGE look-ups. Called locked. */
static void sweep(void)
{
    for (int i = 0; i < BUCKETS; i++)
        for (asen_onednn_pack **p = &table[i]; *p;) {
            if (clock_ticks - (*p)->used_at > AGE) pack_unlink(p);
            else p = &(*p)->next;
        }
}

/* Unlinks the longest unused until `bytes` fit. Called locked. */
static void evict_for(size_t bytes)
{
    while (total_bytes && total_bytes + bytes > MAX_BYTES) {
        asen_onednn_pack **oldest = NULL;
        for (int i = 0; i < BUCKETS; i++)
            for (asen_onednn_pack **p = &table[i]; *p; p = &(*p)->next)
                if (!oldest || (*p)->used_at < (*oldest)->used_at) oldest = p;
        if (!oldest) return;
        pack_unlink(oldest);
    }
}

static asen_onednn_pack *pack_new(const asen_onednn_plan *plan)
{
    asen_onednn_pack *pack = calloc(1, sizeof *pack);
    if (!pack) return NULL;
    pack->bytes = plan->packed_bytes;
    if (posix_memalign(&pack->data, 64, pack->bytes) ||
        dnnl_memory_desc_clone(&pack->desc, plan->arg[plan->packed].desc) != dnnl_success) {
        pack_free(pack);
        return NULL;
    }
    return pack;
}

int asen_onednn_pack_get(const asen_call *call, asen_onednn_plan *plan, const asen_tensor *tensor,
                         asen_onednn_fill fill, asen_onednn_pack **out, void **data)
{
    *out = NULL;
    const asen_storage *storage = tensor->storage;
    uint64_t edition;
    int status = ASEN_OK;
    asen_onednn_pack **link = &table[bucket_of(storage->id, tensor->offset)], *pack = NULL;

    pthread_mutex_lock(&lock);
    bool keep = asen_storage_edition(storage, &edition);
    if (++clock_ticks % AGE == 0) sweep();
    while (keep && *link) {
        pack = *link;
        if (pack->storage == storage->id && pack->offset == tensor->offset &&
            dnnl_memory_desc_equal(pack->desc, plan->arg[plan->packed].desc))
            break;
        link = &pack->next;
        pack = NULL;
    }
    if (pack && pack->edition != edition && pack->users) { /* somebody still reads the old values */
        pack_unlink(link);
        pack = NULL;
    }
    if (!pack) {
        if (keep) evict_for(plan->packed_bytes);
        pack = pack_new(plan);
        if (!pack) {
            status = asen_fail(ASEN_ERR_MEMORY, "oneDNN: %s: no memory for a packed filter of %zu bytes",
                               asen_op_get(call->op)->name, plan->packed_bytes);
            goto done;
        }
        pack->storage = storage->id;
        pack->offset = tensor->offset;
        if (keep) {
            link = &table[bucket_of(storage->id, tensor->offset)];
            pack->next = *link;
            *link = pack;
            pack->listed = true;
            total_bytes += pack->bytes;
        }
    }
    pack->used_at = clock_ticks;
    if (!pack->filled || pack->edition != edition) { /* locked: a second thread that wants the same filter waits for it */
        pack->filled = false; /* a child that is forked meanwhile finds it so */
        status = fill(call, plan, tensor, pack->data);
        pack->filled = !status;
        pack->edition = edition;
        fills++;
    }
    if (status) {
        if (!pack->listed) pack_free(pack);
        goto done;
    }
    pack->users++;
    *out = pack;
    *data = pack->data;
done:
    pthread_mutex_unlock(&lock);
    return status;
}

uint64_t asen_onednn_pack_fills(void)
{
    pthread_mutex_lock(&lock);
    uint64_t count = fills;
    pthread_mutex_unlock(&lock);
    return count;
}

void asen_onednn_pack_put(asen_onednn_pack *pack)
{
    if (!pack) return;
    pthread_mutex_lock(&lock);
    if (--pack->users == 0 && !pack->listed) pack_free(pack);
    pthread_mutex_unlock(&lock);
}

#else
uint64_t asen_onednn_pack_fills(void) { return 0; }
#endif
