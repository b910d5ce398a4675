/* adapter.c: the adapter API of llamita.h. */
#include "formats/file.h"
#include "formats/formats.h"

llamita_status llamita_adapter_open(const llamita_model *model, const char *path, llamita_adapter **adapter,
                                    llamita_error *error) {
    platform_file file;
    llamita_status status = file_open("adapter", path, true, &file, error);
    if (!status) {
        status = gguf_read_lora(model, file.bytes, file.num_bytes, path, adapter, error);
        platform_file_close(&file);
    }
    return status;
}

void llamita_adapter_close(llamita_adapter *adapter) { lora_release(adapter); }

void llamita_adapter_get_info(const llamita_adapter *adapter, llamita_adapter_info *info) { *info = adapter->info; }
