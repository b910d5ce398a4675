/* model_pack.c: packs the matrices of an open model for the kernels, all threads together. */
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "error.h"
#include "model.h"
#include "threads.h"

/* Below this many bytes threads cost more than they help. */
#define BYTES_WORTH_THREADS ((size_t)4 << 20)
#define MOST_THREADS 16

typedef struct {
    tensor **matrices;
    size_t num_matrices;
    char *panels;        /* of the first matrix; the others follow */
    atomic_bool no_memory;
} pack_job;

static int64_t num_panels(const tensor *t) { return (t->num_rows + PANEL_ROWS - 1) / PANEL_ROWS; }

/* Bytes of a matrix's panels, and of what lies between it and the next. */
static uint64_t packed_bytes(const tensor *t) {
    const uint64_t bytes = (uint64_t)num_panels(t) * t->panel_bytes;
    return (bytes + PANEL_ALIGNMENT - 1) / PANEL_ALIGNMENT * PANEL_ALIGNMENT;
}

static void pack_worker(void *argument, worker w) {
    pack_job *job = argument;
    char *panels = job->panels;
    for (size_t i = 0; i < job->num_matrices; i++) {
        tensor *t = job->matrices[i];
        int64_t first, last;
        threads_share(w, num_panels(t), 1, &first, &last);
        if (!panel_pack(t->type, t->data, t->row_bytes, t->num_rows, t->row_length, first, last, panels))
            atomic_store(&job->no_memory, true);
        panels += packed_bytes(t);
    }
}

/* Every matrix once, in the order of use: those of the layers, then the output. */
static tensor **list_matrices(llamita_model *model, size_t *num_matrices) {
    const size_t num_layers = (size_t)model->info.num_hidden_layers;
    tensor **matrices = malloc((num_layers * MATRICES_PER_LAYER + 1) * sizeof *matrices);
    if (matrices == NULL) return NULL;
    for (size_t i = 0; i < num_layers; i++) model_layer_matrices(&model->layers[i], matrices + i * MATRICES_PER_LAYER);
    matrices[num_layers * MATRICES_PER_LAYER] = &model->output;
    *num_matrices = num_layers * MATRICES_PER_LAYER + 1;
    return matrices;
}

/* Zeroed memory; 0 of it cannot be had. Huge pages, as most of a token's time goes by in reading the weights: 110M F32 on
 * 2 threads, 52 to 66 tok/s in small pages (it depends on where they lie), 64 to 68 in huge ones. */
static void *reserve(uint64_t num_bytes) {
    if (num_bytes == 0 || num_bytes > SIZE_MAX / 2) return NULL;
    void *memory = mmap(NULL, (size_t)num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    (void)madvise(memory, (size_t)num_bytes, MADV_HUGEPAGE); /* small ones will do where there are none */
#endif
    return memory;
}

static bool pack_all(pack_job *job, uint64_t num_bytes) {
    const int available = threads_available(), most = available < MOST_THREADS ? available : MOST_THREADS;
    threads *team = threads_create(num_bytes < BYTES_WORTH_THREADS ? 1 : most);
    if (team == NULL) return false;
    threads_run(team, threads_count(team), pack_worker, job);
    threads_free(team);
    return !atomic_load(&job->no_memory);
}

/* What model_allocate gave for this matrix alone (llama2.c version 2 becomes floats first) is not needed any more. */
static void forget_rows(llamita_model *model, tensor *t) {
    for (size_t i = 0; i < model->num_owned; i++)
        if (model->owned[i] == t->data && t->data != model->token_embedding.data) {
            free(model->owned[i]);
            model->owned[i] = model->owned[--model->num_owned];
            break;
        }
    t->data = NULL;
}

llamita_status model_pack(llamita_model *model, const char *path, llamita_error *error) {
    size_t num_matrices = 0;
    uint64_t num_bytes = 0;
    tensor **matrices = list_matrices(model, &num_matrices);
    for (size_t i = 0; matrices != NULL && i < num_matrices; i++) {
        matrices[i]->format = panel_format_of(matrices[i]->type);
        matrices[i]->panel_bytes = panel_bytes(matrices[i]->format, matrices[i]->row_length);
        num_bytes += packed_bytes(matrices[i]);
    }
    void *memory = matrices != NULL ? reserve(num_bytes) : NULL;
    if (memory != NULL) {
        model->packed = memory;
        model->packed_bytes = (size_t)num_bytes;
    }
    pack_job job = {.matrices = matrices, .num_matrices = num_matrices, .panels = memory};
    atomic_init(&job.no_memory, false);
    if (memory == NULL || !pack_all(&job, num_bytes)) {
        free(matrices);
        return error_set(error, LLAMITA_ERROR_MEMORY,
                         "cannot open model %s: no memory for %llu bytes of weights in the kernels' layout",
                         error_path(path), (unsigned long long)num_bytes);
    }
    const char *panels = memory;
    for (size_t i = 0; i < num_matrices; i++) {
        matrices[i]->panels = panels;
        panels += packed_bytes(matrices[i]);
        forget_rows(model, matrices[i]);
    }
    free(matrices);
    (void)mprotect(memory, (size_t)num_bytes, PROT_READ);
#ifdef MADV_DONTNEED
    (void)madvise(model->mapping, model->mapping_bytes, MADV_DONTNEED); /* the file's pages come back when asked for */
#endif
    return LLAMITA_OK;
}
