// The subscribers: they open their streams and find the events in them, wherever reads begin and end.
#include "sseload.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
  PORTS_PER_ADDRESS = 25000,
  READ_BYTES = 256 * 1024,
  TAIL_BYTES = 96,  // the longest mark that may be cut by the end of a read
  HEAD_BYTES = 64 * 1024,
};

enum stream_state { CONNECTING, HEAD, OPEN, CLOSED };
enum chunk_state { SIZE, EXTENSION, DATA, DATA_END };

struct subscriber {
  int fd;
  enum stream_state state;
  enum chunk_state chunk_state;
  bool is_chunked;
  uint8_t tail_size;
  u64 chunk_left;
  struct text head;
  char tail[TAIL_BYTES];  // the end of the last read, if it may be the beginning of a mark
};

static struct address stream_address;
static struct subscriber* subscribers;
static char** tokens;
static int token_count;
static char* buffer;  // TAIL_BYTES of room, then READ_BYTES

static char** lines_of(const char* path, int* count) {
  FILE* file = fopen(path, "r");
  if (!file) fail("cannot read %s: %s", path, strerror(errno));
  char **lines = NULL, *line = NULL;
  size_t room = 0;
  for (ssize_t size; (size = getline(&line, &room, file)) > 0;) {
    line[strcspn(line, "\r\n")] = 0;
    lines = realloc(lines, (size_t)(*count + 1) * sizeof *lines);
    if (!lines || !(lines[(*count)++] = strdup(line))) fail("out of memory");
  }
  free(line);
  fclose(file);
  if (!*count) fail("%s has no tokens", path);
  return lines;
}

void prepare_streams(void) {
  if (options.url) stream_address = address_of(options.url);
  if (options.tokens) tokens = lines_of(options.tokens, &token_count);
  subscribers = zeroed((size_t)options.subscribers, sizeof *subscribers);
  buffer = zeroed(1, TAIL_BYTES + READ_BYTES);
}

static void request_stream(int i, int operation) {
  struct subscriber* subscriber = &subscribers[i];
  char request[HEAD_BYTES];
  const char* token = token_count ? tokens[i % token_count] : NULL;
  int size = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n%s%s%s\r\n",
                      stream_address.path, stream_address.host, token ? "Authorization: Bearer " : "",
                      token ? token : "", token ? "\r\n" : "");
  if (size >= (int)sizeof request || send(subscriber->fd, request, (size_t)size, MSG_NOSIGNAL) != size)
    fail("cannot send the request of a stream");
  subscriber->state = HEAD;
  watch(epoll, operation, subscriber->fd, EPOLLIN, (uint32_t)i);
}

void start_stream(int i) {
  bool is_connected;
  subscribers[i].fd = connecting(&stream_address, i / PORTS_PER_ADDRESS, &is_connected);
  if (is_connected)
    request_stream(i, EPOLL_CTL_ADD);
  else
    watch(epoll, EPOLL_CTL_ADD, subscribers[i].fd, EPOLLOUT, (uint32_t)i);
}

static void connected_stream(int i) {
  check_connected(subscribers[i].fd, &stream_address);
  request_stream(i, EPOLL_CTL_MOD);
}

static void close_stream(struct subscriber* subscriber) {
  if (subscriber->state == HEAD) fail("the server closed a stream without a response");
  close(subscriber->fd);
  subscriber->state = CLOSED;
  found.closed++;
}

// Reads `name` in quotes, which may be escaped, a colon, and digits. Returns what follows them, `end` if that is beyond
// the bytes that have been read, or NULL if something else stands there.
static const char* field(const char* at, const char* end, const char* name, u64* value) {
  const char* expected_parts[] = {"\"", name, "\"", ":"};
  for (int i = 0; i < 4; i++) {
    while (at < end && (*at == ' ' || *at == '\\')) at++;
    for (const char* part = expected_parts[i]; *part; part++, at++) {
      if (at >= end) return end;
      if (*at != *part) return NULL;
    }
  }
  while (at < end && *at == ' ') at++;
  const char* digits = at;
  for (*value = 0; at < end && isdigit((unsigned char)*at); at++) *value = *value * 10 + (u64)(*at - '0');
  return at == end ? end : at > digits ? at : NULL;
}

static void keep_tail(struct subscriber* subscriber, const char* from, const char* end) {
  if (end - from > TAIL_BYTES) fail("the mark of an event is longer than %d bytes", TAIL_BYTES);
  subscriber->tail_size = (uint8_t)(end - from);
  memcpy(subscriber->tail, from, subscriber->tail_size);
}

