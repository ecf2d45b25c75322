/* A stand-in for `vllm serve` that is never the limit. engine … --uds PATH …; every other flag is ignored.

One thread, epoll. It answers what vllmd asks an engine, and streams chats with the bytes of vLLM 0.32: an HTTP chunk
and a send of its own for each token. The text of a token is the time at which it was sent. How to stream is said in
the client's text, which every door passes on: `rate=50` tokens a second (0: as fast as they are taken), `sync=1` for
all streams in step, as vLLM's step loop has them, `prefill=5` for so many seconds of silence first. GET /bench tells
what happened here. BENCH_ENGINE_CORE names the core to run on: vllmd starts this, and its own core is not for it. */
#include "streams.h"

static int timer, listener;
static unsigned long last_id, aborted, connections;
static int64_t last_aborted_ns;

static double number_after(const char *text, const char *name, double otherwise) {
    const char *at = strstr(text, name);
    return at ? atof(at + strlen(name) + (at[strlen(name)] == ' ')) : otherwise;
}

static void answer(struct conn *conn, const char *status, const char *type, const char *body) {
    char whole[2048];
    put(conn, whole, (size_t)snprintf(whole, sizeof whole, "HTTP/1.1 %s\r\nserver: uvicorn\r\ncontent-length: %zu\r\n"
                                      "content-type: %s\r\n\r\n%s", status, strlen(body), type, body));
}

static void answer_whole(struct conn *conn) {
    char body[1024], text[64];
    snprintf(text, sizeof text, conn->chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"%0*ld\"}" : "\"text\":\"%0*ld\"",
             STAMP_DIGITS, now_ns());
    snprintf(body, sizeof body, "{\"id\":\"cmpl-%016lx\",\"object\":\"%s\",\"created\":%ld,\"model\":\"tiny\",\"choices\":["
             "{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":\"length\",\"stop_reason\":null}],\"usage\":{"
             "\"prompt_tokens\":9,\"total_tokens\":%ld,\"completion_tokens\":%ld}}", conn->id,
             conn->chat ? "chat.completion" : "text_completion", (long)time(NULL), text, 9 + conn->wanted, conn->wanted);
    tokens += (unsigned long)conn->wanted;
    answer(conn, "200 OK", "application/json", body);
}

static void begin_stream(struct conn *conn, const char *body) {
    static const char head[] = "HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                               "transfer-encoding: chunked\r\n\r\n";
    double rate = number_after(body, "rate=", 0);
    conn->streaming = 1;
    conn->sent = 0;
    conn->period_ns = rate > 0 ? (int64_t)(NS_PER_S / rate) : 0;
    conn->usage = strstr(body, "\"include_usage\":true") || strstr(body, "\"include_usage\": true");
    conn->sync = number_after(body, "sync=", 0) > 0 && conn->period_ns;
    conn->due_ns = now_ns() + (int64_t)(number_after(body, "prefill=", 0) * NS_PER_S);
    if (conn->sync) conn->due_ns = (conn->due_ns / conn->period_ns + 1) * conn->period_ns;
    open_streams++;
    put(conn, head, sizeof head - 1);
    schedule(conn);
}

static void tell(struct conn *conn) {
    char body[512];
    snprintf(body, sizeof body, "{\"pid\":%d,\"open\":%lu,\"connections\":%lu,\"aborted\":%lu,\"last_aborted_ns\":%ld,"
             "\"tokens\":%lu,\"bytes\":%llu}", getpid(), open_streams, connections, aborted, last_aborted_ns, tokens, bytes);
    answer(conn, "200 OK", "application/json", body);
}

static void tell_metrics(struct conn *conn) {
    char body[512];
    snprintf(body, sizeof body, "vllm:num_requests_running{engine=\"0\"} %lu.0\nvllm:num_requests_waiting{engine=\"0\"} 0.0\n"
             "vllm:generation_tokens_total{engine=\"0\"} %lu.0\n", open_streams, tokens);
    answer(conn, "200 OK", "text/plain; version=1.0.0; charset=utf-8", body);
}

static int asks(const char *request, const char *what) { return strncmp(request, what, strlen(what)) == 0; }

