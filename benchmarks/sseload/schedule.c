// The loop, which serves streams and publishers, and the times at which events are due.
#include "sseload.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

enum { CONNECTING_AT_ONCE = 500, EVENTS_AT_ONCE = 1024, READS_BETWEEN_POSTS = 32 };
static const u64 MILLISECOND = 1000000;
static const u64 POLL = 20000000;
static const uint32_t PUBLISHERS = UINT32_MAX;  // the id of `publishing` in `epoll`; the others are subscribers

int epoll, publishing;

void watch(int poll, int operation, int fd, uint32_t events, uint32_t id) {
  struct epoll_event event = {.events = events, .data.u32 = id};
  if (epoll_ctl(poll, operation, fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

void prepare_loop(void) {
  epoll = epoll_create1(EPOLL_CLOEXEC);
  publishing = epoll_create1(EPOLL_CLOEXEC);
  watch(epoll, EPOLL_CTL_ADD, publishing, EPOLLIN, PUBLISHERS);
}

static struct {
  u64 first, next, last, began;
} schedule = {.first = 1, .next = 1};

static u64 due_at(u64 number) { return schedule.began + (u64)((double)(number - schedule.first) * 1e9 / options.rate); }

static void post_what_is_due(void) {
  while (schedule.next <= schedule.last && idle_publishers) {
    u64 time = now(), due = options.rate > 0 ? due_at(schedule.next) : time;
    if (due > time) return;
    post(due, schedule.next++);
  }
}

static void serve_publishers(void) {
  struct epoll_event events[64];
  int count = epoll_wait(publishing, events, 64, 0);
  for (int i = 0; i < count; i++) serve_publisher((int)events[i].data.u32);
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
    else
      serve_stream((int)id);
    if (i % READS_BETWEEN_POSTS == READS_BETWEEN_POSTS - 1) serve_publishers();
  }
}

void run_for(double seconds) {
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

void open_streams(void) {
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
void publish(u64 first, u64 last) {
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
