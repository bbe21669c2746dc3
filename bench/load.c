/* Asks a gateway over and over, reads every reply to its end, and checks it.
 *
 *     load --port N --body JSON [--path P] [--connections N] [--seconds S | --requests N] [--rate N] [--ramp-ms N]
 *          [--tokens N] [--vectors N] [--key K]
 *
 * Closed loop: each connection asks again as soon as it has its reply. With --rate the requests are due at equal
 * distances, whatever became of those before, and their latency counts from when they were due: a gateway that stalls
 * is not spared the requests that came meanwhile. Connections are kept as long as the server keeps them.
 *
 * A reply is right when its status is 200 and it holds --tokens tokens (counted in a stream, which must end with
 * [DONE]; read from the usage of a whole reply) or --vectors embeddings. Everything else counts as an error. Prints one
 * line of JSON; times are milliseconds. The first token of a stream is its first event with content.
 */
#define _GNU_SOURCE
#include "memory.h"
#include "text.h"
#include "times.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 10000, PIECE = 262144 };
/* How long everybody may be silent. */
static const double PATIENCE_S = 60;

enum part { IDLE, HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER };

struct connection {
  int fd;
  enum part part;
  bool reused, closes, until_close, is_stream, done, first, failed;
  int tokens;
  size_t left, sent;
  uint64_t asked_ns;
  /* The head, the line of a chunk's size, or the line of an event, as far as it has come; and a whole reply's body. */
  struct bytes line, body;
};

static struct { int port, connections, tokens, vectors, ramp_ms; double seconds, requests, rate; const char *path, *body, *key; }
    flag = {.connections = 1, .tokens = -1, .seconds = 2, .path = "/v1/chat/completions", .body = "{}", .key = "local"};

static struct connection connections[MAX_CONNECTIONS];
static int idle[MAX_CONNECTIONS], idle_count, epoll;
static struct times latency, first_token;
static struct bytes request;
static uint64_t start_ns, stop_ns, last_ns, heard_ns;
static unsigned long asked, answered, errors, resent, tokens, bytes_read;
static char why[200];

/* -- asking ------------------------------------------------------------------------------------------------------- */

static void connect_to_server(struct connection *c) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)flag.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  connect(c->fd, (struct sockaddr *)&address, sizeof address);
  struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
  epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e);
}

static void disconnect(struct connection *c) {
  if (c->fd >= 0) close(c->fd);
  c->fd = -1;
}

static void send_rest(struct connection *c) {
  while (c->sent < request.size) {
    ssize_t n = send(c->fd, request.at + c->sent, request.size - c->sent, MSG_NOSIGNAL);
    if (n < 0) return; /* EPOLLOUT comes when there is room; what is broken shows when it is read. */
    c->sent += (size_t)n;
  }
}

static void ask(struct connection *c, uint64_t due_ns) {
  c->part = HEAD;
  c->reused = c->fd >= 0;
  c->closes = c->until_close = c->is_stream = c->done = c->first = c->failed = false;
  c->tokens = 0;
  c->sent = c->line.size = c->body.size = 0;
  if (c->body.at) *c->body.at = 0;
  c->asked_ns = due_ns;
  if (c->fd < 0) connect_to_server(c);
  send_rest(c);
}

static bool may_ask(void) {
  if (flag.requests > 0) return (double)asked < flag.requests;
  return now_ns() < stop_ns;
}

static uint64_t next_due_ns(void) { return start_ns + (uint64_t)((double)asked / flag.rate * 1e9); }

/* Ask again: at once in a closed loop, else when the next request is due. */
static void go_on(struct connection *c) {
  c->part = IDLE;
  if (flag.rate <= 0 && may_ask()) asked++, ask(c, now_ns());
  else idle[idle_count++] = (int)(c - connections);
}

static void ask_what_is_due(void) {
  while (flag.rate > 0 && idle_count && may_ask() && next_due_ns() <= now_ns()) {
    uint64_t due_ns = next_due_ns();
    asked++;
    ask(&connections[idle[--idle_count]], due_ns);
  }
}

/* -- reading ------------------------------------------------------------------------------------------------------ */

static void complain(const char *what, const struct connection *c) {
  if (!*why) snprintf(why, sizeof why, "%s; tokens %d; %.120s", what, c->tokens, c->body.size ? c->body.at : "");
  for (char *at = why; *at; at++)
    if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ') *at = '\'';
}

