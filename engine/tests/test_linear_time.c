/* test_linear_time.c: reading and encoding take time in proportion to the bytes, also for the worst
 * input that we know. Four times the input may take at most about four times the operations.
 *
 * Operations are counted, not seconds: the engine is compiled with -fsanitize-coverage=trace-pc
 * (CMakeLists.txt), which calls __sanitizer_cov_trace_pc at every branch, and its calls of memcpy and
 * the like come here by --wrap, to count their bytes. */
#include "formats/formats.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/segments.h"

#include "check.h"
#include "model_files.h"

/* ------------------------------------------------------------------ counting */

static uint64_t num_operations;
enum { BYTES_PER_OPERATION = 16 };

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void) { num_operations++; }

static void count(size_t num_bytes) { num_operations += num_bytes / BYTES_PER_OPERATION; }

#define WRAP(result, name, parameters, arguments, num_bytes) \
    result __real_##name parameters;                         \
    result __wrap_##name parameters;                         \
    result __wrap_##name parameters {                        \
        count(num_bytes);                                    \
        return __real_##name arguments;                      \
    }
WRAP(void *, memcpy, (void *to, const void *from, size_t n), (to, from, n), n)
WRAP(void *, memmove, (void *to, const void *from, size_t n), (to, from, n), n)
WRAP(void *, memset, (void *to, int value, size_t n), (to, value, n), n)
WRAP(int, memcmp, (const void *a, const void *b, size_t n), (a, b, n), n)
WRAP(void *, memchr, (const void *in, int value, size_t n), (in, value, n), n)
WRAP(size_t, strlen, (const char *text), (text), __real_strlen(text))
WRAP(char *, strchr, (const char *text, int value), (text, value), strlen(text))
WRAP(char *, strstr, (const char *text, const char *part), (text, part), strlen(text))
WRAP(void *, calloc, (size_t number, size_t n), (number, n), number *n)

/* ------------------------------------------------------------------ inputs */

/* What a case reads; made outside the count. */
typedef struct {
    buffer file, text;
    tokenizer *tokenizer;
    uint64_t *ends; /* [num_documents] */
    size_t num_documents;
} input;

static uint32_t mixed(size_t i) { return (uint32_t)i * 2654435761u; }

static void begin_gguf(buffer *file, uint64_t num_tensors, uint64_t num_keys) {
    put_bytes(file, "GGUF", 4);
    put_u32(file, 3);
    put_u64(file, num_tensors);
    put_u64(file, num_keys);
}

static void put_text_key(buffer *file, const char *name, const char *value) {
    put_string(file, name);
    put_u32(file, GGUF_STRING);
    put_string(file, value);
}

static void put_strings_key(buffer *file, const char *name, size_t num, void (*put)(buffer *, size_t)) {
    put_string(file, name);
    put_u32(file, GGUF_ARRAY);
    put_u32(file, GGUF_STRING);
    put_u64(file, num);
    for (size_t i = 0; i < num; i++) put(file, i);
}

static void put_mixed(buffer *file, size_t i) {
    char name[16];
    snprintf(name, sizeof name, "%08x", (unsigned)mixed(i));
    put_string(file, name);
}

static void many_keys(input *in, size_t n) {
    begin_gguf(&in->file, 0, n / 24);
    for (size_t i = 0; i < n / 24; i++) {
        put_mixed(&in->file, i);
        put_u32(&in->file, GGUF_U32);
        put_u32(&in->file, 1);
    }
}

static void many_tensors(input *in, size_t n) {
    begin_gguf(&in->file, n / 48, 0);
    for (size_t i = 0; i < n / 48; i++) {
        put_mixed(&in->file, i);
        put_u32(&in->file, 1);
        put_u64(&in->file, 8);
        put_u32(&in->file, TENSOR_F32);
        put_u64(&in->file, 32 * i);
    }
    put_zeros(&in->file, 64 + 32 * (n / 48));
}

