/* A stand-in for llama-server that costs almost nothing: one thread, one epoll.
 *
 *     stub [--port N] [--pace-ms N] [--prefill-ms N] [--slots N] [--dims N]
 *
 * It prints its port and serves until TERM. What it keeps of llama-server (build b11434): keys and their order in every
 * JSON; whole replies keep the connection (100 requests, 5 s idle); a stream is one chunk and one send per event, and
 * closes the connection after its end although its head says otherwise; `created` is the clock's.
 *
 * The request decides what comes back: "stream", "max_tokens", "return_progress", "include_usage", and the number of
 * strings in "input". A prompt that says "pace=20" or "prefill=500" (milliseconds) wins over the flags: so one
 * stub serves all rows of the benchmark, and a gateway needs only one upstream.
 */
#define _GNU_SOURCE
#include "shapes.h"
#include "times.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 65536, KEEP_REQUESTS = 100, IDLE_MS = 5000, EVENT_SIZE = 4096 };

#define KEPT "Keep-Alive: timeout=5, max=100\r\n"

static const char STREAM_HEAD[] = "HTTP/1.1 200 OK\r\nX-Accel-Buffering: no\r\nContent-Type: text/event-stream\r\n"
                                  "Transfer-Encoding: chunked\r\n" KEPT "Server: llama.cpp\r\n\r\n";

struct connection {
  int fd, requests;
  bool closing, waits_for_room, waits_for_time;
  struct bytes in, out;
  size_t sent;
  uint64_t used_ms;
  /* The stream that is being sent. */
  bool streams;
  int pace_ms;
  struct answer answer;
  uint64_t due_ns;
  struct connection *later;
};

/* Streams that wait for their next event. All events of one pace are the same time apart, so a queue for each
 * pace is in order by itself. */
struct queue {
  int pace_ms;
  struct connection *first, *last;
};

static int epoll, listener, pace_flag, prefill_flag, slots = 4096, dims = 384;
static struct connection *open_connections[MAX_FDS];
static struct queue queues[16];
static int queue_count;
static char *vector;
static unsigned long counter;

/* -- sending ------------------------------------------------------------------------------------------------------ */

static void drop(struct connection *c) {
  if (c->fd < 0) return;
  close(c->fd);
  open_connections[c->fd] = NULL;
  c->fd = -1;
  free(c->in.at);
  free(c->out.at);
  /* Its queue still knows it; whoever takes it out there frees it. */
  if (!c->waits_for_time) free(c);
}

static void watch(struct connection *c, bool room) {
  if (c->waits_for_room == room) return;
  struct epoll_event e = {.events = EPOLLIN | (room ? EPOLLOUT : 0), .data.fd = c->fd};
  epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
  c->waits_for_room = room;
}

/* Send what is there; false when some of it has to wait or the client has left (`closing`). */
static bool flush(struct connection *c) {
  while (c->sent < c->out.size) {
    ssize_t n = send(c->fd, c->out.at + c->sent, c->out.size - c->sent, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno != EAGAIN) c->closing = true, c->sent = c->out.size;
      else watch(c, true);
      return false;
    }
    c->sent += (size_t)n;
  }
  c->sent = c->out.size = 0;
  watch(c, false);
  return true;
}

static void reply(struct connection *c, const char *status, const char *type, const char *body, size_t size) {
  char head[256];
  c->closing = c->closing || ++c->requests >= KEEP_REQUESTS;
  int n = snprintf(head, sizeof head, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%sServer: llama.cpp\r\n\r\n",
                   status, type, size, c->closing ? "Connection: close\r\n" : KEPT);
  append(&c->out, head, (size_t)n);
  append(&c->out, body, size);
}

static void reply_json(struct connection *c, const char *body, size_t size) {
  reply(c, "200 OK", "application/json; charset=utf-8", body, size);
}

/* -- streams ------------------------------------------------------------------------------------------------------ */

/* Append the event of the present step as one HTTP chunk, and go on to the next step. */
static void append_event(struct connection *c) {
  char event[EVENT_SIZE], size[16];
  int n = event_of(&c->answer, event);
  append(&c->out, size, (size_t)sprintf(size, "%x\r\n", n));
  append(&c->out, event, (size_t)n);
  append(&c->out, "\r\n", 2);
  go_on(&c->answer);
}

