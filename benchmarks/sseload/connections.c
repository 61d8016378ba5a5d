// Connections to loopback addresses, and the heads of responses.
#include "sseload.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

struct address address_of(const char* url) {
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

// Returns a socket that connects to `address`, from source address 127.0.0.1 + `source`; on loopback it has often done
// so before this returns.
int connecting(const struct address* address, int source, bool* is_connected) {
  int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) fail("cannot open a socket: %s", strerror(errno));
  if (source) {
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)source)};
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr*)&from, sizeof from)) fail("cannot bind a socket: %s", strerror(errno));
  }
  *is_connected = !connect(fd, (const struct sockaddr*)&address->socket, sizeof address->socket);
  if (!*is_connected && errno != EINPROGRESS) fail("cannot connect to %s: %s", address->host, strerror(errno));
  return fd;
}

void check_connected(int fd, const struct address* address) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) fail("cannot connect to %s: %s", address->host, strerror(error));
}

// Returns the value of a header, or NULL. `name` is the header's name between a line end and a colon.
const char* header(const char* head, const char* name) {
  const char* value = strcasestr(head, name);
  return value ? value + strlen(name) + strspn(value + strlen(name), " ") : NULL;
}

int status_of(const char* head) {
  int status = 0;
  sscanf(head, "HTTP/1.%*c %d", &status);
  return status;
}