/* Five letters. */
static const char *letters(size_t i) {
    static char text[6];
    for (int k = 0; k < 5; k++, i /= 26) text[k] = (char)('a' + i % 26);
    return text;
}

/* Merge i joins two of 64 letters, or, from 4,096 on, such a pair and a letter. */
static void merge_of(size_t i, char left[3], char *right) {
    const size_t pair = i % 4096;
    left[0] = (char)('0' + pair / 64);
    left[1] = i < 4096 ? 0 : (char)('0' + pair % 64);
    left[2] = 0;
    *right = (char)('0' + (i < 4096 ? pair % 64 : i / 4096 - 1));
}

static void put_merge(buffer *file, size_t i) {
    char left[3], right, text[8];
    merge_of(i, left, &right);
    snprintf(text, sizeof text, "%s %c", left, right);
    put_string(file, text);
}

/* 256 bytes as GPT-2 spells them, then the merges. */
static void put_piece(buffer *file, size_t i) {
    if (i >= 256) {
        char left[3], right, merged[8];
        merge_of(i - 256, left, &right);
        snprintf(merged, sizeof merged, "%s%c", left, right);
        put_string(file, merged);
        return;
    }
    const bool printable = (i >= '!' && i <= '~') || (i >= 0xA1 && i <= 0xAC) || i >= 0xAE;
    unsigned code = printable ? (unsigned)i : 0;
    for (size_t k = 0; !printable && k <= i; k++) code += !((k >= '!' && k <= '~') || (k >= 0xA1 && k != 0xAD));
    code = printable ? code : 255 + code;
    char text[3] = {(char)code, 0, 0};
    if (code >= 0x80) {
        text[0] = (char)(0xC0 | code >> 6);
        text[1] = (char)(0x80 | (code & 0x3F));
    }
    put_string(file, text);
}

static const char *pre_tokenizer_name = "qwen2";

static void byte_level_vocabulary(input *in, size_t n) {
    begin_gguf(&in->file, 0, 4);
    put_text_key(&in->file, "tokenizer.ggml.model", "gpt2");
    put_text_key(&in->file, "tokenizer.ggml.pre", pre_tokenizer_name);
    put_strings_key(&in->file, "tokenizer.ggml.tokens", 256 + n / 16, put_piece);
    put_strings_key(&in->file, "tokenizer.ggml.merges", n / 16, put_merge);
}

/* Pieces that share a long prefix. */
static void put_long(buffer *file, size_t i) {
    char text[64];
    snprintf(text, sizeof text, "<|aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa%08x|>", (unsigned)mixed(i));
    put_string(file, text);
}

static void put_types(buffer *file, size_t num, uint32_t type) {
    put_string(file, "tokenizer.ggml.token_type");
    put_u32(file, GGUF_ARRAY);
    put_u32(file, GGUF_I32);
    put_u64(file, num);
    for (size_t i = 0; i < num; i++) put_u32(file, i == 0 ? TOKEN_UNKNOWN : i == 1 ? TOKEN_NORMAL : type);
}

static void put_scores(buffer *file, size_t num) {
    put_string(file, "tokenizer.ggml.scores");
    put_u32(file, GGUF_ARRAY);
    put_u32(file, GGUF_F32);
    put_u64(file, num);
    for (size_t i = 0; i < num; i++) put_f32(file, (float)(mixed(i) >> 16));
}

static void sentencepiece_vocabulary(input *in, size_t n, uint32_t type, void (*put)(buffer *, size_t)) {
    const size_t num = n;
    begin_gguf(&in->file, 0, 4);
    put_text_key(&in->file, "tokenizer.ggml.model", "llama");
    put_strings_key(&in->file, "tokenizer.ggml.tokens", num, put);
    put_scores(&in->file, num);
    put_types(&in->file, num, type);
}

static void many_pieces(input *in, size_t n) { sentencepiece_vocabulary(in, n / 50, TOKEN_NORMAL, put_mixed); }
static void many_special(input *in, size_t n) { sentencepiece_vocabulary(in, n / 64, TOKEN_CONTROL, put_long); }

