/* What the three programs of the bench share: one clock, addresses ("unix:PATH" or "tcp:PORT"), epoll and a timer. */
#pragma once
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL
#define BACKLOG 4096
#define STAMP_DIGITS 18 /* CLOCK_MONOTONIC in ns as text of one width, so that joined texts can be told apart */

__attribute__((noreturn)) static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * NS_PER_S + t.tv_nsec;
}

/* Fills in a socket address; returns its length. */
static inline socklen_t resolve(const char *address, struct sockaddr_storage *where) {
    memset(where, 0, sizeof *where);
    if (strncmp(address, "unix:", 5) == 0) {
        struct sockaddr_un *path = (struct sockaddr_un *)where;
        path->sun_family = AF_UNIX;
        if (strlen(address + 5) >= sizeof path->sun_path) die("the path of the socket is too long");
        strcpy(path->sun_path, address + 5);
        return sizeof *path;
    }
    struct sockaddr_in *port = (struct sockaddr_in *)where;
    port->sin_family = AF_INET;
    port->sin_port = htons((uint16_t)atoi(address + 4));
    port->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return sizeof *port;
}

/* A non-blocking, connected socket, or -1. */
static inline int dial(const char *address) {
    struct sockaddr_storage where;
    socklen_t length = resolve(address, &where);
    int one = 1, fd = socket(where.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (connect(fd, (struct sockaddr *)&where, length) < 0) {
        close(fd);
        return -1;
    }
    if (where.ss_family == AF_INET) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static inline int listen_on(const char *address) {
    struct sockaddr_storage where;
    socklen_t length = resolve(address, &where);
    int one = 1, fd = socket(where.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) die("socket");
    if (where.ss_family == AF_INET) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (where.ss_family == AF_UNIX) unlink(address + 5);
    if (bind(fd, (struct sockaddr *)&where, length) < 0) die("bind");
    if (listen(fd, BACKLOG) < 0) die("listen");
    return fd;
}

static inline int accept_one(int listener) {
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails harmlessly on a Unix socket */
    return fd;
}

static inline void watch(int epoll, int operation, int fd, uint32_t events, void *who) {
    struct epoll_event event = {.events = events, .data.ptr = who};
    if (epoll_ctl(epoll, operation, fd, &event) < 0) die("epoll_ctl");
}

/* A timer that epoll can watch: epoll's own timeouts end at whole milliseconds and would bunch up the streams. */
static inline int new_timer(void) {
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (fd < 0) die("timerfd_create");
    return fd;
}

static inline void arm(int timer, int64_t at_ns) {
    if (at_ns < 1) at_ns = 1; /* zero would disarm it */
    struct itimerspec when = {.it_value = {.tv_sec = at_ns / NS_PER_S, .tv_nsec = at_ns % NS_PER_S}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static inline void rest(int timer) {
    uint64_t times;
    if (read(timer, &times, sizeof times) < 0 && errno != EAGAIN) die("timer");
}
