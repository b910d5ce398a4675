/* model_pack.c: packs the matrices of a model for the kernels, on all threads together: while the
 * model is opened, or for the second pass. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "model/model_pack.h"
#include "runtime/error.h"

/* Below this size, starting threads takes longer than it saves. */
#define MIN_BYTES_FOR_THREADS ((size_t)4 << 20)
#define MAX_PACK_THREADS 16

/* The unit of work of a thread: no two threads wait for the system to zero the same page. */
#define UNIT_BYTES ((uint64_t)PLATFORM_HUGE_PAGE_BYTES)

/* Rows are read from a file, or put in order, in pieces that stay in the cache until they are packed. */
#define SCRATCH_BYTES ((size_t)256 << 10)

typedef struct {
    llamita_model *model;
    tensor **matrices;
    size_t num_matrices;
    char *panels;             /* of the first matrix; the others follow, then the embedding's rows */
    uint64_t num_panel_bytes; /* of all panels */
    uint64_t num_bytes;       /* with the embedding's rows */
    size_t scratch_bytes;     /* 0: all rows are packed from where they are */
    model_task *task;         /* run first by one worker; NULL: nothing */
    void *argument;           /* of task */
    _Atomic uint64_t next_unit;
    atomic_int status; /* a llamita_status */
} pack_job;

static int64_t num_panels(const tensor *t) { return panel_count(t->num_rows); }

/* The first panel of a matrix starting at `start` that starts at `byte` or later. */
static int64_t panel_from(const tensor *t, uint64_t start, uint64_t byte) {
    const uint64_t panel = byte > start ? (byte - start + t->panel_bytes - 1) / t->panel_bytes : 0;
    return panel < (uint64_t)num_panels(t) ? (int64_t)panel : num_panels(t);
}

/* Copies rows [first, first + num_rows) of the panels from the file. */
static bool read_rows(const llamita_model *model, const tensor *t, int64_t first, int64_t num_rows, char *to) {
    const char *rows = t->data;
    if (t->two_halves == 0)
        return model_read(model, rows + (size_t)first * t->row_bytes, (size_t)num_rows * t->row_bytes, to);
    for (int64_t row = first; row < first + num_rows; row++, to += t->row_bytes)
        if (!model_read(model, rows + (size_t)model_stored_row(t->two_halves, row) * t->row_bytes, t->row_bytes, to))
            return false;
    return true;
}

/* Packs panels [first, last) of the matrix whose panels start at `panels`. */
static void pack_panels(pack_job *job, const tensor *t, int64_t first, int64_t last, char *panels, char *scratch) {
    const size_t panel_rows_bytes = PANEL_ROWS * t->row_bytes;
    const char *rows = t->data;
    if (t->two_halves == 0 && model_is_in_memory(job->model, rows, (size_t)t->num_rows * t->row_bytes)) {
        if (!panel_pack(t->type, rows, t->row_bytes, t->num_rows, t->row_length, first, last, panels))
            atomic_store(&job->status, LLAMITA_ERROR_MEMORY);
        return;
    }
    const int64_t at_once = (int64_t)(job->scratch_bytes / panel_rows_bytes);
    for (int64_t panel = first; panel < last; panel += at_once) {
        const int64_t end = panel + at_once < last ? panel + at_once : last;
        const int64_t left = t->num_rows - panel * PANEL_ROWS, wanted = (end - panel) * PANEL_ROWS;
        const int64_t num_rows = wanted < left ? wanted : left;
        if (!read_rows(job->model, t, panel * PANEL_ROWS, num_rows, scratch))
            atomic_store(&job->status, LLAMITA_ERROR_IO);
        else if (!panel_pack(t->type, scratch, t->row_bytes, num_rows, t->row_length, 0, end - panel,
                             panels + (size_t)panel * t->panel_bytes))
            atomic_store(&job->status, LLAMITA_ERROR_MEMORY);
    }
}

