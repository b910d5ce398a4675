/* run.c: Llama inference in one file: a llama2.c model, its tokenizer and a prompt in, text out.
 *
 *     cc -O3 run.c -o run -lm                             (plain)
 *     cc -Ofast -march=native -fopenmp run.c -o run -lm   (as fast as this file gets)
 *     ./run stories15M.bin -z tokenizer.bin -i "One day, a llama"
 *
 * A language model maps the tokens so far to one number (a logit) for every token that could come
 * next. To generate text, run it, sample a token by those numbers, append the token, and repeat.
 * Everything is float32 and straightforward, with one optimization: keys and values of earlier
 * tokens are cached, so that a step computes one token and not the whole text. The engine in ../src
 * does the same, faster and for more formats; tests compare its results with this file.
 *
 * Shapes: D hidden, H heads, K KV heads, S = D/H, F ffn, V vocabulary, L layers, C context. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifdef _OPENMP
#define PARALLEL_FOR _Pragma("omp parallel for")
#else
#define PARALLEL_FOR
#endif

/* ------------------------------------------------------------------ errors */
_Noreturn static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("run: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(2);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory) fail("out of memory: cannot allocate %zu x %zu bytes", count, size);
    return memory;
}

/* Maps a file into memory: pages are read from disk when they are first used. */
static const char *map_file(const char *path, size_t *num_bytes) {
    struct stat status;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &status) != 0) fail("cannot open %s: %s", path, strerror(errno));
    if (!S_ISREG(status.st_mode) || status.st_size == 0) fail("%s: expected a non-empty regular file", path);
    *num_bytes = (size_t)status.st_size;
    void *bytes = mmap(NULL, *num_bytes, PROT_READ, MAP_PRIVATE, file, 0);
    if (bytes == MAP_FAILED) fail("cannot map %s: %s", path, strerror(errno));
    close(file);
    return bytes;
}

/* ------------------------------------------------------------------ the model file */
/* llama2.c version 0: seven int32 (the first seven fields), then float32 weights, row by row. */
typedef struct {
    int64_t hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, vocab_size, context;
    int64_t head_size, kv_size;                        /* S, and K * S */
    const float *token_embedding;                      /* [V, D] */
    const float *attention_norm, *ffn_norm;            /* [L, D] */
    const float *query_weight, *attention_out_weight;  /* [L, D, D] */
    const float *key_weight, *value_weight;            /* [L, K*S, D] */
    const float *gate_weight, *up_weight;              /* [L, F, D] */
    const float *down_weight;                          /* [L, D, F] */
    const float *output_norm;                          /* [D] */
    const float *output_weight;                        /* [V, D]: often the embedding */
} model;

/* Reads the sizes, limited so that no product overflows. True: output matrix = embedding. */
static bool read_header(model *m, const int32_t header[7], const char *path) {
    if (header[0] == 0x616b3432) fail("%s: expected llama2.c version 0, found version %d", path, header[1]);
    if (header[0] == 0x46554747) fail("%s: expected a llama2.c file, version 0, found GGUF", path);
    const int64_t vocab_size = header[5];
    const struct { const char *name; int64_t *field, value, smallest, largest; } numbers[] = {
        {"hidden size", &m->hidden_size, header[0], 1, 1 << 20},
        {"feed-forward size", &m->intermediate_size, header[1], 1, 1 << 20},
        {"number of layers", &m->num_layers, header[2], 1, 1 << 12},
        {"number of heads", &m->num_heads, header[3], 1, 1 << 16},
        {"number of key/value heads", &m->num_kv_heads, header[4], 1, 1 << 16},
        {"vocabulary size", &m->vocab_size, vocab_size < 0 ? -vocab_size : vocab_size, 3, 1 << 24},
        {"context", &m->context, header[6], 1, 1 << 24},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        *numbers[i].field = numbers[i].value;
        if (numbers[i].value < numbers[i].smallest || numbers[i].value > numbers[i].largest)
            fail("%s: %s: expected %d to %d, found %d; not a llama2.c model?", path, numbers[i].name,
                 (int)numbers[i].smallest, (int)numbers[i].largest, (int)numbers[i].value);
    }
    m->head_size = m->hidden_size / m->num_heads;
    m->kv_size = m->head_size * m->num_kv_heads;
    if (m->hidden_size % m->num_heads != 0 || m->num_heads % m->num_kv_heads != 0 || m->head_size % 2 != 0)
        fail("%s: cannot divide hidden size %d by %d heads, or these by %d", path, header[0], header[3], header[4]);
    return vocab_size > 0;
}

