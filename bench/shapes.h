/* llama-server's JSON, with the same keys in the same order. */
#include "memory.h"
#include "text.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PROMPT_TOKENS = 30 };

#define MODEL "SmolLM2-135M-Instruct.Q4_1.gguf"
#define BUILD "b11434-stub"
#define TIMINGS                                                                                              \
  "\"timings\":{\"cache_n\":0,\"prompt_n\":30,\"prompt_ms\":12.5,\"prompt_per_token_ms\":0.42,"              \
  "\"prompt_per_second\":2400.0,\"predicted_n\":%d,\"predicted_ms\":500.25,\"predicted_per_token_ms\":5.0," \
  "\"predicted_per_second\":200.0}"
#define USAGE                                                                                               \
  "\"usage\":{\"completion_tokens\":%d,\"prompt_tokens\":30,\"total_tokens\":%d,\"prompt_tokens_details\":" \
  "{\"cached_tokens\":0}}"

/* The events of a stream in their order; TOKENS stands for as many as were asked for. */
enum step { ROLE, PROGRESS_0, PROGRESS_1, TOKENS, FINISH, USED, DONE, LAST_CHUNK, ENDED };

/* What a request asks for, and how far its stream has come. */
struct answer {
  bool chat, progress, usage;
  int tokens, told;
  enum step step;
  char id[48];
};

/* -- streams -------------------------------------------------------------------------------------------------------- */

static inline int chunk_of(char *at, const struct answer *a, const char *choices, const char *tail) {
  long created = (long)time(NULL);
  if (a->chat)
    return sprintf(at, "data: {\"choices\":[%s],\"created\":%ld,\"id\":\"%s\",\"model\":\"" MODEL "\",\"system_fingerprint\":\"" BUILD
                       "\",\"object\":\"chat.completion.chunk\"%s}\n\n", choices, created, a->id, tail);
  return sprintf(at, "data: {\"choices\":[%s],\"created\":%ld,\"model\":\"" MODEL "\",\"system_fingerprint\":\"" BUILD
                     "\",\"object\":\"text_completion\"%s,\"id\":\"%s\"}\n\n", choices, created, tail, a->id);
}

static inline const char *choice_of(const struct answer *a, enum step step, char *at) {
  if (step == TOKENS && a->chat)
    sprintf(at, "{\"finish_reason\":null,\"index\":0,\"delta\":{\"content\":\" word%d\"}}", a->told % 10);
  else if (step == TOKENS) sprintf(at, "{\"text\":\" word%d\",\"index\":0,\"logprobs\":null,\"finish_reason\":null}", a->told % 10);
  else if (step == FINISH && a->chat) strcpy(at, "{\"finish_reason\":\"length\",\"index\":0,\"delta\":{}}");
  else if (step == FINISH) strcpy(at, "{\"text\":\"\",\"index\":0,\"logprobs\":null,\"finish_reason\":\"length\"}");
  else strcpy(at, "{\"finish_reason\":null,\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}");
  return at;
}

/* Write the event of the present step; its length. The last chunk of HTTP is empty. */
static inline int event_of(const struct answer *a, char *at) {
  char choice[256], tail[512] = "";
  enum step step = a->step;
  /* llama-server: usage has a chunk of its own in a chat, and is on the finish chunk of a completion. */
  bool with_usage = step == USED || (step == FINISH && !a->chat && a->usage);
  bool with_timings = step == USED || (step == FINISH && !(a->chat && a->usage));
  if (step == LAST_CHUNK) return 0;
  if (step == DONE) return sprintf(at, "data: [DONE]\n\n");
  if (with_usage) sprintf(tail, "," USAGE, a->tokens, a->tokens + PROMPT_TOKENS);
  if (with_timings) sprintf(tail + strlen(tail), "," TIMINGS, a->tokens);
  if (step == PROGRESS_0 || step == PROGRESS_1)
    sprintf(tail, ",\"prompt_progress\":{\"total\":30,\"cache\":0,\"processed\":%d,\"time_ms\":12}", step == PROGRESS_0 ? 0 : PROMPT_TOKENS);
  return chunk_of(at, a, step == USED ? "" : choice_of(a, step, choice), tail);
}

