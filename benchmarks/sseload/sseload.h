// What the parts of sseload share. main.c says what it is.
#pragma once

#define _GNU_SOURCE

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef uint64_t u64;

static const u64 SECOND = 1000000000;  // times are in nanoseconds

// ---- basics.c

struct text {
  char* bytes;  // NULL until something is appended; ends with a NUL that does not count
  size_t size, room;
};

__attribute__((noreturn, format(printf, 1, 2))) void fail(const char* format, ...);
u64 now(void);
void* zeroed(size_t count, size_t size);
void append(struct text* text, const char* bytes, size_t size);
void append_string(struct text* text, const char* string);
void append_number(struct text* text, u64 number);

// ---- options.c

extern struct options {
  const char *url, *publish_url, *body, *tokens;
  struct text headers;  // of a request that publishes
  int subscribers, publishers, audiences, server_pid;
  u64 events, warmup;
  double rate, connect_rate, hold, settle, patience;
} options;

void read_options(int count, char** arguments);

// ---- latencies.c

void record(u64 nanoseconds);
bool has_latencies(void);
double percentile(double share);

// ---- usage.c

struct usage {
  double cpu_seconds;
  double memory_bytes;
  u64 wakeups;
};

struct own {
  double cpu_seconds, wait_seconds;  // in which this program used its core; in which it waited for it
};

struct usage server_usage(void);  // that of --server-pid and all its descendants
struct own own_usage(void);

// ---- connections.c

struct address {
  struct sockaddr_in socket;
  char host[80];  // as in the URL, with the port
  const char* path;
};

struct address address_of(const char* url);
int connecting(const struct address* address, int source, bool* is_connected);
void check_connected(int fd, const struct address* address);
const char* header(const char* head, const char* name);
int status_of(const char* head);

// ---- events.c

extern struct sent {
  u64 due;  // 0 until it has been sent
  int publisher;
}* sent;

extern struct found {
  u64 opened, closed;
  u64 warm, delivered, duplicates, reordered, corrupt;
  u64 answered;
  u64 read_at, answered_at;  // the time of the last event and of the last response
} found;

void prepare_events(void);
u64 total_events(void);
u64 expected(u64 first, u64 last);
void received_event(int subscriber, u64 due, u64 number, u64 at);

// ---- streams.c

void prepare_streams(void);
void start_stream(int i);
void serve_stream(int i);

// ---- publishers.c

extern int idle_publishers;

void prepare_publishers(void);
void start_publishers(void);
void post(u64 due, u64 number);  // by one that is idle
void serve_publisher(int i);

// ---- schedule.c

extern int epoll, publishing;

void prepare_loop(void);
void watch(int poll, int operation, int fd, uint32_t events, uint32_t id);
void run_for(double seconds);
void open_streams(void);
void publish(u64 first, u64 last);