static model open_model(const char *path) {
    model m;
    int32_t header[7];
    size_t num_bytes;
    const char *bytes = map_file(path, &num_bytes);
    if (num_bytes < sizeof header) fail("%s: the file ends inside its header", path);
    memcpy(header, bytes, sizeof header);
    const bool tied = read_header(&m, header, path);

    const int64_t D = m.hidden_size, F = m.intermediate_size, L = m.num_layers, V = m.vocab_size, KS = m.kv_size;
    const float *unused_rope_tables;
    const struct { const float **tensor; int64_t count; } order[] = { /* the order in the file */
        {&m.token_embedding, V * D}, {&m.attention_norm, L * D}, {&m.query_weight, L * D * D},
        {&m.key_weight, L * KS * D}, {&m.value_weight, L * KS * D}, {&m.attention_out_weight, L * D * D},
        {&m.ffn_norm, L * D}, {&m.gate_weight, L * F * D}, {&m.down_weight, L * D * F}, {&m.up_weight, L * F * D},
        {&m.output_norm, D}, {&unused_rope_tables, m.context * m.head_size}, {&m.output_weight, tied ? 0 : V * D},
    };
    size_t at = sizeof header;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        *order[i].tensor = (const float *)(const void *)(bytes + (at <= num_bytes ? at : 0));
        at += (size_t)order[i].count * sizeof(float);
    }
    if (tied) m.output_weight = m.token_embedding;
    if (at != num_bytes)
        fail("%s: expected %zu bytes, found %zu; incomplete, or not a llama2.c model?", path, at, num_bytes);
    return m;
}

/* ------------------------------------------------------------------ the tokenizer */
enum { BOS = 1, EOS = 2 }; /* beginning and end of text in every llama2.c tokenizer */
typedef struct { const char *bytes; int num_bytes; float score; } token_piece;

typedef struct {
    token_piece *pieces; /* [V]; their bytes are in the mapped file */
    int *slots;          /* [num_slots] hash table from bytes to id; -1: empty */
    size_t num_slots;    /* a power of two, at least 2 V */
} tokenizer;

/* The slot of these bytes, or the empty slot where they belong. FNV-1a, linear probing. */
static int *find_slot(const tokenizer *t, const char *bytes, int num_bytes) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (int i = 0; i < num_bytes; i++) hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001b3u;
    for (uint64_t slot = hash ^ hash >> 32;; slot++) {
        int *id = &t->slots[slot & (t->num_slots - 1)];
        const token_piece *piece = &t->pieces[*id < 0 ? 0 : *id];
        if (*id < 0 || (piece->num_bytes == num_bytes && memcmp(piece->bytes, bytes, num_bytes) == 0)) return id;
    }
}

/* tokenizer.bin: the maximum length (ignored), then per id: float32 score, int32 length, bytes. */
static tokenizer open_tokenizer(const char *path, int vocab_size) {
    size_t num_bytes, at = sizeof(int32_t);
    const char *bytes = map_file(path, &num_bytes);
    tokenizer t = {.pieces = allocate(vocab_size, sizeof *t.pieces), .num_slots = 1};
    while (t.num_slots < 2 * (size_t)vocab_size) t.num_slots *= 2;
    t.slots = allocate(t.num_slots, sizeof *t.slots);
    memset(t.slots, 0xff, t.num_slots * sizeof *t.slots);
    for (int id = 0; id < vocab_size; id++) {
        token_piece *piece = &t.pieces[id];
        if (num_bytes < at + 8) fail("%s: expected %d tokens, found the end in token %d", path, vocab_size, id);
        memcpy(&piece->score, bytes + at, 4);
        memcpy(&piece->num_bytes, bytes + at + 4, 4);
        at += 8;
        if (piece->num_bytes < 0 || (size_t)piece->num_bytes > num_bytes - at)
            fail("%s: token %d: expected at most %zu bytes, found %d", path, id, num_bytes - at, piece->num_bytes);
        piece->bytes = bytes + at;
        at += piece->num_bytes;
        int *slot = find_slot(&t, piece->bytes, piece->num_bytes);
        if (*slot < 0 && piece->num_bytes > 0) *slot = id; /* the first of equal pieces wins */
    }
    if (at != num_bytes) fail("%s: expected the %d tokens of the model, found more", path, vocab_size);
    return t;
}

