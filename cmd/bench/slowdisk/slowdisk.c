// Makes each flush to the disk take longer by the microseconds in AUTHCTL_SLOW_DISK_US. It is loaded
// into PostgreSQL by LD_PRELOAD. The data is on the disk when the flush returns, as always.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

static int flush(const char *name, int fd) {
  int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
  int result = real(fd), error = errno;
  const char *text = getenv("AUTHCTL_SLOW_DISK_US");
  long us = text ? atol(text) : 0;
  struct timespec rest = {us / 1000000, us % 1000000 * 1000};
  while (us > 0 && nanosleep(&rest, &rest) != 0 && errno == EINTR) {
  }
  errno = error;
  return result;
}

int fsync(int fd) { return flush("fsync", fd); }
int fdatasync(int fd) { return flush("fdatasync", fd); }
