/* embed.c: a program with the engine inside that continues a text: embed stories.gguf "Once upon"
 *     make amalgamation
 *     cc -O3 -Ibuild/amalgamation examples/embed.c build/amalgamation/llamita.c -lm -lpthread -o embed */
#include <llamita.h>
#include <stdio.h>
#include <string.h>

static bool print(void *file, const llamita_piece *piece) {
    return fwrite(piece->text, 1, piece->num_bytes, file) == piece->num_bytes && fflush(file) == 0;
}

int main(int argc, char **argv) {
    const llamita_sampler_params params = {.temperature = 1, .top_p = 0.9f, .repetition_penalty = 1, .seed = 1};
    const char *path = argc > 1 ? argv[1] : "stories.gguf", *prompt = argc > 2 ? argv[2] : "Once upon a time";
    llamita_model *model = NULL;
    llamita_session *session = NULL;
    llamita_error error;
    bool ok = !llamita_model_open(path, NULL, &model, &error) && !llamita_session_open(model, NULL, &session, &error);
    if (ok) fputs(prompt, stdout);
    ok = ok && !llamita_generate_text(session, prompt, strlen(prompt), &params, -1, print, stdout, &error);
    if (!ok) fprintf(stderr, "embed: %s\n", error.message);
    llamita_session_close(session);
    llamita_model_close(model);
    return ok && puts("") >= 0 && fflush(stdout) == 0 ? 0 : 1;
}
