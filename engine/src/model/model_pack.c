/* model_pack.c: packs the matrices of an open model for the kernels, on all threads together. */
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "model/model.h"
#include "runtime/error.h"
#include "runtime/thread_pool.h"

/* Below this size, starting threads takes longer than it saves. */
#define MIN_BYTES_FOR_THREADS ((size_t)4 << 20)
#define MAX_PACK_THREADS 16

/* The unit of work of a thread, and the size of the system's huge pages. */
#define HUGE_PAGE_BYTES ((uint64_t)2 << 20)

typedef struct {
    tensor **matrices;
    size_t num_matrices;
    char *panels;               /* of the first matrix; the others follow */
    uint64_t num_bytes;         /* of all panels */
    const llamita_model *model; /* its files are released from memory once everything is packed */
    model_task *task;           /* run first by one worker; NULL: nothing */
    void *argument;             /* of task */
    _Atomic uint64_t next_page;
    atomic_bool no_memory;
} pack_job;

static int64_t num_panels(const tensor *t) { return panel_count(t->num_rows); }

/* Bytes of a matrix's panels, including padding up to the next matrix. */
static uint64_t packed_bytes(const tensor *t) {
    const uint64_t bytes = (uint64_t)num_panels(t) * t->panel_bytes;
    return (bytes + PANEL_ALIGNMENT - 1) / PANEL_ALIGNMENT * PANEL_ALIGNMENT;
}

/* The first panel of a matrix starting at `start` that starts at `byte` or later. */
static int64_t panel_from(const tensor *t, uint64_t start, uint64_t byte) {
    const uint64_t panel = byte > start ? (byte - start + t->panel_bytes - 1) / t->panel_bytes : 0;
    return panel < (uint64_t)num_panels(t) ? (int64_t)panel : num_panels(t);
}

/* Each thread takes the next page when it is free, so a thread that gets less processor time packs
 * less, and no two threads wait for the system to zero the same page. */
static void pack_pages(pack_job *job) {
    size_t i = 0;
    uint64_t start = 0; /* of matrix i, in bytes from the first panel */
    for (;;) {
        const uint64_t page = atomic_fetch_add(&job->next_page, 1) * HUGE_PAGE_BYTES, end = page + HUGE_PAGE_BYTES;
        if (page >= job->num_bytes) return;
        for (; start + packed_bytes(job->matrices[i]) <= page; i++) start += packed_bytes(job->matrices[i]);
        uint64_t at = start;
        for (size_t m = i; m < job->num_matrices && at < end; at += packed_bytes(job->matrices[m]), m++) {
            const tensor *t = job->matrices[m];
            const int64_t first = panel_from(t, at, page), last = panel_from(t, at, end);
            if (first < last &&
                !panel_pack(t->type, t->data, t->row_bytes, t->num_rows, t->row_length, first, last, job->panels + at))
                atomic_store(&job->no_memory, true);
        }
    }
}

/* Releases a share of the mapping, which is read again on access. */
static void release_mapping(worker w, void *mapping, size_t num_bytes) {
#ifdef MADV_DONTNEED
    int64_t begin, end;
    thread_pool_share(w, (int64_t)num_bytes, (int64_t)HUGE_PAGE_BYTES, &begin, &end);
    (void)madvise((char *)mapping + begin, (size_t)(end - begin), MADV_DONTNEED);
#endif
}

static void pack_worker(void *argument, worker w) {
    pack_job *job = argument;
    if (w.index == 0 && job->task) job->task(job->argument);
    pack_pages(job);
    thread_pool_barrier(w);
    const llamita_model *model = job->model;
    release_mapping(w, model->mapping, model->mapping_bytes);
    for (int32_t i = 0; i < model->num_pieces; i++)
        release_mapping(w, model->pieces[i].mapping, model->pieces[i].mapping_bytes);
}

/* Lists every matrix in the order of use: the layers, then the output. The caller frees the
 * list. */
