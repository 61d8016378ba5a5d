// sseload: opens streams of server-sent events, publishes events to them, and reports what arrived, how late, and what
// it cost the server. `sseload --help` says how it is used.
//
// It has one thread and one epoll instance, so that it takes a fraction of the CPU time of the servers that it measures:
// a generator that is as slow as the server measures itself. It reports its own share of a core.
//
// Each event carries {"ts":DUE,"seq":NUMBER} in its data, the time at which it was due and its number. A server may wrap
// that, escape its quotes, and put anything before and after it. So each subscriber knows which events it has received:
// a bit for each of them, and the last one of each publisher. Latency counts from the due time, so that it includes the
// time for which a slow server kept its publishers waiting.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef uint64_t u64;

enum {
  CONNECTING_AT_ONCE = 500,
  PORTS_PER_ADDRESS = 25000,
  READ_BYTES = 256 * 1024,
  TAIL_BYTES = 96,       // the longest mark that may be cut by the end of a read
  RESPONSE_BYTES = 64 * 1024,
  HEAD_BYTES = 64 * 1024,
  EVENTS_AT_ONCE = 1024,
  READS_BETWEEN_POSTS = 32,
};
static const u64 SECOND = 1000000000;
static const u64 MILLISECOND = 1000000;
static const u64 POLL = 20000000;

static const char HELP[] =
    "Usage: sseload --url URL --subscribers N [--events N --publish-url URL --body TEMPLATE] [OPTIONS]\n"
    "\n"
    "Opens streams of server-sent events, publishes events to them, and prints a report as JSON. It connects to\n"
    "loopback addresses only.\n"
    "\n"
    "Streams\n"
    "  --url URL            the stream: http://127.0.0.1:PORT/PATH\n"
    "  --subscribers N      streams to open; 0 only publishes (default 1)\n"
    "  --tokens FILE        a line for each token; subscriber i sends token i modulo lines as Authorization: Bearer\n"
    "  --connect-rate R     streams that are opened in a second at most; 0 is as fast as the server accepts (default 0)\n"
    "  --hold SECONDS       keep the streams open for so long, and count how often the server wakes up\n"
    "\n"
    "Events\n"
    "  --publish-url URL    where each event is sent with POST\n"
    "  --header 'K: V'      a header of these requests; may be given more than once\n"
    "  --body TEMPLATE      their body; {TS}, {SEQ}, {AUDIENCE} and {PAD:BYTES} are replaced. The subscribers must find\n"
    "                       {\"ts\":{TS},\"seq\":{SEQ} in it\n"
    "  --events N           events to publish and to measure (default 0)\n"
    "  --warmup N           events before them that are not measured (default 0)\n"
    "  --rate R             events per second; 0 is one after the other, as fast as the server answers (default 0)\n"
    "  --publishers N       connections that publish (default 1)\n"
    "  --audiences N        event s is for subscribers i with the same s and i modulo N (default 1)\n"
    "\n"
    "Measuring\n"
    "  --server-pid PID     the server, whose CPU time and memory are measured with those of its children\n"
    "  --settle SECONDS     between connecting, its measurement, and the first event (default 0.5)\n"
    "  --patience SECONDS   how long nothing may happen before the rest counts as lost (default 10)\n"
    "\n"
    "Exit status: 0 if each event arrived once and in order, 1 if not, 2 if the load could not be carried out.\n";

static struct {
  const char *url, *publish_url, *body, *tokens;
  int subscribers, publishers, audiences, server_pid;
  u64 events, warmup;
  double rate, connect_rate, hold, settle, patience;
} options = {.subscribers = 1, .publishers = 1, .audiences = 1, .settle = 0.5, .patience = 10};

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...) {
  va_list values;
  va_start(values, format);
  fputs("sseload: ", stderr);
  vfprintf(stderr, format, values);
  fputc('\n', stderr);
  exit(2);
}

static u64 now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (u64)time.tv_sec * SECOND + (u64)time.tv_nsec;
}

static void *zeroed(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size);
  if (!memory) fail("out of memory");
  return memory;
}

// ---- Texts that grow

struct text {
  char *bytes;  // NULL until something is appended; ends with a NUL that does not count
  size_t size, room;
};

