// The command line.
#include "sseload.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

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
    "  --connect-rate R     streams that are opened in a second at most; 0 is as fast as the server accepts (default "
    "0)\n"
    "  --hold SECONDS       keep the streams open for so long, and count how often the server wakes up\n"
    "\n"
    "Events\n"
    "  --publish-url URL    where each event is sent with POST\n"
    "  --header 'K: V'      a header of these requests; may be given more than once\n"
    "  --body TEMPLATE      their body; {TS}, {SEQ}, {AUDIENCE} and {PAD:BYTES} are replaced. The subscribers must "
    "find\n"
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

struct options options = {.subscribers = 1, .publishers = 1, .audiences = 1, .settle = 0.5, .patience = 10};

static double number_of(const char* name, const char* text, double least) {
  char* end;
  double value = strtod(text, &end);
  if (end == text || *end || !(value >= least && value <= 1e9))
    fail("invalid --%s '%s': expected a number from %g on", name, text, least);
  return value;
}

void read_options(int count, char** arguments) {
  enum {
    URL = 1,
    SUBSCRIBERS,
    TOKENS,
    CONNECT_RATE,
    HOLD,
    PUBLISH_URL,
    ADD_HEADER,
    BODY,
    EVENTS,
    WARMUP,
    RATE,
    PUBLISHERS_OPTION,
    AUDIENCES,
    SERVER_PID,
    SETTLE,
    PATIENCE,
    HELP_OPTION
  };
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
    const char* name = option == '?' ? "" : known[index].name;
    switch (option) {
      case URL: options.url = optarg; break;
      case SUBSCRIBERS: options.subscribers = (int)number_of(name, optarg, 0); break;
      case TOKENS: options.tokens = optarg; break;
      case CONNECT_RATE: options.connect_rate = number_of(name, optarg, 0); break;
      case HOLD: options.hold = number_of(name, optarg, 0); break;
      case PUBLISH_URL: options.publish_url = optarg; break;
      case ADD_HEADER:
        append_string(&options.headers, optarg);
        append_string(&options.headers, "\r\n");
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