/* A heap of candidate merges: the highest score first, then the leftmost. */
typedef struct { float score; int left, num_bytes; } merge;

static bool merge_before(merge a, merge b) { return a.score > b.score || (a.score == b.score && a.left < b.left); }

static void heap_push(merge *heap, int *size, merge added) {
    int child = (*size)++;
    for (int parent; child > 0 && merge_before(added, heap[parent = (child - 1) / 2]); child = parent)
        heap[child] = heap[parent];
    heap[child] = added;
}

static merge heap_pop(merge *heap, int *size) {
    merge top = heap[0], last = heap[--*size];
    int parent = 0;
    for (int child; (child = 2 * parent + 1) < *size; parent = child) {
        if (child + 1 < *size && merge_before(heap[child + 1], heap[child])) child++;
        if (!merge_before(heap[child], last)) break;
        heap[parent] = heap[child];
    }
    heap[parent] = last;
    return top;
}

/* Pushes the merge of two neighbors, num_bytes together, if they form a piece. */
static void push_merge(const tokenizer *t, const char *text, int left, int num_bytes, merge *heap, int *size) {
    const int id = *find_slot(t, text + left, num_bytes);
    if (id >= 0) heap_push(heap, size, (merge){t->pieces[id].score, left, num_bytes});
}

static int utf8_length(unsigned char lead) { return lead < 0xc0 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4; }

/* SentencePiece's byte-pair encoding. The text, with a space before it, starts as characters;
 * neighbors that form the best-scored piece are merged until none form one. A part that is no piece
 * becomes its bytes. A part starts at a byte i with length[i] > 0. Returns the number of ids. */
static int encode(const tokenizer *t, const char *prompt, int *ids /* [strlen(prompt) + 2] */) {
    const int n = *prompt ? (int)strlen(prompt) + 1 : 0;
    char *text = allocate(n + 1, 1);
    int *length = allocate(n, sizeof *length), *previous = allocate(n, sizeof *previous);
    merge *heap = allocate(3 * (size_t)n, sizeof *heap); /* n - 1 candidates, and two per merge */
    int heap_size = 0, num_ids = 0;
    if (n > 0) snprintf(text, n + 1, " %s", prompt);

    for (int i = 0, before = -1; i < n; before = i, i += length[i]) {
        length[i] = 1;
        while (length[i] < utf8_length(text[i]) && (text[i + length[i]] & 0xc0) == 0x80) length[i]++;
        previous[i] = before;
        if (before >= 0) push_merge(t, text, before, length[before] + length[i], heap, &heap_size);
    }
    while (heap_size > 0) {
        const merge best = heap_pop(heap, &heap_size); /* may be stale */
        const int left = best.left, right = left + length[left], before = previous[left];
        if (length[left] == 0 || right >= n || length[left] + length[right] != best.num_bytes) continue;
        length[left] = best.num_bytes;
        length[right] = 0;
        const int next = left + length[left];
        if (next < n) previous[next] = left;
        if (next < n) push_merge(t, text, left, length[left] + length[next], heap, &heap_size);
        if (before >= 0) push_merge(t, text, before, length[before] + length[left], heap, &heap_size);
    }

    ids[num_ids++] = BOS;
    for (int i = 0; i < n; i += length[i]) {
        const int id = *find_slot(t, text + i, length[i]);
        if (id >= 0) ids[num_ids++] = id;
        for (int k = 0; id < 0 && k < length[i]; k++) {
            char name[8];
            snprintf(name, sizeof name, "<0x%02X>", (unsigned char)text[i + k]);
            const int byte_id = *find_slot(t, name, 6);
            ids[num_ids++] = byte_id >= 0 ? byte_id : 0; /* 0 is "unknown" */
        }
    }
    free(text), free(length), free(previous), free(heap);
    return num_ids;
}