static void append(struct text *text, const char *bytes, size_t size) {
  if (text->size + size + 1 > text->room) {
    text->room = 2 * (text->size + size + 1);
    text->bytes = realloc(text->bytes, text->room);
    if (!text->bytes) fail("out of memory");
  }
  memcpy(text->bytes + text->size, bytes, size);
  text->size += size;
  text->bytes[text->size] = 0;
}

static void append_string(struct text *text, const char *string) { append(text, string, strlen(string)); }

static void append_number(struct text *text, u64 number) {
  char digits[24];
  append(text, digits, (size_t)sprintf(digits, "%llu", (unsigned long long)number));
}

// ---- Latencies: a histogram whose buckets are at most 1/128 wide

enum { PRECISION = 7, BUCKETS = 64 << PRECISION };

static struct {
  u64 counts[BUCKETS], total, largest;
} latencies;

static void record(u64 nanoseconds) {
  int shift = nanoseconds >> PRECISION ? 63 - __builtin_clzll(nanoseconds) - PRECISION : 0;
  latencies.counts[((u64)shift << PRECISION) + (nanoseconds >> shift)]++;
  latencies.total++;
  if (nanoseconds > latencies.largest) latencies.largest = nanoseconds;
}

// Returns the milliseconds that `share` of all latencies do not exceed.
static double percentile(double share) {
  u64 wanted = (u64)(share * (double)latencies.total + 0.5), counted = 0;
  for (u64 bucket = 0; bucket < BUCKETS; bucket++) {
    counted += latencies.counts[bucket];
    if (counted && counted >= wanted) {
      int shift = bucket >> PRECISION ? (int)(bucket >> PRECISION) - 1 : 0;
      u64 value = (bucket - ((u64)shift << PRECISION)) << shift;
      return (double)(value < latencies.largest ? value : latencies.largest) / 1e6;
    }
  }
  return (double)latencies.largest / 1e6;
}

// ---- The server's processes: --server-pid and all its descendants

struct usage {
  double cpu_seconds;
  double memory_bytes;
  u64 wakeups;
};

static u64 wakeups_of(int pid) {
  char path[64], line[256];
  snprintf(path, sizeof path, "/proc/%d/task", pid);
  DIR *threads = opendir(path);
  if (!threads) return 0;
  u64 wakeups = 0;
  for (struct dirent *thread; (thread = readdir(threads));) {
    char status[400];
    snprintf(status, sizeof status, "%s/%s/status", path, thread->d_name);
    FILE *file = isdigit((unsigned char)thread->d_name[0]) ? fopen(status, "r") : NULL;
    if (!file) continue;
    unsigned long long count;
    while (fgets(line, sizeof line, file))
      if (sscanf(line, "voluntary_ctxt_switches: %llu", &count) == 1) wakeups += count;
    fclose(file);
  }
  closedir(threads);
  return wakeups;
}

static void add_usage(int pid, struct usage *usage) {
  clockid_t clock;
  struct timespec time;
  if (!clock_getcpuclockid(pid, &clock) && !clock_gettime(clock, &time))
    usage->cpu_seconds += (double)time.tv_sec + (double)time.tv_nsec / 1e9;
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/statm", pid);
  FILE *file = fopen(path, "r");
  long resident;
  if (file && fscanf(file, "%*d %ld", &resident) == 1)
    usage->memory_bytes += (double)resident * (double)sysconf(_SC_PAGESIZE);
  if (file) fclose(file);
  usage->wakeups += wakeups_of(pid);
}

// Fills `pids` with the children of `parent` and returns their number.
static int children_of(int parent, int *pids, int most) {
  int count = 0;
  DIR *processes = opendir("/proc");
  for (struct dirent *entry; processes && (entry = readdir(processes)) && count < most;) {
    int pid = atoi(entry->d_name), found;
    char path[64], stat[1024] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = pid ? fopen(path, "r") : NULL;
    if (!file) continue;
    char *end = fgets(stat, sizeof stat, file) ? strrchr(stat, ')') : NULL;  // the command's name may contain anything
    if (end && sscanf(end, ") %*c %d", &found) == 1 && found == parent) pids[count++] = pid;
    fclose(file);
  }
  if (processes) closedir(processes);
  return count;
}

static void add_tree(int pid, struct usage *usage) {
  int children[256], count = children_of(pid, children, 256);
  add_usage(pid, usage);
  for (int i = 0; i < count; i++) add_tree(children[i], usage);
}

