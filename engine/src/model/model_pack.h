/* model_pack.h: packs the weights of an open model, all at once or by its first passes. */
#ifndef LLAMITA_MODEL_PACK_H
#define LLAMITA_MODEL_PACK_H

#include "model/model.h"
#include "runtime/thread_pool.h"

/* Packs every matrix for the kernels, in parallel, into memory of its own (in huge pages where
 * available), and copies token_embedding there. From then on the file is not needed. task(argument),
 * unless NULL, runs once in the meantime on the calling thread; if packing fails, it may not have
 * run. On failure the caller clears the model. */
typedef void model_task(void *argument);
llamita_status model_pack(llamita_model *model, const char *path, model_task *task, void *argument,
                          llamita_error *error);

/* Only allocates: the passes pack. Once model->late is set, even on failure, the file belongs to it. */
llamita_status model_pack_later(llamita_model *model, const char *path, const platform_file *file,
                                llamita_error *error);
void model_free_late(llamita_model *model);

/* Whoever reads matrices, or the embedding, does so between these two, on one thread or on the
 * threads of the pool. The first use may read the file's rows instead of panels: a short pass takes
 * less time than copying all weights. Otherwise model_begin_use packs them. */
typedef enum { WEIGHTS_PACKED, WEIGHTS_IN_FILE, WEIGHTS_FAILED } weights_state;
weights_state model_begin_use(const llamita_model *model, thread_pool *pool, bool rows_will_do);
void model_end_use(const llamita_model *model, weights_state state);

/* Why weights could not be packed or read. LLAMITA_OK: they could. */
llamita_status model_pack_failure(const llamita_model *model, llamita_error *error);

/* Memory of one worker for the rows of a file, and for their panels. */
typedef struct {
    char *rows, *panels;
    size_t num_row_bytes, num_panel_bytes;
} row_scratch;

/* Copies rows of a matrix to scratch->rows, if they are not in memory, and returns where they are.
 * NULL: failed, as model_pack_failure says from now on. */
const void *model_file_rows(const llamita_model *model, const tensor *t, int64_t first, int64_t num_rows,
                            row_scratch *scratch);

/* Packs rows [first, last) of a matrix to scratch->panels; first is a multiple of 8. False: failed, as
 * above. */
bool model_pack_rows(const llamita_model *model, const tensor *t, int64_t first, int64_t last, row_scratch *scratch);
void model_free_scratch(row_scratch *scratch);

#endif