static void flush_text(void) {
    if (fflush(stdout) != 0) fail("cannot write the text: %s", strerror(errno));
}

/* Prints the bytes that the token adds to the text. */
static void print_token(const tokenizer *t, int previous_id, int id) {
    const token_piece *piece = &t->pieces[id];
    unsigned byte;
    int end = 0;
    char name[8] = "";
    if (piece->num_bytes == 6) memcpy(name, piece->bytes, 6);
    if (sscanf(name, "<0x%2X>%n", &byte, &end) == 1 && end == 6) {
        putchar((int)byte);
    } else {
        const int skipped = previous_id == BOS && piece->num_bytes > 0 && piece->bytes[0] == ' ';
        fwrite(piece->bytes + skipped, 1, piece->num_bytes - skipped, stdout);
    }
    flush_text();
}

/* ------------------------------------------------------------------ the network */
/* Activations of the current token, and keys and values of all tokens so far. */
typedef struct {
    float *residual;                /* [D]: every block reads from it and adds to it */
    float *normed, *block_out;      /* [D]: input and output of a block */
    float *query, *attention_out;   /* [H*S] */
    float *attention_weight;        /* [H, C] */
    float *ffn_gate, *ffn_up;       /* [F] */
    float *key_cache, *value_cache; /* [L, C, K*S] */
    float *logits;                  /* [V] */
} session;

static session open_session(const model *m) {
    const int64_t D = m->hidden_size, F = m->intermediate_size, C = m->context;
    const int64_t cache = m->num_layers * C * m->kv_size, size = sizeof(float);
    return (session){
        .residual = allocate(D, size), .normed = allocate(D, size), .query = allocate(D, size),
        .attention_weight = allocate(m->num_heads * C, size), .attention_out = allocate(D, size),
        .ffn_gate = allocate(F, size), .ffn_up = allocate(F, size), .block_out = allocate(D, size),
        .key_cache = allocate(cache, size), .value_cache = allocate(cache, size),
        .logits = allocate(m->vocab_size, size),
    };
}