/* Have the stream go on `ms` after the time it was due. */
static void postpone(struct connection *c, int ms) {
  struct queue *q = queues;
  while (q < queues + queue_count && q->pace_ms != ms) q++;
  if (q == queues + 16) exit((fprintf(stderr, "stub: too many different paces\n"), 1));
  if (q == queues + queue_count) *q = (struct queue){.pace_ms = ms}, queue_count++;
  c->due_ns += (uint64_t)ms * 1000000u;
  c->waits_for_time = true;
  c->later = NULL;
  if (q->first) q->last->later = c;
  else q->first = c;
  q->last = c;
}

/* Send the next events: all of them at full speed, those up to the next token when paced. */
static void advance(struct connection *c) {
  while (c->answer.step != ENDED && !c->closing) {
    enum step sent = c->answer.step;
    append_event(c);
    bool flushed = flush(c);
    if (c->pace_ms && sent == TOKENS && c->answer.step == TOKENS) {
      postpone(c, c->pace_ms);
      return;
    }
    if (!flushed) return;
  }
  c->closing = true;
}

static void begin_stream(struct connection *c, int prefill_ms) {
  c->streams = true;
  c->answer.told = 0;
  c->answer.step = c->answer.chat ? ROLE : c->answer.progress ? PROGRESS_0 : TOKENS;
  c->due_ns = now_ns();
  append(&c->out, STREAM_HEAD, sizeof STREAM_HEAD - 1);
  if (!prefill_ms) advance(c);
  else flush(c), postpone(c, prefill_ms);
}

/* Let go on what is due; the time until the next one is, in ns, or -1. */
static int64_t run_queues(void) {
  int64_t wait = -1;
  for (struct queue *q = queues; q < queues + queue_count; q++) {
    uint64_t now = now_ns();
    while (q->first && (q->first->fd < 0 || q->first->due_ns <= now)) {
      struct connection *c = q->first;
      q->first = c->later;
      c->waits_for_time = false;
      if (c->fd < 0) free(c);
      else if (advance(c), c->closing && c->sent == c->out.size) drop(c);
    }
    if (q->first && (wait < 0 || (int64_t)(q->first->due_ns - now) < wait)) wait = (int64_t)(q->first->due_ns - now);
  }
  return wait;
}

/* -- requests ----------------------------------------------------------------------------------------------------- */

static void answer_get(struct connection *c, const char *path) {
  static const char missing[] = "{\"error\":{\"message\":\"File Not Found\",\"type\":\"not_found_error\",\"code\":404}}";
  char text[EVENT_SIZE];
  int n = described(path, slots, text);
  if (n) {
    reply_json(c, text, (size_t)n);
    return;
  }
  c->closing = true;
  reply(c, "404 Not Found", "application/json; charset=utf-8", missing, sizeof missing - 1);
}

static void answer(struct connection *c, const char *line, const char *body) {
  static struct bytes made;
  if (!strncmp(line, "GET ", 4)) answer_get(c, line + 4);
  else if (!strncmp(line, "POST /v1/embeddings", 19)) {
    embeddings_of(body, vector, &made);
    reply_json(c, made.at, made.size);
  }
  else if (!strncmp(line, "POST /v1/chat/completions", 25) || !strncmp(line, "POST /v1/completions", 20)) {
    int prefill_ms = number_of(body, "prefill=", prefill_flag);
    sprintf(c->answer.id, "chatcmpl-%032lx", ++counter * 0x9E3779B97F4A7C15u);
    c->answer.chat = line[10] == 'h';
    c->answer.tokens = number_of(body, "\"max_tokens\"", number_of(body, "\"max_completion_tokens\"", 16));
    c->pace_ms = number_of(body, "pace=", pace_flag);
    c->answer.progress = is_true(body, "\"return_progress\"");
    c->answer.usage = is_true(body, "\"include_usage\"");
    if (is_true(body, "\"stream\"")) begin_stream(c, prefill_ms);
    else {
      whole_of(&c->answer, &made);
      reply_json(c, made.at, made.size);
    }
  } else answer_get(c, "/");
}

