// A histogram of latencies whose buckets are at most 1/128 wide.
#include "sseload.h"

enum { PRECISION = 7, BUCKETS = 64 << PRECISION };

static u64 counts[BUCKETS], total, largest;

void record(u64 nanoseconds) {
  int shift = nanoseconds >> PRECISION ? 63 - __builtin_clzll(nanoseconds) - PRECISION : 0;
  counts[((u64)shift << PRECISION) + (nanoseconds >> shift)]++;
  total++;
  if (nanoseconds > largest) largest = nanoseconds;
}

// Returns the milliseconds that `share` of all latencies do not exceed.
double percentile(double share) {
  u64 wanted = (u64)(share * (double)total + 0.5), counted = 0;
  for (u64 bucket = 0; bucket < BUCKETS; bucket++) {
    counted += counts[bucket];
    if (counted && counted >= wanted) {
      int shift = bucket >> PRECISION ? (int)(bucket >> PRECISION) - 1 : 0;
      u64 value = (bucket - ((u64)shift << PRECISION)) << shift;
      return (double)(value < largest ? value : largest) / 1e6;
    }
  }
  return (double)largest / 1e6;
}

bool has_latencies(void) { return total > 0; }