static float dot(const float *a, const float *b, int64_t n) {
    float sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* out[rows] = weight[rows, columns] in[columns]. Nearly all the time is spent here. */
static void matmul(float *out, const float *weight, const float *in, int64_t rows, int64_t columns) {
    PARALLEL_FOR
    for (int64_t row = 0; row < rows; row++) out[row] = dot(weight + row * columns, in, columns);
}

/* Scales the vector to mean square 1, then each element by its weight (arXiv 1910.07467). */
static void rms_norm(float *out, const float *in, const float *weight, int64_t n) {
    const float scale = 1.0f / sqrtf(dot(in, in, n) / (float)n + 1e-5f);
    for (int64_t i = 0; i < n; i++) out[i] = in[i] * scale * weight[i];
}

static void softmax(float *values, int64_t n) {
    float largest = values[0], sum = 0;
    for (int64_t i = 1; i < n; i++) largest = values[i] > largest ? values[i] : largest;
    for (int64_t i = 0; i < n; i++) sum += values[i] = expf(values[i] - largest);
    for (int64_t i = 0; i < n; i++) values[i] /= sum;
}

/* RoPE: rotates pair i of every head by position * 10000^(-2i/S), so that the dot product of a
 * query and a key depends on their distance (arXiv 2104.09864). */
static void rotate(float *heads, int64_t num_heads, int64_t head_size, int64_t position) {
    for (int64_t i = 0; i < head_size; i += 2) {
        const float angle = (float)position * powf(10000.0f, -(float)i / (float)head_size);
        const float c = cosf(angle), s = sinf(angle);
        for (int64_t head = 0; head < num_heads; head++) {
            float *pair = heads + head * head_size + i, a = pair[0], b = pair[1];
            pair[0] = a * c - b * s;
            pair[1] = a * s + b * c;
        }
    }
}

/* Each query head weights the positions so far by how well their keys match, and sums their values.
 * H/K query heads share one key/value head. keys and values: [C, K*S] of this layer. */
static void attention(const model *m, session *s, const float *keys, const float *values, int64_t position) {
    const int64_t S = m->head_size, queries_per_key = m->num_heads / m->num_kv_heads;
    PARALLEL_FOR
    for (int64_t head = 0; head < m->num_heads; head++) {
        const float *query = s->query + head * S;
        float *weight = s->attention_weight + head * m->context;
        float *out = s->attention_out + head * S;
        const int64_t offset = (head / queries_per_key) * S;
        for (int64_t t = 0; t <= position; t++) weight[t] = dot(query, keys + t * m->kv_size + offset, S) / sqrtf(S);
        softmax(weight, position + 1);
        memset(out, 0, S * sizeof(float));
        for (int64_t t = 0; t <= position; t++)
            for (int64_t i = 0; i < S; i++) out[i] += weight[t] * values[t * m->kv_size + offset + i];
    }
}

/* Computes s->logits after one token at this position; earlier tokens must be in the cache. */
static void forward(const model *m, session *s, int64_t token, int64_t position) {
    const int64_t D = m->hidden_size, F = m->intermediate_size, KS = m->kv_size;
    const int64_t DD = D * D, KSD = KS * D, FD = F * D;
    memcpy(s->residual, m->token_embedding + token * D, D * sizeof(float));

    for (int64_t layer = 0; layer < m->num_layers; layer++) {
        /* Attention. */
        float *keys = s->key_cache + layer * m->context * KS, *key = keys + position * KS;
        float *values = s->value_cache + layer * m->context * KS, *value = values + position * KS;
        rms_norm(s->normed, s->residual, m->attention_norm + layer * D, D);
        matmul(s->query, m->query_weight + layer * DD, s->normed, D, D);
        matmul(key, m->key_weight + layer * KSD, s->normed, KS, D);
        matmul(value, m->value_weight + layer * KSD, s->normed, KS, D);
        rotate(s->query, m->num_heads, m->head_size, position);
        rotate(key, m->num_kv_heads, m->head_size, position);
        attention(m, s, keys, values, position);
        matmul(s->block_out, m->attention_out_weight + layer * DD, s->attention_out, D, D);
        for (int64_t i = 0; i < D; i++) s->residual[i] += s->block_out[i];

        /* Feed-forward (SwiGLU): down(silu(gate(x)) * up(x)), silu(x) = x / (1 + e^-x). */
        rms_norm(s->normed, s->residual, m->ffn_norm + layer * D, D);
        matmul(s->ffn_gate, m->gate_weight + layer * FD, s->normed, F, D);
        matmul(s->ffn_up, m->up_weight + layer * FD, s->normed, F, D);
        for (int64_t i = 0; i < F; i++) s->ffn_gate[i] *= s->ffn_up[i] / (1.0f + expf(-s->ffn_gate[i]));
        matmul(s->block_out, m->down_weight + layer * FD, s->ffn_gate, D, F);
        for (int64_t i = 0; i < D; i++) s->residual[i] += s->block_out[i];
    }
    rms_norm(s->normed, s->residual, m->output_norm, D);
    matmul(s->logits, m->output_weight, s->normed, m->vocab_size, D);
}

/* ------------------------------------------------------------------ the sampler */
typedef struct { float probability; int id; } candidate;

static int by_probability(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return x->probability == y->probability ? x->id - y->id : x->probability < y->probability ? 1 : -1;
}

/* xorshift64* (Marsaglia; Vigna, arXiv 1402.6246): uniform in [0, 1). The state is never 0. */
static float random_uniform(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (float)((*state * 0x2545f4914f6cdd1du) >> 40) / 16777216.0f;
}

/* Infinity or NaN. Tests the bits, because -Ofast assumes that neither occurs. */
static bool is_not_finite(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7f800000u) == 0x7f800000u;
}

/* Temperature 0: the most probable token. Else a random one by softmax(logits / temperature), from
 * the smallest set with probability top_p (arXiv 1904.09751); 0 and 1 mean all tokens. */