/* The reply has ended, well or not. */
static void finish(struct connection *c) {
  const char *wrong = NULL;
  if (!c->is_stream && c->body.size) c->tokens = number_of(c->body.at, "\"completion_tokens\"", -1);
  if (c->failed) wrong = "status is not 200, or the reply was cut";
  else if (c->is_stream && !c->done) wrong = "a stream without [DONE]";
  else if (flag.vectors && count_of(c->body.at, "\"embedding\":[") + count_of(c->body.at, "\"embedding\": [") != flag.vectors)
    wrong = "embeddings are missing";
  else if (!flag.vectors && flag.tokens >= 0 && c->tokens != flag.tokens) wrong = "not the expected number of tokens";
  if (wrong) errors++, complain(wrong, c);
  else {
    answered++;
    note(&latency, c->asked_ns);
    if (c->tokens > 0) tokens += (unsigned long)c->tokens;
  }
  last_ns = now_ns();
  if (c->closes || c->failed) disconnect(c);
  go_on(c);
}

/* A line of a stream. */
static void take_line(struct connection *c, const char *line, size_t size) {
  if (size < 6 || memcmp(line, "data:", 5)) return;
  if (memmem(line, size < 20 ? size : 20, "[DONE]", 6)) c->done = true;
  const char *at = memmem(line, size, "\"content\":", 10);
  if (!at) return;
  for (at += 10; *at == ' '; at++) {}
  if (at[0] != '"' || at[1] == '"') return;
  c->tokens++;
  if (!c->first) c->first = true, note(&first_token, c->asked_ns);
}

static void take_body(struct connection *c, const char *at, size_t size) {
  if (!c->is_stream) {
    append(&c->body, at, size);
    return;
  }
  for (const char *end; size && (end = memchr(at, '\n', size)); size -= (size_t)(end + 1 - at), at = end + 1) {
    if (!c->line.size) take_line(c, at, (size_t)(end - at));
    else {
      append(&c->line, at, (size_t)(end - at));
      take_line(c, c->line.at, c->line.size);
      c->line.size = 0;
    }
  }
  if (size) append(&c->line, at, size);
}

static void take_head(struct connection *c) {
  const char *head = c->line.at, *length = strcasestr(head, "\ncontent-length:");
  c->failed = strncmp(head + 8, " 200", 4) != 0;
  c->is_stream = strcasestr(head, "text/event-stream") != NULL && !c->failed;
  c->closes = strcasestr(head, "\nconnection: close") != NULL;
  c->line.size = 0;
  if (strcasestr(head, "\ntransfer-encoding: chunked")) c->part = CHUNK_SIZE;
  else {
    c->part = BODY;
    c->until_close = !length;
    c->left = length ? strtoul(length + 16, NULL, 10) : SIZE_MAX;
  }
}

/* Append to `line` up to and with `end`; true when it is complete. What was taken is left out of `at` and `size`. */
static bool take_until(struct bytes *line, const char *end, const char **at, size_t *size) {
  size_t before = line->size, length = strlen(end), from = before > length ? before - length : 0;
  append(line, *at, *size);
  char *found = memmem(line->at + from, line->size - from, end, length);
  size_t taken = found ? (size_t)(found - line->at) + length - before : *size;
  line->at[line->size = before + taken] = 0;
  *at += taken;
  *size -= taken;
  return found != NULL;
}

/* Lines of chunks are kept apart from those of events, which may be cut anywhere. */
static struct bytes chunk_lines[MAX_CONNECTIONS];

static void take(struct connection *c, const char *at, size_t size) {
  struct bytes *line = &chunk_lines[c - connections];
  while (size && c->part != IDLE) {
    size_t n = size < c->left ? size : c->left;
    switch (c->part) {
    case HEAD:
      if (!take_until(&c->line, "\r\n\r\n", &at, &size)) return;
      take_head(c);
      line->size = 0;
      if (c->part == BODY && !c->left) finish(c);
      break;
    case BODY:
    case CHUNK:
      take_body(c, at, n);
      at += n, size -= n, c->left -= n;
      if (!c->left && c->part == BODY) {
        finish(c);
        return;
      }
      if (!c->left) c->part = CHUNK_END;
      break;
    case CHUNK_END:
    case CHUNK_SIZE:
    case TRAILER:
      if (!take_until(line, "\n", &at, &size)) return;
      if (c->part == CHUNK_SIZE) {
        c->left = strtoul(line->at, NULL, 16);
        c->part = c->left ? CHUNK : TRAILER;
      } else if (c->part == CHUNK_END) c->part = CHUNK_SIZE;
      else if (line->size <= 2) {
        finish(c);
        return;
      }
      line->size = 0;
      break;
    default: return;
    }
  }
}

static void serve(struct connection *c, uint32_t events) {
  static char piece[PIECE];
  int fd = c->fd;
  if (fd < 0) return;
  if (c->part != IDLE && c->sent < request.size) send_rest(c);
  for (;;) {
    ssize_t n = read(c->fd, piece, sizeof piece);
    if (n < 0 && (errno == EAGAIN || errno == ENOTCONN)) return;
    if (n <= 0) {
      disconnect(c);
      if (c->part == IDLE) return;
      /* A server may close a connection just when it is used again: every client asks once more then. */
      if (c->part == HEAD && c->reused && !c->line.size) {
        resent++;
        ask(c, c->asked_ns);
        return;
      }
      c->failed = c->failed || !c->until_close || n < 0;
      finish(c);
      return;
    }
    bytes_read += (unsigned long)n;
    heard_ns = now_ns();
    take(c, piece, (size_t)n);
    /* After a short read there is no more, unless the server has closed: that is told only once. */
    if (c->fd != fd || (n < (ssize_t)sizeof piece && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))) return;
  }
}

