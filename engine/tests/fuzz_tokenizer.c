/* fuzz_tokenizer.c: reads any bytes as a tokenizer's description and a text: the description is
 * rejected with a one-line error, or the ids are in range, decode to the text, and are the same from
 * the encoder of documents. */
#include "fuzz.h"
#include "tokenizer/tokenizer.h"

enum { MAX_TOKENS = 48, MAX_LINES = 24 };

typedef struct {
    const uint8_t *bytes;
    size_t left;
} feed;

static unsigned take(feed *f) {
    if (f->left == 0) return 0;
    f->left--;
    return *f->bytes++;
}

static byte_slice take_slice(feed *f, size_t max_length) {
    size_t length = take(f) % (max_length + 1);
    if (length > f->left) length = f->left;
    byte_slice slice = {(const char *)f->bytes, length};
    f->bytes += length;
    f->left -= length;
    return slice;
}

static int32_t take_id(feed *f, int32_t vocab_size, unsigned wild) {
    unsigned value = take(f);
    return wild == 19 ? (int32_t)value - 64 : (int32_t)(value % ((unsigned)vocab_size + 1)) - 1;
}

static bool is_repeated(const byte_slice *pieces, int32_t id) {
    for (int32_t i = 0; i < id; i++) {
        bool same = pieces[i].num_bytes == pieces[id].num_bytes;
        if (same && memcmp(pieces[i].bytes, pieces[id].bytes, pieces[id].num_bytes) == 0) return true;
    }
    return false;
}

/* Adds the byte pieces that most vocabularies have: <0xNN>, or GPT-2's alphabet. */
static int32_t add_bytes(tokenizer_kind kind, byte_slice *pieces, int32_t *types, char text[][8], int32_t num,
                         unsigned wild) {
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 256; byte++) {
        bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        unsigned code = printable ? byte : next++;
        int length;
        if (kind == TOKENIZER_SENTENCEPIECE) length = snprintf(text[byte], 8, "<0x%02X>", byte);
        else if (code < 0x80) length = snprintf(text[byte], 8, "%c", (char)code);
        else length = snprintf(text[byte], 8, "%c%c", (char)(0xC0 | code >> 6), (char)(0x80 | (code & 0x3F)));
        pieces[num] = (byte_slice){text[byte], (size_t)length};
        types[num] = kind == TOKENIZER_SENTENCEPIECE ? TOKEN_BYTE : TOKEN_NORMAL;
        num += !(wild >= 20 && is_repeated(pieces, num));
    }
    return num;
}

/* Copies the text to plain with a space for every U+2581; returns its length. */
static size_t plain_text(byte_slice text, char *plain) {
    size_t length = 0;
    for (size_t i = 0; i < text.num_bytes; i++) {
        bool separator = text.num_bytes - i >= 3 && memcmp(text.bytes + i, "\xE2\x96\x81", 3) == 0;
        plain[length++] = separator ? ' ' : text.bytes[i];
        i += separator ? 2 : 0;
    }
    return length;
}

/* Checks that every byte comes back. SentencePiece cannot distinguish U+2581 from a space, and puts
 * a space before a text, which remains visible if the vocabulary has it only as a byte. */
static void check_round_trip(const tokenizer_source *source, const tokenizer *t, byte_slice text, const int32_t *ids,
                             size_t num_ids) {
    static char joined[1 << 16], plain[1 << 16];
    size_t length = 0, expected = text.num_bytes;
    for (size_t i = 0; i < num_ids; i++) {
        const char *bytes;
        size_t num_bytes;
        CHECK(!tokenizer_decode(t, i > 0 ? ids[i - 1] : -1, ids[i], &bytes, &num_bytes, NULL), "id %d", (int)ids[i]);
        if (num_bytes > sizeof joined - length) return;
        memcpy(joined + length, bytes, num_bytes);
        length += num_bytes;
    }
    if (expected > 0) memcpy(plain, text.bytes, expected);
    if (source->kind == TOKENIZER_SENTENCEPIECE) {
        expected = plain_text((byte_slice){plain, expected}, plain);
        length = plain_text((byte_slice){joined, length}, joined);
    }
    size_t spare = source->add_space_prefix && length == expected + 1 && joined[0] == ' ';
    CHECK(length - spare == expected && memcmp(joined + spare, plain, expected) == 0,
          "kind %d: a text of %zu bytes came back as %zu", (int)source->kind, expected, length);
}