static int sample(float *logits, int n, float temperature, float top_p, candidate *candidates, uint64_t *state) {
    int best = 0, num_candidates = 0;
    for (int i = 0; i < n; i++) {
        if (is_not_finite(logits[i])) fail("non-finite logits: the model's weights are damaged");
        if (logits[i] > logits[best]) best = i;
    }
    if (temperature == 0) return best;
    if (top_p == 0) top_p = 1;
    for (int i = 0; i < n; i++) logits[i] /= temperature;
    softmax(logits, n);
    const float too_small = (1 - top_p) / (n - 1); /* such tokens sum to less than 1 - top_p */
    for (int i = 0; i < n; i++)
        if (logits[i] >= too_small) candidates[num_candidates++] = (candidate){logits[i], i};
    if (num_candidates == 0) return best;
    qsort(candidates, num_candidates, sizeof *candidates, by_probability);
    float kept = 0;
    int last = -1;
    while (kept <= top_p && last + 1 < num_candidates) kept += candidates[++last].probability;
    float coin = random_uniform(state) * kept;
    for (int i = 0; i < last; i++)
        if ((coin -= candidates[i].probability) < 0) return candidates[i].id;
    return candidates[last].id;
}

/* ------------------------------------------------------------------ the loop */
/* Unlike strtod, refuses nan, inf and 0x10. */
static double number(const char *flag, const char *text, double smallest, double largest, bool whole) {
    char *end;
    const double value = strtod(text, &end);
    const bool plain = end > text && *end == 0 && text[strspn(text, "0123456789.eE+-")] == 0;
    if (!plain || value < smallest || value > largest || (whole && value != floor(value)))
        fail("%s: expected a %snumber from %g to %g, found '%s'", flag, whole ? "whole " : "", smallest, largest, text);
    return value;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

int main(int num_arguments, char **arguments) {
    const char *usage = "usage: run MODEL.bin [-t temperature] [-p top-p] [-s seed] [-n positions] [-i prompt] "
                        "[-z tokenizer.bin]";
    const char *prompt = "", *tokenizer_path = "tokenizer.bin";
    float temperature = 1.0f, top_p = 0.9f;
    int num_positions = 256; /* prompt and new tokens together */
    uint64_t random_state = 0;
    if (num_arguments < 2 || num_arguments % 2 != 0 || arguments[1][0] == '-') fail("%s", usage);
    for (int i = 2; i < num_arguments; i += 2) {
        const char *flag = arguments[i], *value = arguments[i + 1];
        if (strcmp(flag, "-t") == 0) temperature = (float)number(flag, value, 0, 1000, false);
        else if (strcmp(flag, "-p") == 0) top_p = (float)number(flag, value, 0, 1, false);
        else if (strcmp(flag, "-s") == 0) random_state = (uint64_t)number(flag, value, 0, 4294967295.0, true);
        else if (strcmp(flag, "-n") == 0) num_positions = (int)number(flag, value, 0, INT32_MAX, true);
        else if (strcmp(flag, "-i") == 0) prompt = value;
        else if (strcmp(flag, "-z") == 0) tokenizer_path = value;
        else fail("unknown flag %s; %s", flag, usage);
    }
    if (random_state == 0) random_state = (uint64_t)time(NULL);

    const model m = open_model(arguments[1]);
    const tokenizer t = open_tokenizer(tokenizer_path, m.vocab_size);
    session s = open_session(&m);
    candidate *candidates = allocate(m.vocab_size, sizeof *candidates);
    int *ids = allocate(strlen(prompt) + 2, sizeof *ids);
    const int num_ids = encode(&t, prompt, ids);
    if (num_positions == 0 || num_positions > m.context) num_positions = m.context;
    if (num_ids > num_positions) fail("prompt: expected at most %d tokens (-n), found %d", num_positions, num_ids);

    double start = 0; /* the first step is not timed: it reads the file from disk */
    int token = ids[0], position = 0;
    while (position < num_positions) {
        forward(&m, &s, token, position++);
        const bool in_prompt = position < num_ids;
        const int next = in_prompt ? ids[position]
                                   : sample(s.logits, m.vocab_size, temperature, top_p, candidates, &random_state);
        if (!in_prompt && (next == BOS || next == EOS)) break;
        print_token(&t, token, next);
        token = next;
        if (position == 1) start = seconds();
    }
    putchar('\n');
    flush_text();
    if (position > 1) fprintf(stderr, "achieved tok/s: %.1f\n", (position - 1) / (seconds() - start));
    return 0;
}
