// What the server and this program use, read from /proc.
#include "sseload.h"

#include <ctype.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static u64 wakeups_of(int pid) {
  char path[64], line[256];
  snprintf(path, sizeof path, "/proc/%d/task", pid);
  DIR* threads = opendir(path);
  if (!threads) return 0;
  u64 wakeups = 0;
  for (struct dirent* thread; (thread = readdir(threads));) {
    char status[400];
    snprintf(status, sizeof status, "%s/%s/status", path, thread->d_name);
    FILE* file = isdigit((unsigned char)thread->d_name[0]) ? fopen(status, "r") : NULL;
    if (!file) continue;
    unsigned long long count;
    while (fgets(line, sizeof line, file))
      if (sscanf(line, "voluntary_ctxt_switches: %llu", &count) == 1) wakeups += count;
    fclose(file);
  }
  closedir(threads);
  return wakeups;
}

static void add_usage(int pid, struct usage* usage) {
  clockid_t clock;
  struct timespec time;
  if (!clock_getcpuclockid(pid, &clock) && !clock_gettime(clock, &time))
    usage->cpu_seconds += (double)time.tv_sec + (double)time.tv_nsec / 1e9;
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/statm", pid);
  FILE* file = fopen(path, "r");
  long resident;
  if (file && fscanf(file, "%*d %ld", &resident) == 1)
    usage->memory_bytes += (double)resident * (double)sysconf(_SC_PAGESIZE);
  if (file) fclose(file);
  usage->wakeups += wakeups_of(pid);
}

// Fills `pids` with the children of `parent` and returns their number.
static int children_of(int parent, int* pids, int most) {
  int count = 0;
  DIR* processes = opendir("/proc");
  for (struct dirent* entry; processes && (entry = readdir(processes)) && count < most;) {
    int pid = atoi(entry->d_name), its_parent;
    char path[64], stat[1024] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE* file = pid ? fopen(path, "r") : NULL;
    if (!file) continue;
    char* end = fgets(stat, sizeof stat, file) ? strrchr(stat, ')') : NULL;  // the command's name may contain anything
    if (end && sscanf(end, ") %*c %d", &its_parent) == 1 && its_parent == parent) pids[count++] = pid;
    fclose(file);
  }
  if (processes) closedir(processes);
  return count;
}

static void add_tree(int pid, struct usage* usage) {
  int children[256], count = children_of(pid, children, 256);
  add_usage(pid, usage);
  for (int i = 0; i < count; i++) add_tree(children[i], usage);
}

struct usage server_usage(void) {
  struct usage usage = {0};
  if (options.server_pid) add_tree(options.server_pid, &usage);
  return usage;
}

struct own own_usage(void) {
  unsigned long long cpu = 0, wait = 0;
  FILE* file = fopen("/proc/self/schedstat", "r");
  if (!file || fscanf(file, "%llu %llu", &cpu, &wait) != 2) fail("cannot read /proc/self/schedstat");
  fclose(file);
  return (struct own){(double)cpu / 1e9, (double)wait / 1e9};
}
