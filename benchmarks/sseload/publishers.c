// The publishers: each sends an event when the last one has been answered.
#include "sseload.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { RESPONSE_BYTES = 64 * 1024 };

enum publisher_state { IDLE, BUSY };
enum part_kind { LITERAL, DUE, NUMBER, AUDIENCE };

struct publisher {
  int fd;
  enum publisher_state state;
  size_t received;
  char response[RESPONSE_BYTES + 1];
};

static struct address publish_address;
static struct publisher* publishers;
int idle_publishers;
static struct part {
  enum part_kind kind;
  struct text text;  // of a literal
} parts[64];
static int part_count;

static struct part* new_part(enum part_kind kind) {
  if (part_count == 64) fail("the template has more than 64 parts");
  parts[part_count].kind = kind;
  return &parts[part_count++];
}

static void parse_template(const char* at) {
  static const struct {
    const char* text;
    enum part_kind kind;
  } placeholders[] = {{"{TS}", DUE}, {"{SEQ}", NUMBER}, {"{AUDIENCE}", AUDIENCE}};
  struct part* literal = new_part(LITERAL);
  while (*at) {
    size_t padding;
    int length = 0, kind = -1;
    for (int i = 0; i < 3; i++)
      if (!strncmp(at, placeholders[i].text, strlen(placeholders[i].text))) kind = i;
    if (kind >= 0) {
      new_part(placeholders[kind].kind);
      literal = new_part(LITERAL);
      at += strlen(placeholders[kind].text);
    } else if (sscanf(at, "{PAD:%zu}%n", &padding, &length) == 1 && length) {
      for (size_t i = 0; i < padding; i++) append(&literal->text, "x", 1);
      at += length;
    } else {
      append(&literal->text, at++, 1);
    }
  }
}

static void render(struct text* text, u64 due, u64 number) {
  for (int i = 0; i < part_count; i++) switch (parts[i].kind) {
      case LITERAL: append(text, parts[i].text.bytes, parts[i].text.size); break;
      case DUE: append_number(text, due); break;
      case NUMBER: append_number(text, number); break;
      case AUDIENCE: append_number(text, number % (u64)options.audiences); break;
    }
}

void prepare_publishers(void) {
  if (options.publish_url) publish_address = address_of(options.publish_url);
  if (options.body) parse_template(options.body);
}

static void wait_for_connection(int fd) {
  struct pollfd writable = {.fd = fd, .events = POLLOUT};
  if (poll(&writable, 1, 5000) != 1) fail("cannot connect to %s in 5 s", publish_address.host);
  check_connected(fd, &publish_address);
}

static void start_publisher(int i) {
  int one = 1;
  bool is_connected;
  publishers[i].fd = connecting(&publish_address, 0, &is_connected);
  setsockopt(publishers[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (!is_connected) wait_for_connection(publishers[i].fd);
  watch(publishing, EPOLL_CTL_ADD, publishers[i].fd, EPOLLIN, (uint32_t)i);
}

void start_publishers(void) {
  publishers = zeroed((size_t)options.publishers, sizeof *publishers);
  for (int i = 0; i < options.publishers; i++) start_publisher(i);
  idle_publishers = options.publishers;
}

void post(u64 due, u64 number) {
  static struct text body, request;
  struct publisher* publisher = publishers;
  while (publisher->state != IDLE) publisher++;
  body.size = request.size = 0;
  render(&body, due, number);
  append_string(&request, "POST ");
  append_string(&request, publish_address.path);
  append_string(&request, " HTTP/1.1\r\nHost: ");
  append_string(&request, publish_address.host);
  append_string(&request, "\r\n");
  append(&request, options.headers.bytes, options.headers.size);
  append_string(&request, "Content-Length: ");
  append_number(&request, body.size);
  append_string(&request, "\r\n\r\n");
  append(&request, body.bytes, body.size);
  sent[number].due = due;
  sent[number].publisher = (int)(publisher - publishers);
  publisher->state = BUSY;
  idle_publishers--;
  if (send(publisher->fd, request.bytes, request.size, MSG_NOSIGNAL) != (ssize_t)request.size)
    fail("cannot send an event: %s", strerror(errno));
}

// True if the response that has begun to arrive is complete. `response` ends with a NUL.
static bool is_complete(char* response, size_t size) {
  char* end = strstr(response, "\r\n\r\n");
  if (!end) return false;
  char* body = end + 4;
  size_t body_size = size - (size_t)(body - response);
  end[2] = 0;
  int status = status_of(response);
  const char* length = header(response, "\r\ncontent-length:");
  bool is_chunked = header(response, "\r\ntransfer-encoding:");
  end[2] = '\r';
  if (status < 200 || status > 299) fail("an event was refused: %.*s", (int)strcspn(response, "\r"), response);
  if (length) return body_size >= strtoul(length, NULL, 10);
  return !is_chunked || (body_size >= 5 && !strcmp(response + size - 5, "0\r\n\r\n"));
}

void serve_publisher(int i) {
  struct publisher* publisher = &publishers[i];
  ssize_t size =
      recv(publisher->fd, publisher->response + publisher->received, RESPONSE_BYTES - publisher->received, 0);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size <= 0 && publisher->state == IDLE) {  // servers close connections that are idle for long
    close(publisher->fd);
    start_publisher(i);
    return;
  }
  if (size <= 0) fail("the server closed a publisher's connection");
  publisher->received += (size_t)size;
  publisher->response[publisher->received] = 0;
  if (!is_complete(publisher->response, publisher->received)) {
    if (publisher->received == RESPONSE_BYTES) fail("a response is longer than %d bytes", RESPONSE_BYTES);
    return;
  }
  publisher->received = 0;
  publisher->state = IDLE;
  idle_publishers++;
  found.answered++;
  found.answered_at = now();
}
