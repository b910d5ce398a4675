/* tokenizing.c: how long does a model's tokenizer take to build, and how many megabytes of text a second does it encode?
 *
 *     make -C benchmarks/kernels tokenizing ARGS="MODEL.gguf TEXT.txt [TEXT.txt ...]"
 *
 * Building is what opening the model does for it: from the mapped file to a tokenizer. Encoding is of a whole text in
 * one call; of its first kilobytes, as chats send them; and of its lines one by one, as a data set is read. The number
 * of ids and their checksum tell whether two builds agree.
 */
#include <fcntl.h>
#include <sys/stat.h>

#include "ladder.h"
#include "model.h"
#include "tokenizer.h"

enum { EXCERPT_BYTES = 2048 };

typedef struct {
    const char *bytes;
    size_t num_bytes;
} contents;

typedef struct {
    const char *path;
    contents model;
    tokenizer *t;
    contents text;
    int32_t *ids; /* room for as many as there can be */
    size_t num_ids;
} problem;

static void expect_ok(llamita_status status, const llamita_error *error) {
    if (status == LLAMITA_OK) return;
    fprintf(stderr, "%s\n", error->message);
    exit(1);
}

static contents map_file(const char *path) {
    struct stat about;
    const int file = open(path, O_RDONLY);
    if (file >= 0 && fstat(file, &about) == 0 && about.st_size > 0) {
        void *bytes = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
        if (bytes != MAP_FAILED) return (contents){bytes, (size_t)about.st_size};
    }
    fprintf(stderr, "cannot read %s\n", path);
    exit(1);
}

static void build(void *argument) {
    problem *p = argument;
    llamita_error error;
    char *chat_template = NULL;
    tokenizer_free(p->t);
    p->t = NULL;
    expect_ok(gguf_read_tokenizer(p->model.bytes, p->model.num_bytes, p->path, &p->t, &chat_template, &error), &error);
    free(chat_template);
}

static void encode_bytes(problem *p, size_t start, size_t end) {
    llamita_error error;
    size_t num;
    expect_ok(tokenizer_encode(p->t, p->text.bytes + start, end - start, LLAMITA_ENCODE_PLAIN, p->ids + p->num_ids,
                               2 * p->text.num_bytes + 2 - p->num_ids, &num, &error),
              &error);
    p->num_ids += num;
}

static void encode_whole(void *argument) {
    problem *p = argument;
    p->num_ids = 0;
    encode_bytes(p, 0, p->text.num_bytes);
}

static void encode_excerpt(void *argument) {
    problem *p = argument;
    p->num_ids = 0;
    encode_bytes(p, 0, p->text.num_bytes < EXCERPT_BYTES ? p->text.num_bytes : EXCERPT_BYTES);
}

static void encode_lines(void *argument) {
    problem *p = argument;
    p->num_ids = 0;
    for (size_t start = 0, end; start < p->text.num_bytes; start = end) {
        const char *newline = memchr(p->text.bytes + start, '\n', p->text.num_bytes - start);
        end = newline != NULL ? (size_t)(newline - p->text.bytes) + 1 : p->text.num_bytes;
        if (p->num_ids + 2 * (end - start) + 2 > 2 * p->text.num_bytes + 2) p->num_ids = 0;
        encode_bytes(p, start, end);
    }
}

/* FNV-1a, of the ids as 32-bit words. */
static uint64_t checksum(const int32_t *ids, size_t num_ids) {
    uint64_t sum = 0xcbf29ce484222325u;
    for (size_t i = 0; i < num_ids; i++) sum = (sum ^ (uint32_t)ids[i]) * 0x100000001b3u;
    return sum;
}

static void measure_text(problem *p, const char *path) {
    static const version versions[] = {
        {"the whole text", encode_whole}, {"its first 2,048 bytes", encode_excerpt}, {"line by line", encode_lines}};
    enum { NUM_VERSIONS = sizeof versions / sizeof *versions };
    p->text = map_file(path);
    p->ids = malloc((2 * p->text.num_bytes + 2) * sizeof *p->ids);
    if (p->ids == NULL) exit(1);
    printf("%s\n", path);
    for (int v = 0; v < NUM_VERSIONS; v++) {
        double seconds;
        measure(versions + v, 1, p, &seconds);
        const size_t num_bytes = versions[v].run == encode_excerpt && p->text.num_bytes > EXCERPT_BYTES
                                     ? EXCERPT_BYTES
                                     : p->text.num_bytes;
        printf("  %-24s %9.3f ms %8.1f MB/s %9zu ids %016llx\n", versions[v].name, seconds * 1e3,
               (double)num_bytes * 1e-6 / seconds, p->num_ids,
               (unsigned long long)checksum(p->ids, p->num_ids));
    }
    free(p->ids);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: tokenizing MODEL.gguf [TEXT.txt ...]\n");
        return 1;
    }
    problem p = {.path = argv[1], .model = map_file(argv[1])};
    const version versions[] = {{"build", build}};
    double seconds;
    measure(versions, 1, &p, &seconds);
    if (p.t == NULL) {
        fprintf(stderr, "%s has no tokenizer\n", argv[1]);
        return 1;
    }
    printf("%s: %d tokens, built in %.2f ms\n", argv[1], (int)tokenizer_vocab_size(p.t), seconds * 1e3);
    for (int i = 2; i < argc; i++) measure_text(&p, argv[i]);
    tokenizer_free(p.t);
    return 0;
}
