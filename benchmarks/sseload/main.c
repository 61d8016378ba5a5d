// sseload: opens streams of server-sent events, publishes events to them, and reports what arrived, how late, and what
// it cost the server. `sseload --help` says how it is used.
//
// It has one thread and one epoll instance, so that it takes a fraction of the CPU time of the servers that it
// measures: a generator that is as slow as the server measures itself. It reports its own share of a core.
//
// Each event carries {"ts":DUE,"seq":NUMBER} in its data, the time at which it was due and its number. A server may
// wrap that, escape its quotes, and put anything before and after it. So each subscriber knows which events it has
// received: a bit for each of them, and the last one of each publisher. Latency counts from the due time, so that it
// includes the time for which a slow server kept its publishers waiting.
#include "sseload.h"

#include <sys/resource.h>

static void raise_descriptor_limit(void) {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  rlim_t needed = (rlim_t)(options.subscribers + options.publishers + 16);
  if (limit.rlim_cur < needed)
    fail("%llu descriptors are needed, %llu are allowed", (unsigned long long)needed,
         (unsigned long long)limit.rlim_cur);
}

struct times {
  u64 at;
  struct own own;
  struct usage server;
};

static struct times times(void) { return (struct times){.server = server_usage(), .own = own_usage(), .at = now()}; }

static void print(const char* name, double value) { printf("  \"%s\": %.9g,\n", name, value); }

// Prints above / below, or null if there is no server whose usage is known, or nothing was measured.
static void print_quotient(const char* name, double above, double below) {
  if (options.server_pid && below > 0)
    print(name, above / below);
  else
    printf("  \"%s\": null,\n", name);
}

static void print_latencies(void) {
  static const struct {
    const char* name;
    double share;
  } percentiles[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1}};
  printf("  \"latency_ms\": {");
  for (int i = 0; i < 5 && has_latencies(); i++)
    printf("%s\"%s\": %.6g", i ? ", " : "", percentiles[i].name, percentile(percentiles[i].share));
  printf("},\n");
}

int main(int count, char** arguments) {
  read_options(count, arguments);
  raise_descriptor_limit();
  prepare_loop();
  prepare_events();
  prepare_streams();
  prepare_publishers();

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
  print_quotient("bytes_per_subscriber", connected.server.memory_bytes - began.server.memory_bytes,
                 options.subscribers);
  print_quotient("wakeups_per_second", (double)(held.server.wakeups - connected.server.wakeups), options.hold);
  print("own_wait_share", (last.own.wait_seconds - first.own.wait_seconds) / own_seconds);
  printf("  \"own_cpu_share\": %.9g\n}\n", (last.own.cpu_seconds - first.own.cpu_seconds) / own_seconds);
  bool is_good =
      found.delivered == deliveries && !(found.duplicates || found.reordered || found.corrupt || found.closed);
  return is_good ? 0 : 1;
}