/* Copies the part of the embedding's rows that belongs to bytes [begin, end) of the job. */
static void copy_embedding(pack_job *job, uint64_t begin, uint64_t end) {
    const uint64_t first = begin > job->num_panel_bytes ? begin : job->num_panel_bytes;
    const uint64_t last = end < job->num_bytes ? end : job->num_bytes;
    if (first >= last) return;
    const char *rows = job->model->token_embedding.data;
    if (!model_read(job->model, rows + (first - job->num_panel_bytes), (size_t)(last - first), job->panels + first))
        atomic_store(&job->status, LLAMITA_ERROR_IO);
}

/* Each thread takes the next unit when it is free, so a thread that gets less processor time packs
 * less. */
static void pack_units(pack_job *job, char *scratch) {
    size_t i = 0;
    uint64_t start = 0; /* of matrix i, in bytes from the first panel */
    for (;;) {
        const uint64_t unit = atomic_fetch_add(&job->next_unit, 1) * UNIT_BYTES, end = unit + UNIT_BYTES;
        if (unit >= job->num_bytes) return;
        for (; i < job->num_matrices && start + tensor_packed_bytes(job->matrices[i]) <= unit; i++)
            start += tensor_packed_bytes(job->matrices[i]);
        uint64_t at = start;
        for (size_t m = i; m < job->num_matrices && at < end; at += tensor_packed_bytes(job->matrices[m]), m++) {
            const tensor *t = job->matrices[m];
            const int64_t first = panel_from(t, at, unit), last = panel_from(t, at, end);
            if (first < last) pack_panels(job, t, first, last, job->panels + at, scratch);
        }
        copy_embedding(job, unit, end);
    }
}

