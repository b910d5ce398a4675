/* gguf.c: parses and validates GGUF v2 and v3 files.
 *
 * Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. As in llama.cpp, the tensors
 * are stored in the order of their descriptions, separated by padding only. Bytes after the last
 * are ignored.
 */
#include "formats/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Far above any real file (tens of keys, hundreds of tensors, 10^5 tokens), but they bound time and
 * memory. */
enum { MAX_HEADER_BYTES = 1 << 26 };
enum { MAX_ENTRIES = 1 << 16, MAX_TENSORS = 1 << 16, MAX_ELEMENTS = 1 << 24, MAX_KEY_BYTES = 65535 };
enum { MAX_TENSOR_NAME_BYTES = 63, DEFAULT_ALIGNMENT = 32, MIN_ALIGNMENT = 8 };

static const char *const TYPE_NAMES[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};
static const size_t TYPE_BYTES[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static bool type_known(uint32_t type) { return type <= GGUF_F64; }

/* The name of a GGUF type that this engine does not read; NULL if GGUF has no such type. */
static const char *unsupported_type(uint32_t type) {
    static const struct {
        uint32_t type;
        const char *name;
    } unsupported[] = {
        {9, "Q8_1"},   {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"},
        {21, "IQ3_S"}, {22, "IQ2_S"}, {24, "I8"},      {25, "I16"},    {26, "I32"},     {27, "I64"},
        {28, "F64"},   {29, "IQ1_M"}, {40, "NVFP4"},   {41, "Q1_0"},
    };
    for (size_t i = 0; i < sizeof unsupported / sizeof unsupported[0]; i++)
        if (unsupported[i].type == type) return unsupported[i].name;
    return NULL;
}

static int compare_slices(byte_slice a, byte_slice b) {
    size_t shorter = a.num_bytes < b.num_bytes ? a.num_bytes : b.num_bytes;
    int order = memcmp(a.bytes, b.bytes, shorter);
    return order ? order : (a.num_bytes > b.num_bytes) - (a.num_bytes < b.num_bytes);
}

bool slice_is(byte_slice slice, const char *text) {
    return slice.num_bytes == strlen(text) && memcmp(slice.bytes, text, slice.num_bytes) == 0;
}

static int compare_entries(const void *a, const void *b) {
    return compare_slices(((const gguf_entry *)a)->key, ((const gguf_entry *)b)->key);
}

static int compare_tensors(const void *a, const void *b) {
    return compare_slices(((const gguf_tensor *)a)->name, ((const gguf_tensor *)b)->name);
}

/* ---------------------------------------------------------------- parsing */

static llamita_status end_error(const gguf_file *file, const char *part, uint64_t index, uint64_t count) {
    const bool whole = file->from.num_bytes == file->file_bytes;
    return reader_error(&file->from, "%s %" PRIu64 " of %" PRIu64 " runs past %s at byte %zu; the file is %sdamaged",
                        part, index + 1, count, whole ? "the end of the file" : "the maximum header size",
                        file->from.num_bytes, whole ? "incomplete or " : "");
}

static bool take_string(reader *from, byte_slice *string) {
    uint64_t num_bytes;
    const unsigned char *bytes;
    if (!reader_u64(from, &num_bytes) || !reader_bytes(from, num_bytes, &bytes)) return false;
    *string = (byte_slice){(const char *)bytes, (size_t)num_bytes};
    return true;
}

static llamita_status parse_header(gguf_file *file, uint64_t *num_tensors, uint64_t *num_entries) {
    reader *from = &file->from;
    const unsigned char *magic;
    if (!reader_bytes(from, 4, &magic) || memcmp(magic, "GGUF", 4) != 0)
        return reader_error(from, "expected the bytes GGUF at the start; this is not a GGUF file");
    if (!reader_u32(from, &file->version))
        return reader_error(from, "the file ends at byte %zu, inside the header; it is incomplete", from->num_bytes);
    if (file->version != 0 && (file->version & 0xFFFF) == 0)
        return reader_error(from, "expected a little-endian GGUF file, found a big-endian one; convert it again");
    if (file->version != 2 && file->version != 3) {
        return reader_error(from, "GGUF version: expected 2 or 3, found %" PRIu32 "; convert the model again",
                            file->version);
    }
    if (!reader_u64(from, num_tensors) || !reader_u64(from, num_entries))
        return reader_error(from, "the file ends at byte %zu, inside the header; it is incomplete", from->num_bytes);
    if (*num_tensors > MAX_TENSORS) {
        return reader_error(from, "number of tensors: expected at most %d, found %" PRIu64 "; the file is damaged",
                            MAX_TENSORS, *num_tensors);
    }
    if (*num_entries > MAX_ENTRIES) {
        return reader_error(from, "number of keys: expected at most %d, found %" PRIu64 "; the file is damaged",
                            MAX_ENTRIES, *num_entries);
    }
    return LLAMITA_OK;
}

static llamita_status parse_array(gguf_file *file, gguf_entry *entry, uint64_t index, uint64_t count) {
    reader *from = &file->from;
    uint32_t type;
    if (!reader_u32(from, &type) || !reader_u64(from, &entry->count)) return end_error(file, "key", index, count);
    if (type == GGUF_ARRAY || !type_known(type)) {
        return reader_error(from,
                            "key %.*s: expected an array of numbers, booleans or strings, found type %" PRIu32
                            "; the file is damaged",
                            SHOWN(entry->key), type);
    }
    entry->element_type = (gguf_type)type;
    if (entry->count > MAX_ELEMENTS) {
        return reader_error(from, "key %.*s: expected at most %d elements, found %" PRIu64 "; the file is damaged",
                            SHOWN(entry->key), MAX_ELEMENTS, entry->count);
    }
    if (type != GGUF_STRING) {
        bool fits = reader_bytes(from, entry->count * TYPE_BYTES[type], &entry->data);
        return fits ? LLAMITA_OK : end_error(file, "key", index, count);
    }
    entry->data = from->bytes + from->position;
    for (uint64_t i = 0; i < entry->count; i++) {
        byte_slice string;
        if (!take_string(from, &string)) {
            char part[80];
            snprintf(part, sizeof part, "key %.*s: string", SHOWN(entry->key));
            return end_error(file, part, i, entry->count);
        }
    }
    return LLAMITA_OK;
}

static llamita_status parse_value(gguf_file *file, gguf_entry *entry, uint64_t index, uint64_t count) {
    reader *from = &file->from;
    if (entry->type == GGUF_ARRAY) return parse_array(file, entry, index, count);
    if (entry->type == GGUF_STRING) {
        byte_slice string;
        if (!take_string(from, &string)) return end_error(file, "key", index, count);
        entry->data = (const unsigned char *)string.bytes;
        entry->count = string.num_bytes;
        return LLAMITA_OK;
    }
    if (!reader_bytes(from, TYPE_BYTES[entry->type], &entry->data)) return end_error(file, "key", index, count);
    if (entry->type == GGUF_BOOL && entry->data[0] > 1) {
        return reader_error(from, "key %.*s: expected a boolean of 0 or 1, found %d; the file is damaged",
                            SHOWN(entry->key), entry->data[0]);
    }
    return LLAMITA_OK;
}

static llamita_status parse_entry(gguf_file *file, gguf_entry *entry, uint64_t index, uint64_t count) {
    reader *from = &file->from;
    uint32_t type;
    if (!take_string(from, &entry->key)) return end_error(file, "key", index, count);
    if (entry->key.num_bytes == 0 || entry->key.num_bytes > MAX_KEY_BYTES) {
        return reader_error(from,
                            "key %" PRIu64 " of %" PRIu64 ": expected a name of 1 to %d bytes, found %zu; the file is "
                            "damaged",
                            index + 1, count, MAX_KEY_BYTES, entry->key.num_bytes);
    }
    if (memchr(entry->key.bytes, '\0', entry->key.num_bytes)) {
        return reader_error(from, "key %" PRIu64 " of %" PRIu64 ": the name has a zero byte; the file is damaged",
                            index + 1, count);
    }
    if (!reader_u32(from, &type)) return end_error(file, "key", index, count);
    if (!type_known(type)) {
        return reader_error(from, "key %.*s: expected a type of 0 to %d, found %" PRIu32 "; the file is damaged",
                            SHOWN(entry->key), GGUF_F64, type);
    }
    entry->type = (gguf_type)type;
    return parse_value(file, entry, index, count);
}

static llamita_status parse_entries(gguf_file *file, uint64_t count) {
    enum { MIN_ENTRY_BYTES = 8 + 1 + 4 + 1 };
    if (count > (file->from.num_bytes - file->from.position) / MIN_ENTRY_BYTES)
        return end_error(file, "key", (file->from.num_bytes - file->from.position) / MIN_ENTRY_BYTES, count);
    file->entries = calloc((size_t)count + 1, sizeof *file->entries);
    if (!file->entries) return reader_memory_error(&file->from, (count + 1) * sizeof *file->entries);
    file->num_entries = (size_t)count;
    for (uint64_t i = 0; i < count; i++) {
        llamita_status status = parse_entry(file, &file->entries[i], i, count);
        if (status) return status;
    }
    qsort(file->entries, file->num_entries, sizeof *file->entries, compare_entries);
    for (size_t i = 1; i < file->num_entries; i++)
        if (compare_entries(&file->entries[i - 1], &file->entries[i]) == 0)
            return reader_error(&file->from, "key %.*s occurs twice; the file is damaged", SHOWN(file->entries[i].key));
    return LLAMITA_OK;
}

static llamita_status size_tensor(gguf_file *file, gguf_tensor *t) {
    int64_t block_elements;
    size_t block_bytes;
    const char *name;
    if (!tensor_type_blocks((tensor_type)t->type, &block_elements, &block_bytes, &name)) {
        const char *unsupported = unsupported_type(t->type);
        return unsupported ? reader_error(&file->from,
                                          "tensor %.*s: type %s is not supported; convert the model to F32, F16, BF16, "
                                          "Q8_0, Q4_0, Q4_K, Q5_K or Q6_K (llama-quantize --allow-requantize)",
                                          SHOWN(t->name), unsupported)
                           : reader_error(&file->from,
                                          "tensor %.*s: expected the number of a tensor type, found %" PRIu32
                                          "; the file is damaged or newer than this engine",
                                          SHOWN(t->name), t->type);
    }
    if (t->shape[0] % block_elements != 0) {
        return reader_error(&file->from,
                            "tensor %.*s: expected a row length that is a multiple of %d for type %s, found %" PRId64
                            "; the file is damaged",
                            SHOWN(t->name), (int)block_elements, name, t->shape[0]);
    }
    t->num_bytes = saturating_multiply((uint64_t)(t->shape[0] / block_elements), block_bytes);
    for (int i = 1; i < GGUF_MAX_DIMENSIONS; i++)
        t->num_bytes = saturating_multiply(t->num_bytes, (uint64_t)t->shape[i]);
    return LLAMITA_OK;
}

static llamita_status parse_tensor(gguf_file *file, gguf_tensor *t, uint64_t index, uint64_t count) {
    reader *from = &file->from;
    uint32_t num_dimensions;
    if (!take_string(from, &t->name)) return end_error(file, "tensor", index, count);
    if (t->name.num_bytes == 0 || t->name.num_bytes > MAX_TENSOR_NAME_BYTES) {
        return reader_error(from,
                            "tensor %" PRIu64 " of %" PRIu64 ": expected a name of 1 to %d bytes, found %zu; the file "
                            "is damaged",
                            index + 1, count, MAX_TENSOR_NAME_BYTES, t->name.num_bytes);
    }
    if (!reader_u32(from, &num_dimensions)) return end_error(file, "tensor", index, count);
    if (num_dimensions < 1 || num_dimensions > GGUF_MAX_DIMENSIONS) {
        return reader_error(from, "tensor %.*s: expected 1 to %d dimensions, found %" PRIu32 "; the file is damaged",
                            SHOWN(t->name), GGUF_MAX_DIMENSIONS, num_dimensions);
    }
    t->num_dimensions = (int)num_dimensions;
    for (int i = 0; i < GGUF_MAX_DIMENSIONS; i++) {
        uint64_t size = 1;
        if (i < t->num_dimensions && !reader_u64(from, &size)) return end_error(file, "tensor", index, count);
        if (size == 0 || size > INT64_MAX) {
            return reader_error(from,
                                "tensor %.*s: expected dimensions of at least 1, found %" PRId64 "; the file is "
                                "damaged",
                                SHOWN(t->name), (int64_t)size);
        }
        t->shape[i] = (int64_t)size;
    }
    if (!reader_u32(from, &t->type) || !reader_u64(from, &t->offset)) return end_error(file, "tensor", index, count);
    return size_tensor(file, t);
}

/* Where the data section starts, and the alignment of its tensors. */
static llamita_status find_data(gguf_file *file, uint64_t *alignment, uint64_t *data_start) {
    const gguf_entry *entry = gguf_find(file, "general.alignment");
    *alignment = DEFAULT_ALIGNMENT;
    if (entry) {
        if (entry->type != GGUF_U32) {
            return reader_error(&file->from, "key general.alignment: expected type u32, found %s; the file is damaged",
                                TYPE_NAMES[entry->type]);
        }
        *alignment = read_u32(entry->data);
    }
    if (*alignment < MIN_ALIGNMENT || (*alignment & (*alignment - 1)) != 0) {
        return reader_error(&file->from,
                            "key general.alignment: expected a power of two of at least %d, found %" PRIu64
                            "; the file is damaged",
                            MIN_ALIGNMENT, *alignment);
    }
    *data_start = (saturating_add(file->from.position, *alignment - 1)) & ~(*alignment - 1);
    return LLAMITA_OK;
}

/* Sets the data of each tensor; checks that they are contiguous. Call before sorting. */
static llamita_status place_tensors(gguf_file *file) {
    uint64_t alignment = 0, data_start = 0, expected_offset = 0;
    llamita_status status = find_data(file, &alignment, &data_start);
    for (size_t i = 0; !status && i < file->num_tensors; i++) {
        gguf_tensor *t = &file->tensors[i];
        if (t->offset != expected_offset) {
            return reader_error(&file->from,
                                "tensor %.*s: expected offset %" PRIu64 ", found %" PRIu64 "; the file is "
                                "damaged",
                                SHOWN(t->name), expected_offset, t->offset);
        }
        uint64_t start = saturating_add(data_start, t->offset);
        const uint64_t end = saturating_add(start, t->num_bytes);
        if (end > file->file_bytes) {
            return reader_error(&file->from,
                                "tensor %.*s: expected %" PRIu64 " bytes at byte %" PRIu64 ", found a "
                                "file of %zu bytes; the file is incomplete or damaged",
                                SHOWN(t->name), t->num_bytes, start, file->file_bytes);
        }
        t->data = file->from.bytes + start;
        expected_offset = saturating_add(t->offset, saturating_add(t->num_bytes, alignment - 1) & ~(alignment - 1));
    }
    return status;
}

llamita_status gguf_sort_tensors(gguf_file *file) {
    qsort(file->tensors, file->num_tensors, sizeof *file->tensors, compare_tensors);
    for (size_t i = 1; i < file->num_tensors; i++) {
        if (compare_tensors(&file->tensors[i - 1], &file->tensors[i]) == 0) {
            return reader_error(&file->from, "tensor %.*s occurs twice; the file is damaged",
                                SHOWN(file->tensors[i].name));
        }
    }
    return LLAMITA_OK;
}

static llamita_status parse_tensors(gguf_file *file, uint64_t count) {
    enum { MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8 };
    if (count > (file->from.num_bytes - file->from.position) / MIN_TENSOR_BYTES)
        return end_error(file, "tensor", (file->from.num_bytes - file->from.position) / MIN_TENSOR_BYTES, count);
    file->tensors = calloc((size_t)count + 1, sizeof *file->tensors);
    if (!file->tensors) return reader_memory_error(&file->from, (count + 1) * sizeof *file->tensors);
    file->num_tensors = (size_t)count;
    for (uint64_t i = 0; i < count; i++) {
        llamita_status status = parse_tensor(file, &file->tensors[i], i, count);
        if (status) return status;
    }
    llamita_status status = place_tensors(file);
    return status ? status : gguf_sort_tensors(file);
}

/* ---------------------------------------------------------------- architectures */

static const gguf_architecture ARCHITECTURES[] = {
    {.name = "llama", .model = "Llama"},
    {.name = "qwen2", .model = "Qwen2 model", .attention_bias = true, .two_halves = true},
    {.name = "qwen3", .model = "Qwen3 model", .use_qk_norm = true, .two_halves = true},
    {.name = "smollm3", .model = "SmolLM3", .no_rope_interval = 4},
};

static const gguf_architecture *find_architecture(const gguf_file *file) {
    const gguf_entry *entry = gguf_find(file, "general.architecture");
    for (size_t i = 0; entry && entry->type == GGUF_STRING && i < sizeof ARCHITECTURES / sizeof ARCHITECTURES[0]; i++)
        if (slice_is((byte_slice){(const char *)entry->data, (size_t)entry->count}, ARCHITECTURES[i].name))
            return &ARCHITECTURES[i];
    return &ARCHITECTURES[0];
}

/* ---------------------------------------------------------------- the file */

llamita_status gguf_parse(gguf_file *file, const reader *from) {
    uint64_t num_tensors, num_entries;
    *file = (gguf_file){.from = *from, .file_bytes = from->num_bytes, .architecture = &ARCHITECTURES[0]};
    if (file->from.num_bytes > MAX_HEADER_BYTES) file->from.num_bytes = MAX_HEADER_BYTES;
    llamita_status status = parse_header(file, &num_tensors, &num_entries);
    status = status ? status : parse_entries(file, num_entries);
    if (!status) file->architecture = find_architecture(file);
    return status ? status : parse_tensors(file, num_tensors);
}

void gguf_free(gguf_file *file) {
    free(file->entries);
    free(file->tensors);
    file->entries = NULL;
    file->tensors = NULL;
}

/* ---------------------------------------------------------------- lookup */

const gguf_entry *gguf_find(const gguf_file *file, const char *key) {
    gguf_entry wanted = {.key = {key, strlen(key)}};
    return bsearch(&wanted, file->entries, file->num_entries, sizeof wanted, compare_entries);
}

void gguf_print_shape(char text[GGUF_SHAPE_BYTES], const int64_t *shape, int num_dimensions) {
    size_t length = 0;
    for (int i = 0; i < num_dimensions; i++)
        length += (size_t)snprintf(text + length, GGUF_SHAPE_BYTES - length, "%s%" PRId64, i ? ", " : "[", shape[i]);
    snprintf(text + length, GGUF_SHAPE_BYTES - length, "]");
}

gguf_tensor *gguf_find_tensor(const gguf_file *file, const char *name) {
    gguf_tensor wanted = {.name = {name, strlen(name)}};
    return bsearch(&wanted, file->tensors, file->num_tensors, sizeof wanted, compare_tensors);
}

/* The entry of the key, or NULL; *status is an error if it is missing and found is NULL. */
static const gguf_entry *lookup(const gguf_file *file, const char *key, bool *found, llamita_status *status) {
    const gguf_entry *entry = gguf_find(file, key);
    *status = LLAMITA_OK;
    if (found) *found = entry;
    else if (!entry)
        *status = reader_error(&file->from, "key %s is missing; the file is damaged or not a %s", key,
                               file->architecture->model);
    return entry;
}

static llamita_status type_error(const gguf_file *file, const char *key, const char *expected,
                                 const gguf_entry *entry) {
    bool array = entry->type == GGUF_ARRAY;
    return reader_error(&file->from, "key %s: expected %s, found %s%s; the file is damaged or not supported", key,
                        expected, array ? "array of " : "", TYPE_NAMES[array ? entry->element_type : entry->type]);
}

/* An unsigned value above INT64_MAX becomes INT64_MAX, which no caller accepts. */
static bool entry_integer(const gguf_entry *entry, int64_t *value) {
    const unsigned char *data = entry->data;
    switch (entry->type) {
    case GGUF_U8: *value = data[0]; return true;
    case GGUF_I8: *value = (int8_t)data[0]; return true;
    case GGUF_U16: *value = data[0] | data[1] << 8; return true;
    case GGUF_I16: *value = (int16_t)(data[0] | data[1] << 8); return true;
    case GGUF_U32: *value = read_u32(data); return true;
    case GGUF_I32: *value = (int32_t)read_u32(data); return true;
    case GGUF_U64: *value = read_u64(data) > INT64_MAX ? INT64_MAX : (int64_t)read_u64(data); return true;
    case GGUF_I64: *value = (int64_t)read_u64(data); return true;
    default: return false;
    }
}

static llamita_status check_range(const gguf_file *file, const char *key, int64_t low, int64_t high, int64_t number) {
    if (number >= low && number <= high) return LLAMITA_OK;
    return reader_error(&file->from,
                        "key %s: expected %" PRId64 " to %" PRId64 ", found %" PRId64 "; the file is damaged", key, low,
                        high, number);
}

llamita_status gguf_integer(const gguf_file *file, const char *key, int64_t low, int64_t high, int64_t *value,
                            bool *found) {
    llamita_status status;
    const gguf_entry *entry = lookup(file, key, found, &status);
    int64_t number;
    if (!entry) return status;
    if (!entry_integer(entry, &number)) return type_error(file, key, "a whole number", entry);
    status = check_range(file, key, low, high, number);
    if (!status) *value = number;
    return status;
}

llamita_status gguf_layer_integer(const gguf_file *file, const char *key, int64_t low, int64_t high, int64_t *value,
                                  bool *found) {
    const gguf_entry *entry = gguf_find(file, key);
    if (!entry || entry->type != GGUF_ARRAY) return gguf_integer(file, key, low, high, value, found);
    if (found) *found = true;
    gguf_entry element = {.type = entry->element_type, .data = entry->data};
    int64_t first = 0, number;
    if (!entry->count)
        return reader_error(&file->from, "key %s: expected a number per layer, found an empty array", key);
    for (uint64_t i = 0; i < entry->count; i++) {
        if (!entry_integer(&element, &number)) return type_error(file, key, "whole numbers", entry);
        if (i == 0) first = number;
        if (number != first) {
            return reader_error(&file->from,
                                "key %s: expected the same number for every layer, found %" PRId64 " and %" PRId64
                                ", which is not supported",
                                key, first, number);
        }
        element.data += TYPE_BYTES[element.type];
    }
    llamita_status status = check_range(file, key, low, high, first);
    if (!status) *value = first;
    return status;
}

llamita_status gguf_number(const gguf_file *file, const char *key, double *value, bool *found) {
    llamita_status status;
    const gguf_entry *entry = lookup(file, key, found, &status);
    int64_t number;
    if (!entry) return status;
    if (entry->type == GGUF_F32) *value = (double)read_f32(entry->data);
    else if (entry->type == GGUF_F64) *value = read_f64(entry->data);
    else if (entry->type == GGUF_BOOL) *value = entry->data[0];
    else if (entry_integer(entry, &number)) *value = (double)number;
    else return type_error(file, key, "a number", entry);
    return LLAMITA_OK;
}

llamita_status gguf_real(const gguf_file *file, const char *key, double *value, bool *found) {
    llamita_status status;
    const gguf_entry *entry = lookup(file, key, found, &status);
    if (!entry) return status;
    if (entry->type != GGUF_F32 && entry->type != GGUF_F64) return type_error(file, key, "f32", entry);
    double number = entry->type == GGUF_F32 ? (double)read_f32(entry->data) : read_f64(entry->data);
    if (!isfinite(number)) {
        return reader_error(&file->from, "key %s: expected a finite number, found %f; the file is damaged", key,
                            number);
    }
    *value = number;
    return LLAMITA_OK;
}

llamita_status gguf_bool(const gguf_file *file, const char *key, bool *value, bool *found) {
    llamita_status status;
    const gguf_entry *entry = lookup(file, key, found, &status);
    if (!entry) return status;
    if (entry->type != GGUF_BOOL) return type_error(file, key, "bool", entry);
    *value = entry->data[0] == 1;
    return LLAMITA_OK;
}

llamita_status gguf_string(const gguf_file *file, const char *key, byte_slice *value, bool *found) {
    llamita_status status;
    const gguf_entry *entry = lookup(file, key, found, &status);
    if (!entry) return status;
    if (entry->type != GGUF_STRING) return type_error(file, key, "string", entry);
    *value = (byte_slice){(const char *)entry->data, (size_t)entry->count};
    return LLAMITA_OK;
}

llamita_status gguf_copy_text(const gguf_file *file, const char *key, size_t max_bytes, char **copy) {
    byte_slice text = {0};
    bool found;
    llamita_status status = gguf_string(file, key, &text, &found);
    if (status || !found) return status;
    if (text.num_bytes > max_bytes || memchr(text.bytes, '\0', text.num_bytes)) {
        return reader_error(&file->from,
                            "key %s: expected at most %zu bytes of text without zero bytes, found %zu; the file is "
                            "damaged",
                            key, max_bytes, text.num_bytes);
    }
    char *copied = calloc(text.num_bytes + 1, 1);
    if (!copied) return reader_memory_error(&file->from, text.num_bytes + 1);
    if (text.num_bytes > 0) memcpy(copied, text.bytes, text.num_bytes);
    *copy = copied;
    return LLAMITA_OK;
}

llamita_status gguf_array(const gguf_file *file, const char *key, gguf_type element_type, const gguf_entry **array) {
    llamita_status status;
    const gguf_entry *entry = lookup(file, key, NULL, &status);
    if (!entry) return status;
    if (entry->type != GGUF_ARRAY || entry->element_type != element_type) {
        char expected[32] = "array of ";
        return type_error(file, key, strcat(expected, TYPE_NAMES[element_type]), entry);
    }
    *array = entry;
    return LLAMITA_OK;
}

llamita_status gguf_strings(const gguf_file *file, const gguf_entry *array, byte_slice **strings) {
    byte_slice *slices = malloc(((size_t)array->count + 1) * sizeof *slices);
    if (!slices) return reader_memory_error(&file->from, (array->count + 1) * sizeof *slices);
    const unsigned char *at = array->data; /* parse_array checked all lengths */
    for (uint64_t i = 0; i < array->count; i++) {
        slices[i] = (byte_slice){(const char *)at + 8, (size_t)read_u64(at)};
        at += 8 + slices[i].num_bytes;
    }
    *strings = slices;
    return LLAMITA_OK;
}