static void serve(struct conn *conn, const char *request, const char *body) {
    conn->chat = asks(request, "POST /v1/chat/completions ");
    conn->id = ++last_id;
    conn->created = (long)time(NULL);
    conn->wanted = (long)number_after(body, "\"max_tokens\":", 16);
    if (conn->wanted < 1) conn->wanted = 1;
    if (conn->chat && (strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true"))) begin_stream(conn, body);
    else if (conn->chat || asks(request, "POST /v1/completions ")) answer_whole(conn);
    else if (asks(request, "GET /health ")) answer(conn, "200 OK", "text/plain", "");
    else if (asks(request, "GET /version ")) answer(conn, "200 OK", "application/json", "{\"version\":\"0.32.0\"}");
    else if (asks(request, "GET /metrics ")) tell_metrics(conn);
    else if (asks(request, "GET /bench ")) tell(conn);
    else answer(conn, "404 Not Found", "application/json", "{\"detail\":\"Not Found\"}");
}

static void end(struct conn *conn) {
    if (conn->streaming) {
        aborted++;
        open_streams--;
        last_aborted_ns = now_ns();
    }
    unschedule(conn);
    connections--;
    close(conn->fd);
    free(conn);
}

/* Serves the next request that is there as a whole; returns whether there was one. */
static int next_request(struct conn *conn) {
    conn->in[conn->in_length] = 0;
    char *body = strstr(conn->in, "\r\n\r\n"), *length;
    if (conn->streaming || !body) return 0;
    body += 4;
    length = strcasestr(conn->in, "\r\ncontent-length:");
    size_t body_bytes = length && length < body ? strtoul(length + 17, NULL, 10) : 0;
    size_t whole = (size_t)(body - conn->in) + body_bytes;
    if (whole > conn->in_length) return 0;
    char after = conn->in[whole];
    conn->in[whole] = 0;
    serve(conn, conn->in, body);
    conn->in[whole] = after;
    conn->in_length -= whole;
    memmove(conn->in, conn->in + whole, conn->in_length);
    return 1;
}

static void receive(struct conn *conn) {
    ssize_t n = read(conn->fd, conn->in + conn->in_length, IN_BYTES - conn->in_length);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return end(conn); /* also a request that is larger than the buffer */
    conn->in_length += (size_t)n;
    while (next_request(conn)) continue;
}

/* The socket takes bytes again: those that were kept, then the tokens that are due. */
static void flush(struct conn *conn) {
    ssize_t n = send(conn->fd, conn->out + conn->out_sent, conn->out_length - conn->out_sent, MSG_NOSIGNAL);
    if (n > 0) conn->out_sent += (size_t)n;
    if (conn->out_sent < conn->out_length) return;
    conn->out_sent = conn->out_length = 0;
    watch(epoll, EPOLL_CTL_MOD, conn->fd, EPOLLIN, conn);
    if (conn->streaming) schedule(conn);
}

static void take(void) {
    int fd = accept_one(listener);
    if (fd < 0) return;
    struct conn *conn = calloc(1, sizeof *conn);
    if (!conn || ++connections > MOST_CONNECTIONS) die("too many connections");
    conn->fd = fd;
    watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, conn);
}

/* Each stream that is due gets its tokens once; one that runs flat out is due again at once, and waits its turn. */
static void tick(void) {
    int64_t now = now_ns();
    for (int turns = heap_size; turns && heap_size && heap[1]->due_ns <= now; turns--) advance(heap[1]);
}

int main(int argc, char **argv) {
    static char address[512];
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--uds") == 0) snprintf(address, sizeof address, "unix:%s", argv[i + 1]);
    if (!*address) return fprintf(stderr, "usage: engine --uds PATH\n"), 2;
    const char *core = getenv("BENCH_ENGINE_CORE");
    cpu_set_t set;
    CPU_ZERO(&set);
    if (core) CPU_SET((size_t)atoi(core), &set);
    if (core && sched_setaffinity(0, sizeof set, &set) < 0) die("BENCH_ENGINE_CORE");
    listener = listen_on(address);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    timer = new_timer();
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(epoll, EPOLL_CTL_ADD, timer, EPOLLIN, &timer);
    struct epoll_event events[256];
    for (;;) {
        if (heap_size) arm(timer, heap[1]->due_ns);
        int count = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < count; i++) {
            void *who = events[i].data.ptr;
            if (who == &listener) take();
            else if (who == &timer) rest(timer), tick();
            else if (events[i].events & ~(uint32_t)EPOLLOUT) receive(who);
            else flush(who);
        }
    }
}