// Finds the marks in the part of a stream's body that has just been read, which has TAIL_BYTES of room before it.
static void scan(int i, char* part, size_t size, u64 time) {
  struct subscriber* subscriber = &subscribers[i];
  const char *at = part - subscriber->tail_size, *end = part + size, *mark;
  memcpy(part - subscriber->tail_size, subscriber->tail, subscriber->tail_size);
  subscriber->tail_size = 0;
  while ((mark = memmem(at, (size_t)(end - at), "\"ts", 3))) {
    u64 due, number;
    const char* after = field(mark, end, "ts", &due);
    if (after && after < end) after = *after == ',' ? field(after + 1, end, "seq", &number) : NULL;
    if (after == end) {
      keep_tail(subscriber, mark, end);
      return;
    }
    if (after) received_event(i, due, number, time);
    at = after ? after : mark + 3;
  }
  if (end - at >= 2 && !memcmp(end - 2, "\"t", 2))
    keep_tail(subscriber, end - 2, end);
  else if (end > at && end[-1] == '"')
    keep_tail(subscriber, end - 1, end);
}

// Removes the chunk headers (RFC 9112, section 7.1) in place. Returns the new size, or -1 at the last chunk.
static ssize_t dechunked(struct subscriber* subscriber, char* bytes, size_t size) {
  char *to = bytes, *at = bytes, *end = bytes + size;
  while (at < end) {
    switch (subscriber->chunk_state) {
      case SIZE:
        if (isxdigit((unsigned char)*at)) {
          char digit[2] = {*at, 0};
          subscriber->chunk_left = subscriber->chunk_left * 16 + strtoul(digit, NULL, 16);
        } else if (*at == '\n') {
          if (!subscriber->chunk_left) return -1;
          subscriber->chunk_state = DATA;
        } else if (*at != '\r') {
          subscriber->chunk_state = EXTENSION;
        }
        at++;
        break;
      case EXTENSION:
        if (*at == '\n')
          subscriber->chunk_state = SIZE;
        else
          at++;
        break;
      case DATA: {
        size_t length = (size_t)(end - at);
        if (length > subscriber->chunk_left) length = subscriber->chunk_left;
        memmove(to, at, length);
        to += length, at += length;
        subscriber->chunk_left -= length;
        if (!subscriber->chunk_left) subscriber->chunk_state = DATA_END;
        break;
      }
      case DATA_END:
        if (*at++ == '\n') subscriber->chunk_state = SIZE;
        break;
    }
  }
  return to - bytes;
}

// Reads the head of a response. Returns how many of the last `size` bytes follow it, or -1 if it is not complete.
static ssize_t read_head(struct subscriber* subscriber, const char* bytes, size_t size) {
  append(&subscriber->head, bytes, size);
  char *head = subscriber->head.bytes, *end = strstr(head, "\r\n\r\n");
  if (!end) {
    if (subscriber->head.size > HEAD_BYTES) fail("the head of a response is longer than %d bytes", HEAD_BYTES);
    return -1;
  }
  ssize_t rest = head + subscriber->head.size - (end + 4);
  end[2] = 0;
  if (status_of(head) != 200) fail("a stream was refused: %.*s", (int)strcspn(head, "\r"), head);
  const char* coding = header(head, "\r\ntransfer-encoding:");
  subscriber->is_chunked = coding && !strncasecmp(coding, "chunked", 7);
  free(head);
  subscriber->head = (struct text){0};
  subscriber->state = OPEN;
  found.opened++;
  return rest;
}

static void received(int i, char* bytes, size_t size, u64 time) {
  struct subscriber* subscriber = &subscribers[i];
  if (subscriber->state == HEAD) {
    ssize_t rest = read_head(subscriber, bytes, size);
    if (rest < 0) return;
    memmove(bytes, bytes + size - rest, (size_t)rest);  // the room for a tail is before the first byte only
    size = (size_t)rest;
  }
  ssize_t decoded = subscriber->is_chunked ? dechunked(subscriber, bytes, size) : (ssize_t)size;
  if (decoded < 0)
    close_stream(subscriber);
  else if (decoded)
    scan(i, bytes, (size_t)decoded, time);
}

static void read_stream(int i) {
  struct subscriber* subscriber = &subscribers[i];
  ssize_t size;
  do {
    size = recv(subscriber->fd, buffer + TAIL_BYTES, READ_BYTES, 0);
    if (size > 0)
      received(i, buffer + TAIL_BYTES, (size_t)size, now());
    else if (!size || (errno != EAGAIN && errno != EINTR))
      close_stream(subscriber);
  } while (size == READ_BYTES && subscriber->state != CLOSED);
}

void serve_stream(int i) {
  if (subscribers[i].state == CONNECTING)
    connected_stream(i);
  else if (subscribers[i].state != CLOSED)
    read_stream(i);
}
