/* print_logits.c: `print_logits MODEL KERNELS THREADS KV ID... > floats` writes the logits after
 * each id. */
#include <stdio.h>
#include <stdlib.h>

#include "llamita.h"

static int fail(const char *what) {
    fprintf(stderr, "print_logits: %s\n", what);
    return 2;
}

/* Feeds all ids in one call; KV is the number of a llamita_kv_type. */
static int print(const llamita_model *model, llamita_session *session, const int32_t *ids, size_t num_ids) {
    llamita_model_info info;
    llamita_error error;
    llamita_model_get_info(model, &info);
    const size_t count = num_ids * (size_t)info.vocab_size;
    float *logits = malloc(count * sizeof *logits);
    if (!logits) return fail("out of memory");
    int status = 0;
    if (llamita_session_feed_logits(session, ids, num_ids, logits, &error) != LLAMITA_OK) status = fail(error.message);
    else if (fwrite(logits, sizeof *logits, count, stdout) != count) status = fail("cannot write");
    free(logits);
    return status;
}

int main(int num_arguments, char **arguments) {
    enum { FIRST_ID = 5, MAX_IDS = 1000 };
    if (num_arguments <= FIRST_ID || num_arguments > FIRST_ID + MAX_IDS)
        return fail("expected a model, kernels, threads, a KV type, ids");
    int32_t ids[MAX_IDS];
    for (int i = FIRST_ID; i < num_arguments; i++) ids[i - FIRST_ID] = (int32_t)strtol(arguments[i], NULL, 10);
    llamita_error error;
    llamita_model *model = NULL;
    if (llamita_model_open(arguments[1], &(llamita_model_params){.kernels = arguments[2]}, &model, &error) !=
        LLAMITA_OK)
        return fail(error.message);
    const llamita_session_params params = {.num_threads = (int32_t)strtol(arguments[3], NULL, 10),
                                           .kv_type = (llamita_kv_type)strtol(arguments[4], NULL, 10)};
    llamita_session *session = NULL;
    const int status = llamita_session_open(model, &params, &session, &error) != LLAMITA_OK
                           ? fail(error.message)
                           : print(model, session, ids, (size_t)(num_arguments - FIRST_ID));
    llamita_session_close(session);
    llamita_model_close(model);
    return status;
}