/* The text as a document between two others gives the same ids. */
static void check_documents(const tokenizer *t, byte_slice text, const int32_t *ids, size_t num_ids) {
    static char joined[1 << 13];
    static int32_t found[1 << 14];
    if (text.num_bytes + 2 > sizeof joined) return;
    joined[0] = 'a';
    if (text.num_bytes) memcpy(joined + 1, text.bytes, text.num_bytes);
    joined[text.num_bytes + 1] = ' ';
    const uint64_t ends[] = {1, text.num_bytes + 1, text.num_bytes + 2};
    uint64_t token_ends[3] = {0};
    llamita_error error = {0};
    if (tokenizer_encode_documents(t, joined, ends, 3, -1, found, sizeof found / sizeof *found, token_ends, &error)) {
        CHECK(error.status == LLAMITA_ERROR_ARGUMENT, "%s", error.message); /* no token for a space */
        return;
    }
    CHECK(token_ends[1] - token_ends[0] == num_ids &&
              (num_ids == 0 || memcmp(found + token_ends[0], ids, num_ids * sizeof *ids) == 0),
          "other ids from the encoder of documents");
}

static void use_text(const tokenizer_source *source, const tokenizer *t, byte_slice text, bool plain_vocabulary) {
    static int32_t ids[1 << 17];
    for (int flags = 0; flags < 4; flags++) {
        size_t num_ids = 0, capacity = 2 * text.num_bytes + 2;
        llamita_error error = {0};
        llamita_status status = tokenizer_encode(t, text.bytes, text.num_bytes, flags, ids, capacity, &num_ids, &error);
        if (status) {
            CHECK(status == LLAMITA_ERROR_ARGUMENT && num_ids == 0, "flags %d: %s", flags, error.message);
            continue;
        }
        bool unknown = false;
        for (size_t i = 0; i < num_ids; i++) {
            CHECK(ids[i] >= 0 && ids[i] < source->vocab_size, "id %d", (int)ids[i]);
            unknown |= !source->types || source->types[ids[i]] == TOKEN_UNKNOWN || ids[i] == source->unknown_id;
        }
        if (flags == 0 && !unknown && plain_vocabulary) check_round_trip(source, t, text, ids, num_ids);
        if (flags == 0) check_documents(t, text, ids, num_ids);
    }
}