/* -- the run ------------------------------------------------------------------------------------------------------ */

static void report(void) {
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  double cpu_s = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
  double seconds = (double)(last_ns - start_ns) / 1e9;
  printf("{\"requests\":%lu,\"errors\":%lu,\"resent\":%lu,\"why\":\"%s\",\"seconds\":%.4f,\"rate\":%.2f,\"p50\":%.4f,\"p99\":%.4f,"
         "\"ttft_p50\":%.4f,\"ttft_p99\":%.4f,\"tokens\":%lu,\"bytes\":%lu,\"cpu_s\":%.3f}\n",
         answered, errors, resent, why, seconds, (double)answered / seconds, quantile(&latency, .5), quantile(&latency, .99),
         quantile(&first_token, .5), quantile(&first_token, .99), tokens, bytes_read, cpu_s);
}

static void read_flags(int count, char **flags) {
  for (int i = 1; i + 1 < count; i += 2) {
    const char *name = flags[i], *value = flags[i + 1];
    if (!strcmp(name, "--port")) flag.port = atoi(value);
    else if (!strcmp(name, "--connections")) flag.connections = atoi(value);
    else if (!strcmp(name, "--tokens")) flag.tokens = atoi(value);
    else if (!strcmp(name, "--vectors")) flag.vectors = atoi(value);
    else if (!strcmp(name, "--ramp-ms")) flag.ramp_ms = atoi(value);
    else if (!strcmp(name, "--seconds")) flag.seconds = atof(value);
    else if (!strcmp(name, "--requests")) flag.requests = atof(value);
    else if (!strcmp(name, "--rate")) flag.rate = atof(value);
    else if (!strcmp(name, "--path")) flag.path = value;
    else if (!strcmp(name, "--body")) flag.body = value;
    else if (!strcmp(name, "--key")) flag.key = value;
    else exit((fprintf(stderr, "load: what is %s?\n", name), 2));
  }
  if (flag.connections > MAX_CONNECTIONS) exit((fprintf(stderr, "load: too many connections\n"), 2));
}

/* How long to wait for an event, in ns: until a request is due or a connection has to join. */
static int64_t patience(uint64_t until_ns) {
  uint64_t now = now_ns();
  if (flag.rate > 0 && idle_count && may_ask() && next_due_ns() < until_ns) until_ns = next_due_ns();
  return until_ns > now ? (int64_t)(until_ns - now) : 0;
}

int main(int count, char **flags) {
  static struct epoll_event ready[512];
  char head[1024];
  int joined = 0;
  read_flags(count, flags);
  prctl(PR_SET_TIMERSLACK, 1);
  append(&request, head, (size_t)snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nAccept: */*\r\nContent-Length: %zu\r\n\r\n", flag.path, flag.port, flag.key, strlen(flag.body)));
  append(&request, flag.body, strlen(flag.body));
  epoll = epoll_create1(0);
  start_ns = last_ns = heard_ns = now_ns();
  stop_ns = start_ns + (uint64_t)(flag.seconds * 1e9);
  for (;;) {
    uint64_t now = now_ns(), join_ns = now + 100000000u;
    for (; joined < flag.connections; joined++) {
      join_ns = start_ns + (uint64_t)flag.ramp_ms * 1000000u / (uint64_t)flag.connections * (uint64_t)joined;
      if (join_ns > now) break;
      connections[joined].fd = -1;
      go_on(&connections[joined]);
    }
    ask_what_is_due();
    if (joined == flag.connections && idle_count == joined && !may_ask()) break;
    if (now > heard_ns + (uint64_t)(PATIENCE_S * 1e9)) {
      errors += (unsigned long)(joined - idle_count);
      complain("silence before the end of a reply", &connections[0]);
      break;
    }
    int64_t wait = patience(join_ns > now ? join_ns : now + 100000000u);
    struct pollfd any = {.fd = epoll, .events = POLLIN};
    struct timespec until = {wait / 1000000000, wait % 1000000000};
    /* Due times need finer times than epoll's milliseconds. */
    if (flag.rate > 0 || joined < flag.connections) ppoll(&any, 1, &until, NULL);
    int n = epoll_wait(epoll, ready, 512, flag.rate > 0 || joined < flag.connections ? 0 : 100);
    for (int i = 0; i < n; i++) serve(ready[i].data.ptr, ready[i].events);
  }
  report();
}
