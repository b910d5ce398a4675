/* fuzz_bpe_trainer.c: trains a vocabulary on any bytes: merges are in range and in order, the same
 * again, and make a tokenizer that encodes the text as documents. */
#include "fuzz.h"
#include "tokenizer/tokenizer.h"

enum { MAX_DOCUMENTS = 16, MAX_MERGES = 200 };

/* Bytes 0 to 2 are settings; the rest is text, in documents that end at 0xFE. */
static void use(const uint8_t *bytes, size_t num_bytes) {
    if (num_bytes < 3) return;
    const int32_t num_tokens = 256 + bytes[0] % MAX_MERGES, min_count = bytes[1] % 8;
    const size_t capacity = bytes[2];
    const char *text = (const char *)bytes + 3;
    uint64_t ends[MAX_DOCUMENTS];
    size_t num_documents = 0;
    for (size_t i = 0; i < num_bytes - 3; i++)
        if (bytes[i + 3] == 0xFE && num_documents < MAX_DOCUMENTS - 1) ends[num_documents++] = i;
    ends[num_documents++] = num_bytes - 3;
    const llamita_bpe_unit unit = num_bytes % 2 ? LLAMITA_BPE_WORDS : LLAMITA_BPE_CHARACTERS;
    int32_t merges[2][MAX_MERGES + 256][4];
    size_t num_merges[2] = {0};
    llamita_error error = {0};
    for (int again = 0; again < 2; again++) {
        llamita_bpe_trainer *trainer = NULL;
        CHECK(!llamita_bpe_trainer_open(&trainer, unit, &error), "%s", error.message);
        CHECK(!llamita_bpe_trainer_add(trainer, text, ends, num_documents, &error), "%s", error.message);
        const llamita_status status = llamita_bpe_trainer_train(trainer, num_tokens, min_count, merges[again][0],
                                                                capacity, &num_merges[again], &error);
        if (!fuzz_succeeded(status, LLAMITA_ERROR_ARGUMENT, &error)) num_merges[again] = 0;
        llamita_bpe_trainer_close(trainer);
    }
    CHECK(num_merges[0] == num_merges[1] && memcmp(merges[0], merges[1], num_merges[0] * sizeof **merges) == 0,
          "other merges the second time");
    CHECK(num_merges[0] <= capacity, "%zu merges", num_merges[0]);
    int32_t next = 256;
    for (size_t i = 0; i < num_merges[0]; i++) {
        const int32_t *m = merges[0][i];
        CHECK(m[0] >= 0 && m[0] < next && m[1] >= 0 && m[1] < next && m[2] >= 0 && m[2] <= next,
              "merge %zu: %d and %d become %d", i, m[0], m[1], m[2]);
        CHECK(m[3] >= 1 && (i == 0 || m[3] <= merges[0][i - 1][3]), "merge %zu occurs %d times", i, m[3]);
        next += m[2] == next;
    }
    CHECK(next <= num_tokens || num_merges[0] == 0, "%d tokens, %d asked for", next, num_tokens);
}

static buffer write_variant(uint64_t variant) {
    static const char *const words[] = {"the ", "llama ",       "aaaa", "abab", "\xFE",      "\n\n",      " 123",
                                        "'ll",  "\xE4\xB8\xAD", "\xFF", " ",    "aa aa aa ", "xyxyxyxy ", "\xC3"};
    buffer file = {0};
    put_u8(&file, (uint8_t)(random_u64(&variant) | 64));
    put_u8(&file, (uint8_t)(random_u64(&variant) % 4));
    put_u8(&file, (uint8_t)(random_u64(&variant) | 128));
    for (uint64_t n = random_u64(&variant) % 200; n > 0; n--) {
        const char *word = CHOOSE(words, &variant);
        put_bytes(&file, word, strlen(word));
    }
    return file;
}

FUZZ_TARGET(use, write_variant, mutate_bytes, 4000)