static void pack_worker(void *argument, worker w) {
    pack_job *job = argument;
    if (w.index == 0 && job->task) job->task(job->argument);
    char *scratch = job->scratch_bytes > 0 ? malloc(job->scratch_bytes) : NULL;
    if (scratch || job->scratch_bytes == 0) pack_units(job, scratch);
    else atomic_store(&job->status, LLAMITA_ERROR_MEMORY);
    free(scratch);
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

/* Frees the rows if model_allocate made them for this matrix alone (llama2.c version 2 is converted
 * to floats first). */
static void release_rows(llamita_model *model, tensor *t) {
    for (size_t i = 0; i < model->num_owned; i++)
        if (model->owned[i] == t->data && t->data != model->token_embedding.data) {
            platform_aligned_free(model->owned[i]);
            model->owned[i] = model->owned[--model->num_owned];
            break;
        }
    t->data = NULL;
}

/* Whether part of the model's files is not copied to memory. */
static bool has_rows_in_files(const llamita_model *model) {
    bool found = model->file && model->file->num_private_bytes < model->file->num_bytes;
    for (int32_t i = 0; i < model->num_pieces; i++)
        found = found || model->pieces[i].num_private_bytes < model->pieces[i].num_bytes;
    return found;
}

/* Huge pages, because most of the time per token goes into reading the weights: 110M F32 on 2
 * threads, 52 to 66 tok/s in small pages (depending on their placement), 64 to 68 in huge ones. */
static void reserve(llamita_model *model, pack_job *job) {
    tensor *embedding = &model->token_embedding;
    size_t scratch_bytes = 0;
    bool uses_scratch = has_rows_in_files(model);
    for (size_t i = 0; job->matrices && i < job->num_matrices; i++) {
        tensor *t = job->matrices[i];
        const size_t panel_rows_bytes = PANEL_ROWS * t->row_bytes;
        t->format = panel_format_of(t->type);
        t->panel_bytes = panel_bytes(t->format, t->row_length);
        job->num_panel_bytes += tensor_packed_bytes(t);
        scratch_bytes = scratch_bytes > panel_rows_bytes ? scratch_bytes : panel_rows_bytes;
        uses_scratch |= t->two_halves > 0;
    }
    job->num_bytes = job->num_panel_bytes;
    if (model_is_in_file(model, embedding->data))
        job->num_bytes += (uint64_t)embedding->num_rows * embedding->row_bytes;
    if (uses_scratch) job->scratch_bytes = scratch_bytes > SCRATCH_BYTES ? scratch_bytes : SCRATCH_BYTES;
    if (!job->matrices || job->num_bytes > SIZE_MAX) return;
    model->packed = job->panels = platform_pages_alloc((size_t)job->num_bytes);
    if (model->packed) model->packed_bytes = (size_t)job->num_bytes;
}

/* Fills an empty job and allocates the panels. False: out of memory. */
static bool begin_job(pack_job *job, llamita_model *model, model_task *task, void *argument) {
    *job = (pack_job){.model = model, .task = task, .argument = argument};
    atomic_init(&job->next_unit, 0);
    atomic_init(&job->status, LLAMITA_OK);
    job->matrices = list_matrices(model, &job->num_matrices);
    reserve(model, job);
    return job->panels;
}

/* The model reads the panels from now on. */
static void publish(pack_job *job) {
    const char *panels = job->panels;
    for (size_t i = 0; i < job->num_matrices; i++) {
        job->matrices[i]->panels = panels;
        panels += tensor_packed_bytes(job->matrices[i]);
        release_rows(job->model, job->matrices[i]);
    }
    if (job->num_bytes > job->num_panel_bytes) job->model->token_embedding.data = job->panels + job->num_panel_bytes;
    platform_pages_protect(job->panels, (size_t)job->num_bytes);
}

static llamita_status failure(const pack_job *job, const char *what, const char *path, llamita_error *error) {
    const llamita_status status = job->panels ? (llamita_status)atomic_load(&job->status) : LLAMITA_ERROR_MEMORY;
    if (status == LLAMITA_ERROR_MEMORY)
        return error_set(error, status,
                         "cannot %s model %s: out of memory: cannot allocate %llu bytes for the packed weights", what,
                         error_path(path), (unsigned long long)job->num_bytes);
    if (status == LLAMITA_ERROR_IO)
        return error_set(error, status,
                         "cannot %s model %s: expected %zu bytes, found fewer; the file was cut while it was read",
                         what, error_path(path), job->model->mapping_bytes);
    return status;
}

llamita_status model_pack(llamita_model *model, const char *path, model_task *task, void *argument,
                          llamita_error *error) {
    pack_job job;
    if (begin_job(&job, model, task, argument)) {
        const int available = platform_num_processors(),
                  num_threads = available < MAX_PACK_THREADS ? available : MAX_PACK_THREADS;
        thread_pool *pool = thread_pool_create(job.num_bytes < MIN_BYTES_FOR_THREADS ? 1 : num_threads);
        if (pool) thread_pool_run(pool, thread_pool_size(pool), pack_worker, &job);
        else atomic_store(&job.status, LLAMITA_ERROR_MEMORY);
        thread_pool_free(pool);
    }
    const llamita_status status = failure(&job, "open", path, error);
    if (status == LLAMITA_OK) publish(&job);
    free(job.matrices);
    return status;
}

/* ------------------------------------------------------------------ packing later */

struct late_pack {
    pack_job job;
    char *path;
    platform_file file;
    platform_mutex mutex; /* held while weights are packed, or rows read in their place */
    bool used;
    atomic_bool packed;
};

llamita_status model_pack_later(llamita_model *model, const char *path, const platform_file *file,
                                llamita_error *error) {
    late_pack *late = calloc(1, sizeof *late);
    char *copy = malloc(strlen(path) + 1);
    if (!late || !copy) {
        free(late);
        free(copy);
        return error_set(error, LLAMITA_ERROR_MEMORY, "cannot open model %s: out of memory", error_path(path));
    }
    strcpy(copy, path);
    late->path = copy;
    late->file = *file;
    model->file = &late->file;
    model->late = late;
    platform_mutex_init(&late->mutex);
    atomic_init(&late->packed, false);
    begin_job(&late->job, model, NULL, NULL);
    return failure(&late->job, "open", path, error);
}

static void finish_late_pack(late_pack *late, thread_pool *pool) {
    pack_job *job = &late->job;
    llamita_model *model = job->model;
    thread_pool_run(pool, job->num_bytes < MIN_BYTES_FOR_THREADS ? 1 : thread_pool_size(pool), pack_worker, job);
    if (atomic_load(&job->status) != LLAMITA_OK) return;
    publish(job);
    model_close_pieces(model);
    platform_file_close(&late->file);
    model->file = NULL;
    atomic_store(&late->packed, true);
}

weights_state model_begin_use(const llamita_model *model, thread_pool *pool, bool rows_will_do) {
    late_pack *late = model->late;
    if (!late || atomic_load(&late->packed)) return WEIGHTS_PACKED;
    platform_mutex_lock(&late->mutex);
    weights_state state = WEIGHTS_PACKED;
    if (!atomic_load(&late->packed)) {
        if (atomic_load(&late->job.status) == LLAMITA_OK && rows_will_do && !late->used) state = WEIGHTS_IN_FILE;
        else if (atomic_load(&late->job.status) == LLAMITA_OK) finish_late_pack(late, pool);
        if (atomic_load(&late->job.status) != LLAMITA_OK) state = WEIGHTS_FAILED;
    }
    late->used = true;
    if (state != WEIGHTS_IN_FILE) platform_mutex_unlock(&late->mutex);
    return state;
}

void model_end_use(const llamita_model *model, weights_state state) {
    if (state == WEIGHTS_IN_FILE) platform_mutex_unlock(&model->late->mutex);
}

llamita_status model_pack_failure(const llamita_model *model, llamita_error *error) {
    return model->late ? failure(&model->late->job, "read", model->late->path, error) : LLAMITA_OK;
}

void model_free_late(llamita_model *model) {
    late_pack *late = model->late;
    if (!late) return;
    if (!atomic_load(&late->packed)) platform_file_close(&late->file);
    platform_mutex_destroy(&late->mutex);
    free(late->job.matrices);
    free(late->path);
    free(late);
    model->late = NULL;
}

/* ------------------------------------------------------------------ rows of the file */

/* Makes room. The memory is kept for the next rows. */
static char *room_for(char **memory, size_t *num_bytes, size_t wanted) {
    if (wanted > *num_bytes) {
        platform_aligned_free(*memory);
        *num_bytes = (wanted + PANEL_ALIGNMENT - 1) / PANEL_ALIGNMENT * PANEL_ALIGNMENT;
        *memory = platform_aligned_alloc(PANEL_ALIGNMENT, *num_bytes);
        if (!*memory) *num_bytes = 0;
    }
    return *memory;
}

const void *model_file_rows(const llamita_model *model, const tensor *t, int64_t first, int64_t num_rows,
                            row_scratch *scratch) {
    const char *rows = (const char *)t->data + (size_t)first * t->row_bytes;
    const size_t num_bytes = (size_t)num_rows * t->row_bytes;
    if (t->two_halves == 0 && model_is_in_memory(model, rows, num_bytes)) return rows;
    char *copy = room_for(&scratch->rows, &scratch->num_row_bytes, num_bytes);
    if (copy && read_rows(model, t, first, num_rows, copy)) return copy;
    atomic_store(&model->late->job.status, copy ? LLAMITA_ERROR_IO : LLAMITA_ERROR_MEMORY);
    return NULL;
}

bool model_pack_rows(const llamita_model *model, const tensor *t, int64_t first, int64_t last, row_scratch *scratch) {
    const int64_t num_panels = panel_count(last - first);
    const void *rows = model_file_rows(model, t, first, last - first, scratch);
    if (!rows) return false;
    char *panels = room_for(&scratch->panels, &scratch->num_panel_bytes, (size_t)num_panels * t->panel_bytes);
    if (panels && panel_pack(t->type, rows, t->row_bytes, last - first, t->row_length, 0, num_panels, panels))
        return true;
    atomic_store(&model->late->job.status, LLAMITA_ERROR_MEMORY);
    return false;
}

void model_free_scratch(row_scratch *scratch) {
    platform_aligned_free(scratch->rows);
    platform_aligned_free(scratch->panels);
}