static void open_tokenizer(input *in) {
    llamita_error error = {0};
    char *chat_template = NULL;
    CHECK(
        !gguf_read_tokenizer(in->file.bytes, in->file.num_bytes, "draft", NULL, &in->tokenizer, &chat_template, &error),
        "%s", error.message);
    free(chat_template);
}

/* "a", "aa", "aaaa", ... to 2^10. */
static void put_runs(buffer *file, size_t i) {
    static char run[1025];
    memset(run, 'a', 1024);
    put_u64(file, i == 0 ? 1 : (size_t)1 << (i - 1));
    put_bytes(file, i == 0 ? "?" : run, i == 0 ? 1 : (size_t)1 << (i - 1));
}

static void put_repeated(buffer *text, const char *part, size_t n) {
    while (text->num_bytes < n) put_bytes(text, part, strlen(part));
}

static void sentencepiece_run(input *in, size_t n) {
    sentencepiece_vocabulary(in, 12, TOKEN_NORMAL, put_runs);
    open_tokenizer(in);
    put_repeated(&in->text, "a", n);
}

static void sentencepiece_text(input *in, size_t n) {
    sentencepiece_vocabulary(in, 1000, TOKEN_NORMAL, put_mixed);
    open_tokenizer(in);
    for (size_t i = 0; in->text.num_bytes < n; i++) put_bytes(&in->text, letters(mixed(i) >> 3), 5);
}

static void byte_level_run(input *in, size_t n) { /* one word */
    byte_level_vocabulary(in, 30000);
    open_tokenizer(in);
    put_repeated(&in->text, "a", n);
}

static void byte_level_spaces(input *in, size_t n) {
    byte_level_vocabulary(in, 30000);
    open_tokenizer(in);
    put_repeated(&in->text, " ", n);
}

static void byte_level_text(input *in, size_t n) {
    byte_level_vocabulary(in, 30000);
    open_tokenizer(in);
    put_repeated(&in->text, "It's 12345 o'clock,\n\n  \tsaid\xC2\xA0the \xE4\xB8\xAD\xE5\x9B\xBD llama!? \xFF", n);
}

static void byte_level_marks(input *in, size_t n) {
    byte_level_vocabulary(in, 30000);
    open_tokenizer(in);
    put_repeated(&in->text, "a\xCC\x81'\xF0\x9F\xA6\x99", n);
}

static const char *repeated;

static void byte_level_repeated(input *in, size_t n) {
    byte_level_vocabulary(in, 30000);
    open_tokenizer(in);
    put_repeated(&in->text, repeated, n);
}

/* An unknown token, a letter, and a user-defined token. */
static void put_three(buffer *file, size_t i) {
    put_u64(file, 1);
    put_u8(file, (uint8_t)"?aX"[i]);
}

/* Runs of unknown characters become one token, in each part between user-defined ones. */
static void unknown_runs(input *in, size_t n) {
    sentencepiece_vocabulary(in, 3, TOKEN_USER, put_three);
    open_tokenizer(in);
    put_repeated(&in->text, "X\x01\x01", n);
}

/* Almost a control token, everywhere. */
static void almost_special(input *in, size_t n) {
    sentencepiece_vocabulary(in, 500, TOKEN_CONTROL, put_long);
    open_tokenizer(in);
    put_repeated(&in->text, "<|aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0000000", n);
}

/* A text of the letter that a control token of nearly the maximum length repeats. */
static size_t long_special_bytes;
static void put_one_long(buffer *file, size_t i) {
    put_u64(file, i < 2 ? 1 : long_special_bytes);
    if (i < 2) put_u8(file, i == 0 ? '?' : 'a');
    for (size_t k = 0; i == 2 && k < long_special_bytes; k++) put_u8(file, k + 1 == long_special_bytes ? 'b' : 'a');
}

