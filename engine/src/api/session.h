/* session.h: what generating a text needs of a session beyond llamita.h. */
#ifndef LLAMITA_API_SESSION_H
#define LLAMITA_API_SESSION_H

#include "llamita.h"

const llamita_model *session_model(const llamita_session *session);

/* Checks the ids of a text [num_ids], and rewinds sequence 0 to the longest beginning that it shares
 * with them, short of the last one. A refused text changes nothing. */
llamita_status session_begin_text(llamita_session *session, const int32_t *ids, size_t num_ids, llamita_error *error);

/* How many tokens of a prompt stay when the context is full; -1: the text ends there. */
int32_t session_kept_tokens(const llamita_session *session, int32_t num_prompt_tokens, bool begins_with_bos);

#endif