static struct usage server_usage(void) {
  struct usage usage = {0};
  if (options.server_pid) add_tree(options.server_pid, &usage);
  return usage;
}

struct own {
  double cpu_seconds, wait_seconds;  // in which this program used its core; in which it waited for it
};

static struct own own_usage(void) {
  unsigned long long cpu = 0, wait = 0;
  FILE *file = fopen("/proc/self/schedstat", "r");
  if (!file || fscanf(file, "%llu %llu", &cpu, &wait) != 2) fail("cannot read /proc/self/schedstat");
  fclose(file);
  return (struct own){(double)cpu / 1e9, (double)wait / 1e9};
}

// ---- Addresses

struct address {
  struct sockaddr_in socket;
  char host[80];  // as in the URL, with the port
  const char *path;
};

static struct address address_of(const char *url) {
  struct address address = {.socket.sin_family = AF_INET};
  char name[64];
  int port, end = 0;
  if (sscanf(url, "http://%63[^:/]:%d%n", name, &port, &end) != 2 || port < 1 || port > 65535)
    fail("invalid URL '%s': expected http://127.0.0.1:PORT/PATH", url);
  if (inet_pton(AF_INET, name, &address.socket.sin_addr) != 1 || ntohl(address.socket.sin_addr.s_addr) >> 24 != 127)
    fail("invalid URL '%s': expected an address that begins with 127.", url);
  address.socket.sin_port = htons((uint16_t)port);
  snprintf(address.host, sizeof address.host, "%s:%d", name, port);
  address.path = url[end] ? url + end : "/";
  return address;
}

// Returns a socket that connects to `address`, from source address 127.0.0.1 + `source`; on loopback it has often done so
// before this returns.
static int connecting(const struct address *address, int source, bool *is_connected) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("cannot open a socket: %s", strerror(errno));
  if (source) {
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)source)};
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&from, sizeof from)) fail("cannot bind a socket: %s", strerror(errno));
  }
  *is_connected = !connect(fd, (const struct sockaddr *)&address->socket, sizeof address->socket);
  if (!*is_connected && errno != EINPROGRESS) fail("cannot connect to %s: %s", address->host, strerror(errno));
  return fd;
}

static void check_connected(int fd, const struct address *address) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) fail("cannot connect to %s: %s", address->host, strerror(error));
}

// Returns the value of a header, or NULL. `name` is the header's name between a line end and a colon.
static const char *header(const char *head, const char *name) {
  const char *found = strcasestr(head, name);
  return found ? found + strlen(name) + strspn(found + strlen(name), " ") : NULL;
}

static int status_of(const char *head) {
  int status = 0;
  sscanf(head, "HTTP/1.%*c %d", &status);
  return status;
}

// ---- The events that were sent, and what was found of them

static struct {
  u64 due;  // 0 until it has been sent
  int publisher;
} *sent;  // by number, from 1 on

static struct {
  u64 opened, closed;
  u64 warm, delivered, duplicates, reordered, corrupt;
  u64 answered;
  u64 read_at, answered_at;  // the time of the last event and of the last response
} found;

static uint8_t *seen;    // a bit for each subscriber and event
static uint32_t *newest; // the highest number for each subscriber and publisher

static u64 total_events(void) { return options.warmup + options.events; }

static size_t seen_bytes(void) { return total_events() / 8 + 1; }

static void received_event(int subscriber, u64 due, u64 number, u64 at) {
  u64 audiences = (u64)options.audiences;
  if (!number || number > total_events() || sent[number].due != due || number % audiences != (u64)subscriber % audiences) {
    found.corrupt++;  // not an event that was sent to this subscriber
    return;
  }
  uint8_t *byte = seen + (size_t)subscriber * seen_bytes() + number / 8, bit = (uint8_t)(1 << number % 8);
  if (*byte & bit) {
    found.duplicates++;
    return;
  }
  *byte |= bit;
  uint32_t *last = newest + (size_t)subscriber * (size_t)options.publishers + sent[number].publisher;
  if (number < *last)
    found.reordered++;
  else
    *last = (uint32_t)number;
  found.read_at = at;
  if (number <= options.warmup) {
    found.warm++;
    return;
  }
  found.delivered++;
  record(at > due ? at - due : 0);
}