/* Answer the requests that are complete. */
static void take_requests(struct connection *c) {
  size_t taken = 0;
  while (!c->closing && !c->streams) {
    char *start = c->in.at + taken, *end = c->in.size > taken ? strstr(start, "\r\n\r\n") : NULL;
    if (!end) break;
    *end = 0;
    char *length = strcasestr(start, "\ncontent-length:");
    if (strcasestr(start, "\nconnection: close")) c->closing = true;
    size_t body = length ? strtoul(length + 16, NULL, 10) : 0, size = (size_t)(end - start) + 4 + body;
    *end = '\r';
    if (c->in.size - taken < size) {
      c->closing = false;
      break;
    }
    char after = start[size];
    start[size] = 0;
    bool closes = c->closing;
    c->closing = false;
    answer(c, start, end + 4);
    c->closing = c->closing || (closes && !c->streams);
    start[size] = after;
    taken += size;
  }
  memmove(c->in.at, c->in.at + taken, c->in.size - taken + (c->in.at ? 1 : 0));
  c->in.size -= taken;
}

/* -- the loop ----------------------------------------------------------------------------------------------------- */

static void accept_all(void) {
  int fd, one = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    struct connection *c = fd < MAX_FDS ? calloc(1, sizeof *c) : NULL;
    if (!c) {
      close(fd);
      continue;
    }
    c->fd = fd;
    c->used_ms = now_ns() / 1000000;
    open_connections[fd] = c;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
  }
}

static void serve(struct connection *c, uint32_t events, uint64_t ms) {
  static char piece[65536];
  c->used_ms = ms;
  if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
    ssize_t n = read(c->fd, piece, sizeof piece);
    if (n == 0 || (n < 0 && errno != EAGAIN)) {
      drop(c);
      return;
    }
    if (n > 0) append(&c->in, piece, (size_t)n);
    take_requests(c);
  }
  if (flush(c) && c->streams && !c->waits_for_time && !c->closing) advance(c);
  if (c->closing && c->sent == c->out.size) drop(c);
}

static void close_idle(uint64_t ms) {
  for (int fd = 0; fd < MAX_FDS; fd++) {
    struct connection *c = open_connections[fd];
    if (c && !c->streams && ms > c->used_ms + IDLE_MS) drop(c);
  }
}

static void listen_on(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  int one = 1;
  listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) exit((perror("stub"), 1));
  getsockname(listener, (struct sockaddr *)&address, &size);
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
}

static void read_flags(int count, char **flags, int *port) {
  struct { const char *name; int *into; } known[] = {
    {"--port", port}, {"--pace-ms", &pace_flag}, {"--prefill-ms", &prefill_flag}, {"--slots", &slots}, {"--dims", &dims}};
  for (int i = 1; i + 1 < count; i += 2)
    for (size_t k = 0; k < sizeof known / sizeof *known; k++)
      if (!strcmp(flags[i], known[k].name)) *known[k].into = atoi(flags[i + 1]);
}

int main(int count, char **flags) {
  struct epoll_event ready[256], e = {.events = EPOLLIN};
  struct bytes numbers = {0};
  char number[32];
  uint64_t swept_ms = 0;
  int port = 0;
  read_flags(count, flags, &port);
  for (int i = 0; i < dims; i++)
    append(&numbers, number, (size_t)sprintf(number, "%s%.17g", i ? "," : "", 0.0510310363 * ((i * 7919 % 2000) / 1000.0 - 1)));
  vector = numbers.at;
  prctl(PR_SET_TIMERSLACK, 1);
  epoll = epoll_create1(0);
  listen_on(port);
  e.data.fd = listener;
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &e);
  for (;;) {
    int64_t wait = run_queues();
    struct timespec until = {wait / 1000000000, wait % 1000000000};
    struct pollfd any = {.fd = epoll, .events = POLLIN};
    /* Paced streams need finer times than epoll's milliseconds. */
    if (wait >= 0) ppoll(&any, 1, &until, NULL);
    int n = epoll_wait(epoll, ready, 256, wait >= 0 ? 0 : 1000);
    uint64_t ms = now_ns() / 1000000;
    for (int i = 0; i < n; i++) {
      if (ready[i].data.fd == listener) accept_all();
      else if (open_connections[ready[i].data.fd]) serve(open_connections[ready[i].data.fd], ready[i].events, ms);
    }
    if (ms - swept_ms > 1000) close_idle(swept_ms = ms);
  }
}
