// The events that were sent, and what was found of them: a bit for each subscriber and event.
#include "sseload.h"

struct sent* sent;  // by number, from 1 on
struct found found;

static uint8_t* seen;     // a bit for each subscriber and event
static uint32_t* newest;  // the highest number for each subscriber and publisher

u64 total_events(void) { return options.warmup + options.events; }

static size_t seen_bytes(void) { return total_events() / 8 + 1; }

void prepare_events(void) {
  size_t count = (size_t)options.subscribers;
  seen = zeroed(count, seen_bytes());
  newest = zeroed(count * (size_t)options.publishers, sizeof *newest);
  sent = zeroed(total_events() + 1, sizeof *sent);
}

void received_event(int subscriber, u64 due, u64 number, u64 at) {
  u64 audiences = (u64)options.audiences;
  if (!number || number > total_events() || sent[number].due != due ||
      number % audiences != (u64)subscriber % audiences) {
    found.corrupt++;  // not an event that was sent to this subscriber
    return;
  }
  uint8_t *byte = seen + (size_t)subscriber * seen_bytes() + number / 8, bit = (uint8_t)(1 << number % 8);
  if (*byte & bit) {
    found.duplicates++;
    return;
  }
  *byte |= bit;
  uint32_t* last = newest + (size_t)subscriber * (size_t)options.publishers + sent[number].publisher;
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
u64 expected(u64 first, u64 last) {
  u64 count = 0, audiences = (u64)options.audiences, subscribers = (u64)options.subscribers;
  for (u64 number = first; number <= last; number++)
    count += subscribers / audiences + (number % audiences < subscribers % audiences);
  return count;
}