static void long_special(input *in, size_t n) {
    long_special_bytes = 1000;
    sentencepiece_vocabulary(in, 3, TOKEN_CONTROL, put_one_long);
    open_tokenizer(in);
    put_repeated(&in->text, "a", n);
}

static void template_of(input *in, const char *part, size_t n) {
    put_repeated(&in->text, part, n);
    put_u8(&in->text, 0);
}

static void template_tags(input *in, size_t n) { template_of(in, "{% if x['a'] -%} a\n {{ b + 'c' | trim }}", n); }
static void template_text(input *in, size_t n) { template_of(in, "{ text \n", n); }
static void template_spaces(input *in, size_t n) { template_of(in, " \t", n); }
static void template_sum(input *in, size_t n) {
    put_bytes(&in->text, "{{ a", 4);
    put_repeated(&in->text, " + 'b'", n);
    put_bytes(&in->text, "}}", 3);
}

static void tokenizer_bin(input *in, size_t n) {
    put_u32(&in->file, 8);
    for (size_t i = 0; i < n / 16; i++) {
        char piece[16];
        snprintf(piece, sizeof piece, "%08x", (unsigned)mixed(i));
        put_f32(&in->file, (float)(mixed(i) >> 12));
        put_u32(&in->file, 8);
        put_bytes(&in->file, piece, 8);
    }
}

static void split_documents(input *in, size_t every) {
    in->num_documents = in->text.num_bytes / every;
    in->ends = malloc(in->num_documents * sizeof *in->ends);
    if (!in->ends) abort();
    for (size_t i = 0; i < in->num_documents; i++) in->ends[i] = (i + 1) * every;
    in->ends[in->num_documents - 1] = in->text.num_bytes;
}

static void many_words(input *in, size_t n) {
    for (size_t i = 0; in->text.num_bytes < n; i++) {
        put_u8(&in->text, ' ');
        put_bytes(&in->text, letters(mixed(i) >> 3), 5);
    }
    split_documents(in, 1000);
}

static void one_word(input *in, size_t n) {
    put_repeated(&in->text, "a", n);
    split_documents(in, n);
}

static void many_documents(input *in, size_t n) {
    byte_level_vocabulary(in, 30000);
    open_tokenizer(in);
    put_repeated(&in->text, "the llama ", n);
    split_documents(in, 10);
}

/* Spaces, then an answer that was generated as spaces. */
static void generated_spaces(input *in, size_t n) {
    byte_level_vocabulary(in, 30000);
    open_tokenizer(in);
    put_repeated(&in->text, " ", n);
    in->num_documents = 2;
}

static void many_segments(input *in, size_t n) {
    byte_level_vocabulary(in, 30000);
    open_tokenizer(in);
    put_repeated(&in->text, "the llama ", n);
    in->num_documents = n / 10;
}

/* ------------------------------------------------------------------ what is counted */

static void parse(input *in) {
    gguf_file file = {0};
    llamita_error error = {0};
    const reader from = {
        .bytes = in->file.bytes, .num_bytes = in->file.num_bytes, .what = "model", .path = "draft", .error = &error};
    CHECK(!gguf_parse(&file, &from), "%s", error.message);
    gguf_free(&file);
}

static void encode(input *in) {
    llamita_error error = {0};
    const size_t capacity = 2 * in->text.num_bytes + 2;
    int32_t *ids = malloc(capacity * sizeof *ids);
    size_t num_ids;
    const llamita_status status = tokenizer_encode(in->tokenizer, (const char *)in->text.bytes, in->text.num_bytes,
                                                   LLAMITA_ENCODE_SPECIAL, ids, capacity, &num_ids, &error);
    CHECK(!status, "%s", error.message);
    free(ids);
}

static void encode_documents(input *in) {
    llamita_error error = {0};
    const size_t capacity = 2 * in->text.num_bytes + 2 * in->num_documents;
    int32_t *ids = malloc(capacity * sizeof *ids);
    uint64_t *ends = malloc(in->num_documents * sizeof *ends);
    const llamita_status status = tokenizer_encode_documents(in->tokenizer, (const char *)in->text.bytes, in->ends,
                                                             in->num_documents, 1, ids, capacity, ends, &error);
    CHECK(!status, "%s", error.message);
    free(ids);
    free(ends);
}

