/* The floor: what any relay must do at the least. floor FRONT ENGINE, addresses as in common.h.

One thread, epoll, read from one side, write to the other; no HTTP is understood. Each client has a connection of its
own to the engine. What the slower side does not take is kept in one buffer, and nothing more is read until it is gone. */
#include "common.h"

#define BUFFER_BYTES 16384

struct side {
    int fd;
    struct side *other;
    size_t length, sent; /* what was read here and is not yet written to the other side */
    uint32_t watched;
    char buffer[BUFFER_BYTES];
};

static int epoll;

static void want(struct side *side, uint32_t events) {
    if (side->watched == events) return;
    watch(epoll, EPOLL_CTL_MOD, side->fd, events, side);
    side->watched = events;
}

static struct side *new_side(int fd) {
    struct side *side = malloc(sizeof *side);
    if (!side) die("malloc");
    side->fd = fd;
    side->length = side->sent = 0;
    side->watched = EPOLLIN;
    watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, side);
    return side;
}

static void take(int listener, const char *engine) {
    int fd = accept_one(listener);
    if (fd < 0) return;
    int upstream = dial(engine);
    if (upstream < 0) {
        close(fd);
        return;
    }
    struct side *client = new_side(fd), *far = new_side(upstream);
    client->other = far;
    far->other = client;
}

/* Writes what was read at `side`; returns whether the connection still stands. */
static int flush_to_other(struct side *side) {
    while (side->sent < side->length) {
        ssize_t n = send(side->other->fd, side->buffer + side->sent, side->length - side->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            want(side, side->watched & ~EPOLLIN);
            want(side->other, side->other->watched | EPOLLOUT);
            return 1;
        }
        if (n < 0) return 0;
        side->sent += (size_t)n;
    }
    side->length = side->sent = 0;
    return 1;
}

static int copy(struct side *side) {
    ssize_t n = read(side->fd, side->buffer, BUFFER_BYTES);
    if (n < 0) return errno == EAGAIN;
    if (n == 0) return 0;
    side->length = (size_t)n;
    return flush_to_other(side);
}

/* The other side's data can go on: this one takes bytes again. */
static int resume(struct side *side) {
    if (!flush_to_other(side->other)) return 0;
    if (side->other->length == 0) {
        want(side, side->watched & ~EPOLLOUT);
        want(side->other, side->other->watched | EPOLLIN);
    }
    return 1;
}

/* Closes both; later events of this batch that belong to either are taken out of it. */
static void part(struct side *side, struct epoll_event *events, int from, int count) {
    for (int i = from; i < count; i++)
        if (events[i].data.ptr == side || events[i].data.ptr == side->other) events[i].events = 0;
    close(side->other->fd);
    close(side->fd);
    free(side->other);
    free(side);
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: floor FRONT ENGINE\n"), 2;
    int listener = listen_on(argv[1]);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
    struct epoll_event events[256];
    for (;;) {
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            struct side *side = events[i].data.ptr;
            uint32_t what = events[i].events;
            if (!what) continue;
            if (!side) {
                take(listener, argv[2]);
                continue;
            }
            int stands = what & EPOLLOUT ? resume(side) : 1;
            if (stands && what & (EPOLLIN | EPOLLHUP | EPOLLERR) && side->length == 0) stands = copy(side);
            else if (what & (EPOLLHUP | EPOLLERR)) stands = 0;
            if (!stands) part(side, events, i + 1, count);
        }
    }
}