// Returns how many deliveries the events `first` to `last` should make.
static u64 expected(u64 first, u64 last) {
  u64 count = 0, audiences = (u64)options.audiences, subscribers = (u64)options.subscribers;
  for (u64 number = first; number <= last; number++)
    count += subscribers / audiences + (number % audiences < subscribers % audiences);
  return count;
}

// ---- Subscribers

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

static const uint32_t PUBLISHERS = UINT32_MAX;  // the id of `publishing` in `epoll`; the others are subscribers

static int epoll, publishing;
static struct address stream_address;
static struct subscriber *subscribers;
static char **tokens;
static int token_count;
static char *buffer;  // TAIL_BYTES of room, then READ_BYTES

static void watch(int poll, int operation, int fd, uint32_t events, uint32_t id) {
  struct epoll_event event = {.events = events, .data.u32 = id};
  if (epoll_ctl(poll, operation, fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

static void request_stream(int i, int operation) {
  struct subscriber *subscriber = &subscribers[i];
  char request[HEAD_BYTES];
  const char *token = token_count ? tokens[i % token_count] : NULL;
  int size = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n%s%s%s\r\n",
                      stream_address.path, stream_address.host, token ? "Authorization: Bearer " : "", token ? token : "",
                      token ? "\r\n" : "");
  if (size >= (int)sizeof request || send(subscriber->fd, request, (size_t)size, MSG_NOSIGNAL) != size)
    fail("cannot send the request of a stream");
  subscriber->state = HEAD;
  watch(epoll, operation, subscriber->fd, EPOLLIN, (uint32_t)i);
}

static void start_stream(int i) {
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

static void close_stream(struct subscriber *subscriber) {
  if (subscriber->state == HEAD) fail("the server closed a stream without a response");
  close(subscriber->fd);
  subscriber->state = CLOSED;
  found.closed++;
}

// Reads `name` in quotes, which may be escaped, a colon, and digits. Returns what follows them, `end` if that is beyond
// the bytes that have been read, or NULL if something else stands there.
static const char *field(const char *at, const char *end, const char *name, u64 *value) {
  const char *expected_parts[] = {"\"", name, "\"", ":"};
  for (int i = 0; i < 4; i++) {
    while (at < end && (*at == ' ' || *at == '\\')) at++;
    for (const char *part = expected_parts[i]; *part; part++, at++) {
      if (at >= end) return end;
      if (*at != *part) return NULL;
    }
  }
  while (at < end && *at == ' ') at++;
  const char *digits = at;
  for (*value = 0; at < end && isdigit((unsigned char)*at); at++) *value = *value * 10 + (u64)(*at - '0');
  return at == end ? end : at > digits ? at : NULL;
}

static void keep_tail(struct subscriber *subscriber, const char *from, const char *end) {
  if (end - from > TAIL_BYTES) fail("the mark of an event is longer than %d bytes", TAIL_BYTES);
  subscriber->tail_size = (uint8_t)(end - from);
  memcpy(subscriber->tail, from, subscriber->tail_size);
}

// Finds the marks in the part of a stream's body that has just been read, which has TAIL_BYTES of room before it.
static void scan(int i, char *part, size_t size, u64 time) {
  struct subscriber *subscriber = &subscribers[i];
  const char *at = part - subscriber->tail_size, *end = part + size, *mark;
  memcpy(part - subscriber->tail_size, subscriber->tail, subscriber->tail_size);
  subscriber->tail_size = 0;
  while ((mark = memmem(at, (size_t)(end - at), "\"ts", 3))) {
    u64 due, number;
    const char *after = field(mark, end, "ts", &due);
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
static ssize_t dechunked(struct subscriber *subscriber, char *bytes, size_t size) {
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
static ssize_t read_head(struct subscriber *subscriber, const char *bytes, size_t size) {
  append(&subscriber->head, bytes, size);
  char *head = subscriber->head.bytes, *end = strstr(head, "\r\n\r\n");
  if (!end) {
    if (subscriber->head.size > HEAD_BYTES) fail("the head of a response is longer than %d bytes", HEAD_BYTES);
    return -1;
  }
  ssize_t rest = head + subscriber->head.size - (end + 4);
  end[2] = 0;
  if (status_of(head) != 200) fail("a stream was refused: %.*s", (int)strcspn(head, "\r"), head);
  const char *coding = header(head, "\r\ntransfer-encoding:");
  subscriber->is_chunked = coding && !strncasecmp(coding, "chunked", 7);
  free(head);
  subscriber->head = (struct text){0};
  subscriber->state = OPEN;
  found.opened++;
  return rest;
}

static void received(int i, char *bytes, size_t size, u64 time) {
  struct subscriber *subscriber = &subscribers[i];
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
  struct subscriber *subscriber = &subscribers[i];
  ssize_t size;
  do {
    size = recv(subscriber->fd, buffer + TAIL_BYTES, READ_BYTES, 0);
    if (size > 0)
      received(i, buffer + TAIL_BYTES, (size_t)size, now());
    else if (!size || (errno != EAGAIN && errno != EINTR))
      close_stream(subscriber);
  } while (size == READ_BYTES && subscriber->state != CLOSED);
}

// ---- Publishers

enum publisher_state { IDLE, BUSY };
enum part_kind { LITERAL, DUE, NUMBER, AUDIENCE };

struct publisher {
  int fd;
  enum publisher_state state;
  size_t received;
  char response[RESPONSE_BYTES + 1];
};

static struct address publish_address;
static struct publisher *publishers;
static int idle_publishers;
static struct text headers;
static struct part {
  enum part_kind kind;
  struct text text;  // of a literal
} parts[64];
static int part_count;

static struct part *new_part(enum part_kind kind) {
  if (part_count == 64) fail("the template has more than 64 parts");
  parts[part_count].kind = kind;
  return &parts[part_count++];
}

static void parse_template(const char *at) {
  static const struct {
    const char *text;
    enum part_kind kind;
  } placeholders[] = {{"{TS}", DUE}, {"{SEQ}", NUMBER}, {"{AUDIENCE}", AUDIENCE}};
  struct part *literal = new_part(LITERAL);
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

static void render(struct text *text, u64 due, u64 number) {
  for (int i = 0; i < part_count; i++) switch (parts[i].kind) {
      case LITERAL: append(text, parts[i].text.bytes, parts[i].text.size); break;
      case DUE: append_number(text, due); break;
      case NUMBER: append_number(text, number); break;
      case AUDIENCE: append_number(text, number % (u64)options.audiences); break;
    }
}

static void wait_for_connection(int fd) {
  struct pollfd writable = {.fd = fd, .events = POLLOUT};
  if (poll(&writable, 1, 5000) != 1) fail("cannot connect to %s in 5 s", publish_address.host);
  check_connected(fd, &publish_address);
}

static void start_publishers(void) {
  publishers = zeroed((size_t)options.publishers, sizeof *publishers);
  for (int i = 0; i < options.publishers; i++) {
    int one = 1;
    bool is_connected;
    publishers[i].fd = connecting(&publish_address, 0, &is_connected);
    setsockopt(publishers[i].fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (!is_connected) wait_for_connection(publishers[i].fd);
    watch(publishing, EPOLL_CTL_ADD, publishers[i].fd, EPOLLIN, (uint32_t)i);
  }
  idle_publishers = options.publishers;
}

static void post(struct publisher *publisher, u64 due, u64 number) {
  static struct text body, request;
  body.size = request.size = 0;
  render(&body, due, number);
  append_string(&request, "POST ");
  append_string(&request, publish_address.path);
  append_string(&request, " HTTP/1.1\r\nHost: ");
  append_string(&request, publish_address.host);
  append_string(&request, "\r\n");
  append(&request, headers.bytes, headers.size);
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
static bool is_complete(char *response, size_t size) {
  char *end = strstr(response, "\r\n\r\n");
  if (!end) return false;
  char *body = end + 4;
  size_t body_size = size - (size_t)(body - response);
  end[2] = 0;
  int status = status_of(response);
  const char *length = header(response, "\r\ncontent-length:");
  bool is_chunked = header(response, "\r\ntransfer-encoding:");
  end[2] = '\r';
  if (status < 200 || status > 299) fail("an event was refused: %.*s", (int)strcspn(response, "\r"), response);
  if (length) return body_size >= strtoul(length, NULL, 10);
  return !is_chunked || (body_size >= 5 && !strcmp(response + size - 5, "0\r\n\r\n"));
}

static void read_response(struct publisher *publisher) {
  ssize_t size = recv(publisher->fd, publisher->response + publisher->received, RESPONSE_BYTES - publisher->received, 0);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
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

// ---- The schedule of events, and the loop

static struct {
  u64 first, next, last, began;
} schedule = {.first = 1, .next = 1};

static u64 due_at(u64 number) { return schedule.began + (u64)((double)(number - schedule.first) * 1e9 / options.rate); }

static void post_what_is_due(void) {
  while (schedule.next <= schedule.last && idle_publishers) {
    u64 time = now(), due = options.rate > 0 ? due_at(schedule.next) : time;
    if (due > time) return;
    struct publisher *publisher = publishers;
    while (publisher->state != IDLE) publisher++;
    post(publisher, due, schedule.next++);
  }
}

static void serve_publishers(void) {
  struct epoll_event events[64];
  int count = epoll_wait(publishing, events, 64, 0);
  for (int i = 0; i < count; i++) read_response(&publishers[events[i].data.u32]);
  post_what_is_due();
}

// Waits for at most `wait` nanoseconds and handles what has arrived. Between reads, publishers have their turns.
static void turn(u64 wait) {
  static struct epoll_event events[EVENTS_AT_ONCE];
  serve_publishers();
  if (schedule.next <= schedule.last && idle_publishers && options.rate > 0) {
    u64 time = now(), due = due_at(schedule.next);
    wait = due < time ? 0 : due - time < wait ? due - time : wait;
  }
  struct timespec time = {(time_t)(wait / SECOND), (long)(wait % SECOND)};
  int count = epoll_pwait2(epoll, events, EVENTS_AT_ONCE, &time, NULL);
  for (int i = 0; i < count; i++) {
    uint32_t id = events[i].data.u32;
    if (id == PUBLISHERS)
      serve_publishers();
    else if (subscribers[id].state == CONNECTING)
      connected_stream((int)id);
    else if (subscribers[id].state != CLOSED)
      read_stream((int)id);
    if (i % READS_BETWEEN_POSTS == READS_BETWEEN_POSTS - 1) serve_publishers();
  }
}

static void run_for(double seconds) {
  u64 end = now() + (u64)(seconds * 1e9);
  for (u64 time; (time = now()) < end;) turn(end - time < POLL ? end - time : POLL);
}

// Returns how many streams may have been started `seconds` after the first one.
static u64 startable(double seconds) {
  u64 by_openness = found.opened + CONNECTING_AT_ONCE, by_number = (u64)options.subscribers;
  u64 most = by_openness < by_number ? by_openness : by_number;
  double by_rate = options.connect_rate * seconds;
  return options.connect_rate > 0 && by_rate < (double)most ? (u64)by_rate : most;
}

static void open_streams(void) {
  u64 started = 0, opened = 0, began = now(), moved_at = began;
  while (found.opened < (u64)options.subscribers) {
    while (started < startable((double)(now() - began) / 1e9)) start_stream((int)started++);
    turn(options.connect_rate > 0 ? MILLISECOND : POLL);
    if (found.opened > opened) moved_at = now();
    opened = found.opened;
    if ((double)(now() - moved_at) / 1e9 > options.patience)
      fail("only %llu of %d streams opened", (unsigned long long)opened, options.subscribers);
  }
}

// Publishes the events `first` to `last`; ends when all have been answered and received, or when nothing arrives.
static void publish(u64 first, u64 last) {
  u64 deliveries = found.warm + found.delivered + expected(first, last), progress = 0, moved_at = now();
  schedule.first = schedule.next = first;
  schedule.last = last;
  schedule.began = moved_at;
  while (found.answered < last || found.warm + found.delivered < deliveries) {
    turn(POLL);
    u64 reached = found.answered + found.warm + found.delivered;
    if (reached > progress || (options.rate > 0 && schedule.next <= last && idle_publishers)) moved_at = now();
    progress = reached;
    if ((double)(now() - moved_at) / 1e9 > options.patience) {
      fprintf(stderr, "sseload: nothing arrived for %g s\n", options.patience);
      schedule.last = 0;
      return;
    }
  }
}

// ---- Options and report

static char **lines_of(const char *path, int *count) {
  FILE *file = fopen(path, "r");
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

static double number_of(const char *name, const char *text, double least) {
  char *end;
  double value = strtod(text, &end);
  if (end == text || *end || !(value >= least && value <= 1e9))
    fail("invalid --%s '%s': expected a number from %g on", name, text, least);
  return value;
}

static void read_options(int count, char **arguments) {
  enum { URL = 1, SUBSCRIBERS, TOKENS, CONNECT_RATE, HOLD, PUBLISH_URL, ADD_HEADER, BODY, EVENTS, WARMUP, RATE, PUBLISHERS_OPTION, AUDIENCES,
         SERVER_PID, SETTLE, PATIENCE, HELP_OPTION };
  static const struct option known[] = {
      {"url", required_argument, NULL, URL},
      {"subscribers", required_argument, NULL, SUBSCRIBERS},
      {"tokens", required_argument, NULL, TOKENS},
      {"connect-rate", required_argument, NULL, CONNECT_RATE},
      {"hold", required_argument, NULL, HOLD},
      {"publish-url", required_argument, NULL, PUBLISH_URL},
      {"header", required_argument, NULL, ADD_HEADER},
      {"body", required_argument, NULL, BODY},
      {"events", required_argument, NULL, EVENTS},
      {"warmup", required_argument, NULL, WARMUP},
      {"rate", required_argument, NULL, RATE},
      {"publishers", required_argument, NULL, PUBLISHERS_OPTION},
      {"audiences", required_argument, NULL, AUDIENCES},
      {"server-pid", required_argument, NULL, SERVER_PID},
      {"settle", required_argument, NULL, SETTLE},
      {"patience", required_argument, NULL, PATIENCE},
      {"help", no_argument, NULL, HELP_OPTION},
      {NULL, 0, NULL, 0},
  };
  int index;
  for (int option; (option = getopt_long(count, arguments, "", known, &index)) != -1;) {
    const char *name = option == '?' ? "" : known[index].name;
    switch (option) {
      case URL: options.url = optarg; break;
      case SUBSCRIBERS: options.subscribers = (int)number_of(name, optarg, 0); break;
      case TOKENS: options.tokens = optarg; break;
      case CONNECT_RATE: options.connect_rate = number_of(name, optarg, 0); break;
      case HOLD: options.hold = number_of(name, optarg, 0); break;
      case PUBLISH_URL: options.publish_url = optarg; break;
      case ADD_HEADER:
        append_string(&headers, optarg);
        append_string(&headers, "\r\n");
        break;
      case BODY: options.body = optarg; break;
      case EVENTS: options.events = (u64)number_of(name, optarg, 0); break;
      case WARMUP: options.warmup = (u64)number_of(name, optarg, 0); break;
      case RATE: options.rate = number_of(name, optarg, 0); break;
      case PUBLISHERS_OPTION: options.publishers = (int)number_of(name, optarg, 1); break;
      case AUDIENCES: options.audiences = (int)number_of(name, optarg, 1); break;
      case SERVER_PID: options.server_pid = (int)number_of(name, optarg, 1); break;
      case SETTLE: options.settle = number_of(name, optarg, 0); break;
      case PATIENCE: options.patience = number_of(name, optarg, 0); break;
      case HELP_OPTION: fputs(HELP, stdout); exit(0);
      default: exit(2);  // getopt has said why
    }
  }
  if (optind < count) fail("unexpected argument '%s': see --help", arguments[optind]);
  if (options.subscribers && !options.url) fail("--url is missing: see --help");
  if (total_events() && !(options.publish_url && options.body)) fail("--publish-url or --body is missing: see --help");
  if (options.server_pid && kill(options.server_pid, 0) && errno == ESRCH)
    fail("--server-pid %d: no such process", options.server_pid);
}

static void raise_descriptor_limit(void) {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  rlim_t needed = (rlim_t)(options.subscribers + options.publishers + 16);
  if (limit.rlim_cur < needed)
    fail("%llu descriptors are needed, %llu are allowed", (unsigned long long)needed, (unsigned long long)limit.rlim_cur);
}

static void prepare(void) {
  raise_descriptor_limit();
  size_t count = (size_t)options.subscribers;
  if (options.url) stream_address = address_of(options.url);
  if (options.publish_url) publish_address = address_of(options.publish_url);
  if (options.body) parse_template(options.body);
  if (options.tokens) tokens = lines_of(options.tokens, &token_count);
  append(&headers, "", 0);
  epoll = epoll_create1(EPOLL_CLOEXEC);
  publishing = epoll_create1(EPOLL_CLOEXEC);
  watch(epoll, EPOLL_CTL_ADD, publishing, EPOLLIN, PUBLISHERS);
  buffer = zeroed(1, TAIL_BYTES + READ_BYTES);
  subscribers = zeroed(count, sizeof *subscribers);
  seen = zeroed(count, seen_bytes());
  newest = zeroed(count * (size_t)options.publishers, sizeof *newest);
  sent = zeroed(total_events() + 1, sizeof *sent);
}

struct times {
  u64 at;
  struct own own;
  struct usage server;
};

static struct times times(void) {
  return (struct times){.server = server_usage(), .own = own_usage(), .at = now()};
}

static void print(const char *name, double value) { printf("  \"%s\": %.9g,\n", name, value); }

// Prints above / below, or null if there is no server whose usage is known, or nothing was measured.
static void print_quotient(const char *name, double above, double below) {
  if (options.server_pid && below > 0)
    print(name, above / below);
  else
    printf("  \"%s\": null,\n", name);
}

static void print_latencies(void) {
  static const struct {
    const char *name;
    double share;
  } percentiles[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1}};
  printf("  \"latency_ms\": {");
  for (int i = 0; i < 5 && latencies.total; i++)
    printf("%s\"%s\": %.6g", i ? ", " : "", percentiles[i].name, percentile(percentiles[i].share));
  printf("},\n");
}

int main(int count, char **arguments) {
  read_options(count, arguments);
  prepare();

  struct times began = times();
  open_streams();
  struct times opened = times();
  run_for(options.settle);
  struct times connected = times();
  run_for(options.hold);
  struct times held = times();

  if (total_events()) start_publishers();
  if (options.warmup) publish(1, options.warmup);
  struct times before = times();
  if (options.events) publish(options.warmup + 1, total_events());
  u64 ended_at = found.read_at > found.answered_at ? found.read_at : found.answered_at;
  struct times after = times();
  run_for(options.events ? 0.2 : 0);  // an event that arrives twice may do so late

  u64 deliveries = options.events ? expected(options.warmup + 1, total_events()) : 0;
  double connecting_seconds = (double)(opened.at - began.at) / 1e9;
  double seconds = options.events ? (double)(ended_at - before.at) / 1e9 : 0;
  double cpu_seconds = after.server.cpu_seconds - before.server.cpu_seconds;
  struct times first = options.events ? before : options.hold > 0 ? connected : began;
  struct times last = options.events ? after : options.hold > 0 ? held : opened;
  double own_seconds = (double)(last.at - first.at) / 1e9;
  printf("{\n");
  print("subscribers", options.subscribers);
  print("expected", (double)deliveries);
  print("delivered", (double)found.delivered);
  print("lost", (double)(deliveries - found.delivered));
  print("duplicates", (double)found.duplicates);
  print("reordered", (double)found.reordered);
  print("corrupt", (double)found.corrupt);
  print("closed", (double)found.closed);
  print("seconds", seconds);
  print("planned_seconds", options.rate > 0 ? (double)options.events / options.rate : 0);
  print("deliveries_per_second", seconds > 0 ? (double)found.delivered / seconds : 0);
  print("published_per_second", seconds > 0 ? (double)options.events / seconds : 0);
  print("connections_per_second", connecting_seconds > 0 ? options.subscribers / connecting_seconds : 0);
  print_latencies();
  print_quotient("server_cpu_seconds", cpu_seconds, 1);
  print_quotient("deliveries_per_cpu_second", (double)found.delivered, cpu_seconds);
  print_quotient("events_per_cpu_second", (double)options.events, cpu_seconds);
  print_quotient("connections_per_cpu_second", options.subscribers,
                 connected.server.cpu_seconds - began.server.cpu_seconds);
  print_quotient("bytes_per_subscriber", connected.server.memory_bytes - began.server.memory_bytes, options.subscribers);
  print_quotient("wakeups_per_second", (double)(held.server.wakeups - connected.server.wakeups), options.hold);
  print("own_wait_share", (last.own.wait_seconds - first.own.wait_seconds) / own_seconds);
  printf("  \"own_cpu_share\": %.9g\n}\n", (last.own.cpu_seconds - first.own.cpu_seconds) / own_seconds);
  bool is_good = found.delivered == deliveries && !(found.duplicates || found.reordered || found.corrupt || found.closed);
  return is_good ? 0 : 1;
}