/* Every second of num_documents segments was generated, as the ids of its bytes. */
static void encode_segments(input *in) {
    llamita_error error = {0};
    const size_t each = in->text.num_bytes / in->num_documents, capacity = 2 * in->text.num_bytes + 2;
    llamita_text_segment *segments = calloc(in->num_documents, sizeof *segments);
    int32_t *ids = malloc(capacity * sizeof *ids), *generated = malloc(each * sizeof *generated);
    size_t num_ids;
    for (size_t i = 0; i < each; i++) generated[i] = in->text.bytes[i]; /* the tokens are in byte order */
    for (size_t i = 0; i < in->num_documents; i++) {
        segments[i] = (llamita_text_segment){.text = (const char *)in->text.bytes + i * each, .num_bytes = each};
        if (i % 2) segments[i].ids = generated;
        if (i % 2) segments[i].num_ids = each;
    }
    const llamita_status status =
        tokenizer_encode_segments(in->tokenizer, segments, in->num_documents, ids, capacity, &num_ids, &error);
    CHECK(!status, "%s", error.message);
    free(segments);
    free(ids);
    free(generated);
}

static void read_template(input *in) {
    bool no_memory;
    free(chat_template_canonical((const char *)in->text.bytes, &no_memory));
}

static void read_tokenizer_bin(input *in) {
    llamita_error error = {0};
    CHECK(!llama2c_read_tokenizer(in->file.bytes, in->file.num_bytes, "draft", (int32_t)(in->file.num_bytes / 16),
                                  &in->tokenizer, &error),
          "%s", error.message);
}

static void train(input *in) {
    llamita_bpe_trainer *trainer = NULL;
    llamita_error error = {0};
    static int32_t merges[200][4];
    size_t num_merges;
    CHECK(!llamita_bpe_trainer_open(&trainer, LLAMITA_BPE_WORDS, &error), "%s", error.message);
    CHECK(!llamita_bpe_trainer_add(trainer, (const char *)in->text.bytes, in->ends, in->num_documents, &error), "%s",
          error.message);
    CHECK(!llamita_bpe_trainer_train(trainer, 300, 2, merges[0], 200, &num_merges, &error), "%s", error.message);
    llamita_bpe_trainer_close(trainer);
}

/* The text with a token a byte. */
static void index_text(input *in) {
    enum { VOCAB = 257 };
    static uint32_t token_ends[VOCAB];
    static char token_bytes[VOCAB];
    for (int i = 0; i < VOCAB; i++) {
        token_bytes[i] = (char)i;
        token_ends[i] = (uint32_t)i + 1;
    }
    const size_t num_bytes = in->text.num_bytes;
    uint32_t *ids = malloc((num_bytes + 1) * sizeof *ids), *suffixes = malloc((num_bytes + 9) * sizeof *suffixes);
    uint32_t *entry_tokens = malloc((num_bytes + 9) * sizeof *entry_tokens);
    uint16_t *entry_offsets = malloc((num_bytes + 9) * sizeof *entry_offsets);
    for (size_t i = 0; i < num_bytes; i++) ids[i] = in->text.bytes[i];
    ids[num_bytes] = 256;
    const void *parts[] = {ids};
    const uint64_t num_tokens[] = {num_bytes + 1};
    const llamita_indexed_text text = {parts, num_tokens, 1, 4, VOCAB, 256, token_bytes, token_ends};
    llamita_error error = {0};
    uint64_t num_blocks;
    CHECK(!llamita_text_index_measure(&text, &num_blocks, &error), "%s", error.message);
    CHECK(!llamita_text_index_build(&text, num_blocks, suffixes, entry_tokens, entry_offsets, &error), "%s",
          error.message);
    free(ids);
    free(suffixes);
    free(entry_tokens);
    free(entry_offsets);
}

