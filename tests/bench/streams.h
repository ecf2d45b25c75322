/* The engine's streams: who gets the next token when, and the bytes of vLLM 0.32 for it. */
#pragma once
#include "common.h"

#define IN_BYTES 16384 /* of a request */
#define OUT_BYTES 4096
#define TURN_TOKENS 64 /* at once for a stream that runs flat out */
#define MOST_CONNECTIONS 16384

struct conn {
    int fd, streaming, chat, usage, sync, heap_at; /* heap_at: place in the heap, 0 for none */
    int64_t due_ns, period_ns;
    long wanted, sent;
    unsigned long id;
    long created;
    size_t in_length, out_length, out_sent;
    char in[IN_BYTES + 1], out[OUT_BYTES];
};

static int epoll, heap_size;
static struct conn *heap[MOST_CONNECTIONS + 1]; /* streams by the time of their next token, from 1 on */
static unsigned long open_streams, tokens;
static unsigned long long bytes;

static void place(struct conn *conn, int at) {
    heap[at] = conn;
    conn->heap_at = at;
}

static void sift(struct conn *conn, int at) {
    for (; at > 1 && heap[at / 2]->due_ns > conn->due_ns; at /= 2) place(heap[at / 2], at);
    for (int child; (child = at * 2) <= heap_size; at = child) {
        if (child < heap_size && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (heap[child]->due_ns >= conn->due_ns) break;
        place(heap[child], at);
    }
    place(conn, at);
}

static void schedule(struct conn *conn) {
    if (!conn->heap_at) conn->heap_at = ++heap_size;
    sift(conn, conn->heap_at);
}

static void unschedule(struct conn *conn) {
    if (!conn->heap_at) return;
    struct conn *last = heap[heap_size--];
    if (last != conn) sift(last, conn->heap_at);
    conn->heap_at = 0;
}

/* Sends, or keeps what the socket does not take. */
static void put(struct conn *conn, const char *data, size_t length) {
    ssize_t n = conn->out_length ? 0 : send(conn->fd, data, length, MSG_NOSIGNAL);
    if (n < 0) n = errno == EAGAIN ? 0 : (ssize_t)length; /* a lost connection is found by reading */
    bytes += length;
    if ((size_t)n == length) return;
    if (!conn->out_length) watch(epoll, EPOLL_CTL_MOD, conn->fd, EPOLLIN | EPOLLOUT, conn);
    if (conn->out_length + length - (size_t)n > OUT_BYTES) die("more to keep than there is room");
    memcpy(conn->out + conn->out_length, data + n, length - (size_t)n);
    conn->out_length += length - (size_t)n;
}

static void put_chunk(struct conn *conn, const char *data, int length) {
    char chunk[1024];
    put(conn, chunk, (size_t)snprintf(chunk, sizeof chunk, "%x\r\n%.*s\r\n", length, length, data));
}

static int begin_event(struct conn *conn, char *event, size_t room) {
    return snprintf(event, room, "data: {\"id\":\"chatcmpl-%016lx\",\"object\":\"chat.completion.chunk\",\"created\":%ld,"
                    "\"model\":\"tiny\",\"choices\":[", conn->id, conn->created);
}

static void put_role(struct conn *conn) {
    char event[512];
    int n = begin_event(conn, event, sizeof event);
    n += sprintf(event + n, "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
                 "\"finish_reason\":null}],\"prompt_token_ids\":null,\"prompt_text\":null}\n\n");
    put_chunk(conn, event, n);
}

static void put_token(struct conn *conn) {
    char event[512];
    int last = ++conn->sent == conn->wanted, n = begin_event(conn, event, sizeof event);
    const char *reason = last ? "\"length\",\"stop_reason\":null" : "null";
    n += sprintf(event + n, "{\"index\":0,\"delta\":{\"content\":\"%0*ld\"},\"logprobs\":null,\"finish_reason\":%s,"
                 "\"token_ids\":null}]}\n\n", STAMP_DIGITS, now_ns(), reason);
    tokens++;
    put_chunk(conn, event, n);
}

static void put_end(struct conn *conn) {
    char event[512];
    int n = begin_event(conn, event, sizeof event);
    n += sprintf(event + n, "],\"usage\":{\"prompt_tokens\":9,\"total_tokens\":%ld,\"completion_tokens\":%ld}}\n\n",
                 9 + conn->wanted, conn->wanted);
    if (conn->usage) put_chunk(conn, event, n);
    put_chunk(conn, "data: [DONE]\n\n", 14);
    put(conn, "0\r\n\r\n", 5);
    conn->streaming = 0;
    open_streams--;
    unschedule(conn);
}

/* All tokens of a stream that are due and that its socket takes. */
static void advance(struct conn *conn) {
    int64_t now = now_ns();
    for (int i = 0; i < TURN_TOKENS && conn->due_ns <= now && !conn->out_length; i++) {
        if (!conn->sent) put_role(conn);
        put_token(conn);
        if (conn->sent == conn->wanted) return put_end(conn);
        conn->due_ns += conn->period_ns;
    }
    if (!conn->period_ns) conn->due_ns = now_ns(); /* the others come first */
    if (conn->out_length) unschedule(conn);
    else schedule(conn);
}