/* To the next step: the next token, or over the events that nobody asked for. */
static inline void go_on(struct answer *a) {
  if (a->step == TOKENS && ++a->told < a->tokens) return;
  a->step++;
  if (a->step == PROGRESS_0 && !a->progress) a->step = TOKENS;
  if (a->step == USED && !(a->chat && a->usage)) a->step = DONE;
}

/* -- whole replies -------------------------------------------------------------------------------------------------- */

static inline int number_of_strings(const char *at) {
  int quotes = 0;
  if (!at || *at != '[') return 1;
  for (; *at && *at != ']'; at++) quotes += *at == '"';
  return quotes / 2;
}

static inline void embeddings_of(const char *body, const char *vector, struct bytes *made) {
  char text[128];
  const char *model = value_of(body, "\"model\"");
  int inputs = number_of_strings(value_of(body, "\"input\"")), length = model ? (int)strcspn(model + 1, "\"") : 0;
  made->size = 0;
  append(made, text, (size_t)sprintf(text, "{\"model\":\"%.*s\",\"object\":\"list\",\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d},\"data\":[",
                                      length > 40 ? 40 : length, model ? model + 1 : "", 4 * inputs, 4 * inputs));
  for (int i = 0; i < inputs; i++) {
    append(made, i ? ",{\"embedding\":[" : "{\"embedding\":[", i ? 15 : 14);
    append(made, vector, strlen(vector));
    append(made, text, (size_t)sprintf(text, "],\"index\":%d,\"object\":\"embedding\"}", i));
  }
  append(made, "]}", 2);
}

static inline void whole_of(const struct answer *a, struct bytes *made) {
  char text[1024];
  made->size = 0;
  append(made, text, (size_t)sprintf(text, a->chat ? "{\"choices\":[{\"finish_reason\":\"length\",\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"" : "{\"choices\":[{\"text\":\""));
  for (int i = 0; i < a->tokens; i++) append(made, " word", 5), append(made, &"0123456789"[i % 10], 1);
  append(made, text, (size_t)sprintf(text, a->chat ? "\"}}]" : "\",\"index\":0,\"logprobs\":null,\"finish_reason\":\"length\"}]"));
  append(made, text, (size_t)sprintf(text, ",\"created\":%ld,\"model\":\"" MODEL "\",\"system_fingerprint\":\"" BUILD "\",\"object\":\"%s\"," USAGE ",\"id\":\"%s\"," TIMINGS "}",
      (long)time(NULL), a->chat ? "chat.completion" : "text_completion", a->tokens, a->tokens + PROMPT_TOKENS, a->id, a->tokens));
}

/* The JSON that a path answers with; its length, or 0 when there is no such path. */
static inline int described(const char *path, int slots, char *text) {
  int n = 0;
  if (!strncmp(path, "/health", 7) || !strncmp(path, "/v1/health", 10)) n = sprintf(text, "{\"status\":\"ok\"}");
  else if (!strncmp(path, "/props", 6))
    n = sprintf(text, "{\"default_generation_settings\":{\"n_ctx\":8192},\"total_slots\":%d,\"model_alias\":\"" MODEL "\",\"model_path\":\"" MODEL "\",\"modalities\":{\"vision\":false,\"audio\":false},\"endpoint_slots\":true,\"endpoint_props\":false,\"endpoint_metrics\":true,\"chat_template_caps\":{\"supports_string_content\":true,\"supports_system_role\":true,\"supports_tools\":true,\"supports_tool_calls\":true,\"supports_parallel_tool_calls\":true},\"build_info\":\"" BUILD "\"}", slots);
  else if (!strncmp(path, "/v1/models", 10) || !strncmp(path, "/models", 7))
    n = sprintf(text, "{\"models\":[],\"object\":\"list\",\"data\":[{\"id\":\"" MODEL "\",\"object\":\"model\",\"created\":%ld,\"owned_by\":\"llamacpp\",\"meta\":{\"n_ctx_train\":8192}}]}", (long)time(NULL));
  else if (!strncmp(path, "/slots", 6)) n = sprintf(text, "[{\"id\":0,\"n_ctx\":8192,\"is_processing\":false}]");
  else if (!strncmp(path, "/metrics", 8)) n = sprintf(text, "llamacpp:requests_processing 0\n");
  return n;
}