/* ------------------------------------------------------------------ growth */

static double operations(void (*make)(input *, size_t), void (*run)(input *), size_t n) {
    input in = {0};
    make(&in, n);
    num_operations = 0;
    run(&in);
    const double found = (double)num_operations;
    tokenizer_free(in.tokenizer);
    free_buffer(&in.file);
    free_buffer(&in.text);
    free(in.ends);
    return found;
}

static void check_growth(const char *name, void (*make)(input *, size_t), void (*run)(input *), size_t n) {
    const double small = operations(make, run, n), large = operations(make, run, 4 * n);
    fprintf(stderr, "%-24s %6.1f operations per byte, %5.2f times as many for 4 times the bytes\n", name,
            small / (double)n, large / small);
    CHECK(small > (double)n / 100, "%s: nothing was counted", name);
    CHECK(large <= 4.7 * small, "%s: %.2f times the operations for 4 times the bytes", name, large / small);
}

/* Every way to split a text, on runs that it may read again and again. */
static void check_pre_tokenizers(void) {
    static const char *const texts[] = {"1",
                                        "12\xEF\xBC\x91",
                                        " 1",
                                        "a",
                                        "A",
                                        "Aa",
                                        "\xE4\xB8\xAD",
                                        "\xE4\xB8\xAD"
                                        "A",
                                        " ",
                                        " \n",
                                        "\n",
                                        "!",
                                        "'",
                                        "'s",
                                        "a'",
                                        "$1",
                                        "\xCC\x81",
                                        "\xFF",
                                        "/\n"};
    llamita_pre_tokenizer_info info;
    for (size_t i = 0; llamita_pre_tokenizer(i, &info); i++) {
        if (strcmp(info.name, info.written) != 0) continue; /* another name of one of these */
        pre_tokenizer_name = info.name;
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
            repeated = texts[k];
            check_growth(info.name, byte_level_repeated, encode, 1 << 12);
        }
    }
}

#define CASE(make, run, n) {#make, make, run, n}

int main(void) {
    static const struct {
        const char *name;
        void (*make)(input *, size_t);
        void (*run)(input *);
        size_t num_bytes;
    } cases[] = {
        CASE(many_keys, parse, 1 << 17),
        CASE(many_tensors, parse, 1 << 17),
        CASE(byte_level_vocabulary, open_tokenizer, 1 << 17),
        CASE(many_pieces, open_tokenizer, 1 << 17),
        CASE(many_special, open_tokenizer, 1 << 17),
        CASE(tokenizer_bin, read_tokenizer_bin, 1 << 17),
        CASE(sentencepiece_run, encode, 1 << 15),
        CASE(sentencepiece_text, encode, 1 << 15),
        CASE(byte_level_run, encode, 1 << 15),
        CASE(byte_level_spaces, encode, 1 << 15),
        CASE(byte_level_text, encode, 1 << 15),
        CASE(byte_level_marks, encode, 1 << 15),
        CASE(unknown_runs, encode, 1 << 13),
        CASE(almost_special, encode, 1 << 15),
        CASE(long_special, encode, 1 << 13),
        CASE(many_documents, encode_documents, 1 << 15),
        CASE(many_segments, encode_segments, 1 << 13),
        CASE(generated_spaces, encode_segments, 1 << 12),
        CASE(template_tags, read_template, 1 << 13),
        CASE(template_text, read_template, 1 << 13),
        CASE(template_spaces, read_template, 1 << 13),
        CASE(template_sum, read_template, 1 << 13),
        CASE(many_words, train, 1 << 16),
        CASE(one_word, train, 1 << 14),
        CASE(many_words, index_text, 1 << 17),
        CASE(one_word, index_text, 1 << 17),
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_growth(cases[i].name, cases[i].make, cases[i].run, cases[i].num_bytes);
    check_pre_tokenizers();
    return check_failures();
}