static tensor **list_matrices(llamita_model *model, size_t *num_matrices) {
    const size_t num_layers = (size_t)model->info.num_hidden_layers;
    tensor **matrices = malloc((num_layers * MATRICES_PER_LAYER + 1) * sizeof *matrices);
    if (!matrices) return NULL;
    for (size_t i = 0; i < num_layers; i++) model_layer_matrices(&model->layers[i], matrices + i * MATRICES_PER_LAYER);
    matrices[num_layers * MATRICES_PER_LAYER] = &model->output;
    *num_matrices = num_layers * MATRICES_PER_LAYER + 1;
    return matrices;
}

/* Returns zeroed memory that starts at a huge page, or NULL. Huge pages, because num_threads of the
 * time per token goes into reading the weights: 110M F32 on 2 threads, 52 to 66 tok/s in small
 * pages (depending on their placement), 64 to 68 in huge ones. The last, partial page stays small,
 * so only memory that is used is taken. */
static void *reserve(uint64_t num_bytes) {
    if (num_bytes == 0 || num_bytes > SIZE_MAX / 2) return NULL;
    const size_t wanted = (size_t)num_bytes, huge = (size_t)HUGE_PAGE_BYTES;
    char *memory = mmap(NULL, wanted + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
    const size_t before = (huge - (uintptr_t)memory % huge) % huge, page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t used = (before + wanted + page - 1) / page * page;
    if (before > 0) (void)munmap(memory, before);
    (void)munmap(memory + used, wanted + huge - used);
#ifdef MADV_HUGEPAGE
    if (wanted >= huge) (void)madvise(memory + before, wanted / huge * huge, MADV_HUGEPAGE);
#endif
    return memory + before;
}

static bool pack_all(pack_job *job) {
    const int available = thread_pool_available(),
              num_threads = available < MAX_PACK_THREADS ? available : MAX_PACK_THREADS;
    thread_pool *pool = thread_pool_create(job->num_bytes < MIN_BYTES_FOR_THREADS ? 1 : num_threads);
    if (!pool) return false;
    thread_pool_run(pool, thread_pool_size(pool), pack_worker, job);
    thread_pool_free(pool);
    return !atomic_load(&job->no_memory);
}

/* Frees the rows if model_allocate made them for this matrix alone (llama2.c version 2 is converted
 * to floats first). */
static void release_rows(llamita_model *model, tensor *t) {
    for (size_t i = 0; i < model->num_owned; i++)
        if (model->owned[i] == t->data && t->data != model->token_embedding.data) {
            free(model->owned[i]);
            model->owned[i] = model->owned[--model->num_owned];
            break;
        }
    t->data = NULL;
}

llamita_status model_pack(llamita_model *model, const char *path, model_task *task, void *argument,
                          llamita_error *error) {
    size_t num_matrices = 0;
    uint64_t num_bytes = 0;
    tensor **matrices = list_matrices(model, &num_matrices);
    for (size_t i = 0; matrices && i < num_matrices; i++) {
        matrices[i]->format = panel_format_of(matrices[i]->type);
        matrices[i]->panel_bytes = panel_bytes(matrices[i]->format, matrices[i]->row_length);
        num_bytes += packed_bytes(matrices[i]);
    }
    void *memory = matrices ? reserve(num_bytes) : NULL;
    if (memory) {
        model->packed = memory;
        model->packed_bytes = (size_t)num_bytes;
    }
    pack_job job = {.matrices = matrices,
                    .num_matrices = num_matrices,
                    .panels = memory,
                    .num_bytes = num_bytes,
                    .model = model,
                    .task = task,
                    .argument = argument};
    atomic_init(&job.next_page, 0);
    atomic_init(&job.no_memory, false);
    if (!memory || !pack_all(&job)) {
        free(matrices);
        return error_set(error, LLAMITA_ERROR_MEMORY,
                         "cannot open model %s: out of memory: cannot allocate %llu bytes for the packed weights",
                         error_path(path), (unsigned long long)num_bytes);
    }
    const char *panels = memory;
    for (size_t i = 0; i < num_matrices; i++) {
        matrices[i]->panels = panels;
        panels += packed_bytes(matrices[i]);
        release_rows(model, matrices[i]);
    }
    free(matrices);
    (void)mprotect(memory, (size_t)num_bytes, PROT_READ);
    return LLAMITA_OK;
}
