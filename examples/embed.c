/* embed.c: a program with the engine inside that continues a text: embed stories.gguf "Once upon"
 *     make amalgamation
 *     cc -O3 -Ibuild/amalgamation examples/embed.c build/amalgamation/llamita.c -lm -lpthread -o embed
 */
#include <llamita.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static llamita_error error;

static void check(llamita_status status) {
    if (status) exit((fprintf(stderr, "embed: %s\n", error.message), 1));
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: embed MODEL.gguf [PROMPT]\n"), 2;
    const llamita_sampler_params params = {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1, .seed = 1};
    const char *prompt = argc > 2 ? argv[2] : "Once upon a time", *text;
    llamita_model *model;
    llamita_model_info info;
    llamita_session *session;
    llamita_sampler *sampler;
    int32_t ids[512], previous, id;
    size_t num_ids, num_bytes;

    check(llamita_model_open(argv[1], NULL, &model, &error));
    llamita_model_get_info(model, &info);
    check(llamita_session_open(model, NULL, &session, &error));
    check(llamita_sampler_open(&params, info.vocab_size, &sampler, &error));
    check(llamita_encode(model, prompt, strlen(prompt), LLAMITA_ENCODE_BOS, ids, 512, &num_ids, &error));
    check(llamita_session_feed(session, ids, num_ids, &error));
    fputs(prompt, stdout);
    for (previous = ids[num_ids - 1];; previous = id) {
        check(llamita_sampler_pick(sampler, llamita_session_logits(session), &id, &error));
        if (llamita_token_ends(model, id) || llamita_session_position(session) == info.context_tokens) break;
        check(llamita_token_bytes(model, previous, id, &text, &num_bytes, &error));
        fwrite(text, 1, num_bytes, stdout);
        fflush(stdout);
        check(llamita_session_feed(session, &id, 1, &error));
    }
    putchar('\n');
    return 0; /* the system releases the memory */
}