static void use(const uint8_t *bytes, size_t num_bytes) {
    static char byte_text[256][8];
    byte_slice pieces[MAX_TOKENS + 256], merges[MAX_LINES];
    int32_t types[MAX_TOKENS + 256], end_ids[1];
    float scores[MAX_TOKENS + 256] = {0};
    feed f = {bytes, num_bytes < 4096 ? num_bytes : 4096};
    unsigned shape = take(&f), wild = take(&f); /* wild: allows errors that few files have */
    tokenizer_source source = {.kind = shape & 1 ? TOKENIZER_BYTE_LEVEL : TOKENIZER_SENTENCEPIECE,
                               .pre_tokenizer = (pre_tokenizer)(shape >> 1 & 3),
                               .pieces = pieces,
                               .merges = merges,
                               .scores = scores,
                               .types = shape & 8 ? NULL : types,
                               .add_space_prefix = shape & 16,
                               .end_ids = end_ids,
                               .num_end_ids = shape >> 7};
    bool has_user = false;
    for (unsigned n = take(&f) % MAX_TOKENS; n > 0; n--) {
        int32_t id = source.vocab_size;
        unsigned kind = take(&f);
        types[id] = kind < 192 ? TOKEN_NORMAL : (int32_t)(wild < 16 ? kind % 8 : kind % 5 + 1);
        scores[id] = wild == 17 && kind == 7 ? NAN : (float)(int8_t)take(&f);
        pieces[id] = take_slice(&f, 8);
        if (wild >= 20 && is_repeated(pieces, id)) continue;
        has_user |= types[id] == TOKEN_USER;
        source.vocab_size++;
    }
    if (shape & 32) source.vocab_size = add_bytes(source.kind, pieces, types, byte_text, source.vocab_size, wild);
    source.bos_id = take_id(&f, source.vocab_size, wild);
    source.eos_id = take_id(&f, source.vocab_size, wild);
    source.unknown_id = take_id(&f, source.vocab_size, wild);
    end_ids[0] = source.vocab_size / 2 - (wild == 18);
    for (unsigned n = take(&f) % MAX_LINES; n > 0; n--) {
        byte_slice line = take_slice(&f, 16);
        bool whole = line.num_bytes > 2 && memchr(line.bytes + 1, ' ', line.num_bytes - 2);
        if (whole || wild < 20) merges[source.num_merges++] = line;
    }
    tokenizer *t = NULL;
    llamita_error error = {0};
    llamita_status status = tokenizer_create(&source, "fuzz", &t, &error);
    CHECK((status == LLAMITA_OK) == (t != NULL), "status %d", status);
    if (status) {
        fuzz_check_error(&error);
        return;
    }
    use_text(&source, t, (byte_slice){(const char *)f.bytes, f.left}, !has_user && source.types);
    for (int32_t id = -2; id < source.vocab_size + 2; id++) {
        const char *text;
        size_t length;
        bool inside = id >= 0 && id < source.vocab_size;
        CHECK((tokenizer_decode(t, -1, id, &text, &length, &error) == LLAMITA_OK) == inside, "id %d", (int)id);
        CHECK((tokenizer_text(t, id) != NULL) == inside, "id %d", (int)id);
        tokenizer_ends(t, id);
    }
    tokenizer_free(t);
}

/* Typical bytes of vocabularies and texts: few letters, so that pieces overlap; spaces; parts of
 * characters. */
static void put_typical(buffer *file, size_t num_bytes, uint64_t *state) {
    static const char *const parts[] = {"a",
                                        "b",
                                        "c",
                                        " ",
                                        "a b",
                                        "ab",
                                        "\n",
                                        "'",
                                        "s",
                                        "1",
                                        "\xE2\x96\x81",
                                        "\xC4\xA0",
                                        "\xE4\xB8\xAD",
                                        "\xF0\x9F\xA6\x99",
                                        "\xE2",
                                        "\x96",
                                        "\xFF",
                                        "<",
                                        "<0x41>",
                                        "\xC3"};
    while (file->num_bytes < num_bytes) {
        const uint64_t random = random_u64(state);
        const char *part = CHOOSE(parts, state);
        if (random % 8 == 0 || file->num_bytes < 7) put_u8(file, (uint8_t)(random >> 8));
        else if (random % 8 == 1) put_u8(file, (uint8_t)(random >> 8 & 7)); /* a length */
        else put_bytes(file, part, strlen(part));
    }
}

static buffer write_variant(uint64_t variant) {
    buffer file = {0};
    put_typical(&file, 1 + (size_t)(random_u64(&variant) % 2048), &variant);
    return file;
}

static void mutate(buffer *file, uint64_t *state) {
    buffer typical = {0};
    put_typical(&typical, 8 + (size_t)(random_u64(state) % 8), state);
    if (random_u64(state) % 2) insert_bytes(file, random_up_to(state, file->num_bytes + 1), typical.bytes + 7, 1);
    else mutate_bytes(file, state);
    free_buffer(&typical);
}

FUZZ_TARGET(use, write_variant, mutate, 15000)
