/* Clients of a relay: streams at a pace, or short requests on kept-alive connections. One thread, epoll; prints JSON.

load --to ADDRESS --connections N --rate EVENTS_PER_S --ramp S --window S [--door v1|prompt] [--pids 1,2] [--key KEY]
     [--sync]         the engine sends to all streams at the same moment
     [--churn]        one-token requests instead of streams; --rate is then requests a second, of all together
     [--whole]        … answered in one piece

What counts is counted within a window that begins after the ramp, when every stream has begun, and ends before the
first stream does. Afterwards every stream is read to its end: no token may be missing, and none may lack its ending. */
#include "account.h"
#include "answer.h"
#include <getopt.h>

#define READ_BYTES 65536
#define MARGIN_NS (NS_PER_S / 5) /* streams outlive the window by it */
#define TICK_NS (NS_PER_S / 1000)
#define PATIENCE_NS (15 * NS_PER_S)
#define OPENING_SHARE 0.6 /* of the ramp: connections are opened one by one, so that their phases differ */

struct client {
    int fd, waits; /* waits: for the rest of an answer */
    long wanted;   /* tokens of its stream */
    int64_t asked_ns, due_ns;
    struct answer answer;
};

static const char *to, *key = "", *door = "v1";
static int total, in_step, churn, whole, epoll, in_window, is_closing;
static double rate, ramp_s, window_s;
static struct client *clients;
static int64_t began_ns, window_from_ns, window_until_ns, read_ns;
static long opened, begun, ended, lost, failed, tokens_wanted, tokens_got, events, reads, read_tokens, request_number;
static struct account from, until; /* the window */
static long resident_kib, own_kib;
static int32_t *latencies_ns;
static long latencies_length, latencies_room;

static void note_latency(int64_t ns) {
    if (latencies_length == latencies_room) {
        latencies_room = latencies_room ? 2 * latencies_room : 65536;
        latencies_ns = realloc(latencies_ns, (size_t)latencies_room * sizeof *latencies_ns);
        if (!latencies_ns) die("realloc");
    }
    latencies_ns[latencies_length++] = ns > INT32_MAX ? INT32_MAX : (int32_t)ns;
}

static void on_stamp(void *who, int64_t sent_ns) {
    struct client *client = who;
    if (client->answer.tokens == 1) begun++;
    tokens_got++;
    read_tokens++;
    if (!in_window || churn) return;
    events++;
    note_latency(read_ns - sent_ns);
}

static void lose(struct client *client) {
    if (client->fd >= 0) close(client->fd);
    client->fd = -1;
    client->waits = 0;
    lost++;
}

static void ask(struct client *client) {
    char body[512], request[1024];
    int is_prompt = strcmp(door, "prompt") == 0, n;
    const char *open = is_prompt ? "\"prompt\":\"" : "\"model\":\"tiny\",\"messages\":[{\"role\":\"user\",\"content\":\"";
    n = snprintf(body, sizeof body, "{%srate=%g sync=%d\"%s,\"max_tokens\":%ld,\"stream\":%s}", open, churn ? 0 : rate, in_step,
                 is_prompt ? "" : "}]", client->wanted, whole ? "false" : "true");
    n = snprintf(request, sizeof request, "POST %s HTTP/1.1\r\nHost: localhost\r\n%s%s%sContent-Type: application/json\r\n"
                 "Content-Length: %d\r\n\r\n%s", is_prompt ? "/api/prompt" : "/v1/chat/completions",
                 *key ? "Authorization: Bearer " : "", key, *key ? "\r\n" : "", n, body);
    expect_answer(&client->answer);
    client->waits = 1;
    client->asked_ns = now_ns();
    tokens_wanted += client->wanted;
    if (send(client->fd, request, (size_t)n, MSG_NOSIGNAL) != n) lose(client);
}

static void answered(struct client *client) {
    struct answer *answer = &client->answer;
    client->waits = 0;
    ended++;
    if (whole && answer->status == 200) tokens_got++, answer->tokens++;
    if (answer->failed || answer->status != 200 || !(answer->done || whole) || answer->tokens != client->wanted) failed++;
    if (!churn || !in_window) return;
    events++;
    note_latency(read_ns - client->asked_ns);
}

static void receive(struct client *client) {
    static char data[READ_BYTES];
    ssize_t n = read(client->fd, data, sizeof data);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return lose(client);
    read_ns = now_ns();
    read_tokens = 0;
    for (ssize_t i = 0; i < n; i++)
        if (take_byte(&client->answer, data[i], on_stamp, client)) answered(client);
    if (in_window && read_tokens) reads++;
}

static void open_client(struct client *client) {
    client->fd = dial(to);
    opened++;
    if (client->fd < 0) return lose(client);
    watch(epoll, EPOLL_CTL_ADD, client->fd, EPOLLIN, client);
    int64_t left_ns = window_until_ns + MARGIN_NS - now_ns();
    if (left_ns < 0) left_ns = 0; /* it comes too late to be counted, and so does the whole run */
    client->wanted = churn ? 1 : (long)(rate * (double)left_ns / NS_PER_S) + 2; /* the first is said at once */
    if (!churn) ask(client);
}

/* Opens what is to be open by now; in churn also asks whoever is due and idle. */
static void keep_going(int64_t now) {
    int64_t opening_ns = (int64_t)(ramp_s * OPENING_SHARE * NS_PER_S);
    while (opened < total && now >= began_ns + opening_ns * opened / total) open_client(&clients[opened]);
    if (!churn || is_closing) return;
    for (; now >= began_ns + (int64_t)((double)request_number * NS_PER_S / rate); request_number++) {
        struct client *client = &clients[request_number % total];
        if (client->fd >= 0 && client - clients < opened && !client->waits) ask(client);
    }
}

static int compare(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static double percentile_us(double part) {
    if (!latencies_length) return 0;
    return latencies_ns[(long)(part * (double)(latencies_length - 1))] / 1e3;
}

static void report(void) {
    long all = until.all_ticks - from.all_ticks;
    qsort(latencies_ns, (size_t)latencies_length, sizeof *latencies_ns, compare);
    printf("{\"window_s\":%.6f,\"events\":%ld,\"reads\":%ld,", (double)(until.at_ns - from.at_ns) / 1e9, events, reads);
    printf("\"cpu_s\":%.9f,\"waited_s\":%.9f,", (double)(until.cpu_ns - from.cpu_ns) / 1e9,
           (double)(until.waited_ns - from.waited_ns) / 1e9);
    printf("\"steal\":%.5f,", all ? (double)(until.steal_ticks - from.steal_ticks) / (double)all : 0);
    printf("\"p50_us\":%.2f,\"p99_us\":%.2f,", percentile_us(0.5), percentile_us(0.99));
    printf("\"resident_kib\":%ld,\"own_kib\":%ld,", resident_kib, own_kib);
    printf("\"tokens_wanted\":%ld,\"tokens_got\":%ld,\"lost\":%ld,\"failed\":%ld}\n", tokens_wanted, tokens_got, lost, failed);
}

static int all_idle(void) {
    for (int i = 0; i < total; i++)
        if (clients[i].waits) return 0;
    return 1;
}

static void read_options(int argc, char **argv) {
    static const struct option options[] = {
        {"to", 1, 0, 't'}, {"connections", 1, 0, 'n'}, {"rate", 1, 0, 'r'}, {"ramp", 1, 0, 'a'}, {"window", 1, 0, 'w'},
        {"door", 1, 0, 'd'}, {"pids", 1, 0, 'p'}, {"key", 1, 0, 'k'}, {"sync", 0, &in_step, 1}, {"churn", 0, &churn, 1},
        {"whole", 0, &whole, 1}, {0, 0, 0, 0}};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 't') to = optarg;
        else if (option == 'n') total = atoi(optarg);
        else if (option == 'r') rate = atof(optarg);
        else if (option == 'a') ramp_s = atof(optarg);
        else if (option == 'w') window_s = atof(optarg);
        else if (option == 'd') door = optarg;
        else if (option == 'k') key = optarg;
        else if (option == 'p') count_processes(optarg);
        else if (option) exit(2);
    }
    if (!to || total < 1 || rate <= 0) exit((fprintf(stderr, "usage: see load.c\n"), 2));
}

/* Begins the window when every stream has begun, and ends it in time; while streams are still open. */
static void look_at_the_clock(int64_t now) {
    int all_begun = opened == total && (churn || begun + lost >= total);
    if (!in_window && !is_closing && now >= window_from_ns && all_begun) {
        from = take_account();
        in_window = 1;
    }
    if (now < window_until_ns || is_closing) return;
    if (in_window) until = take_account();
    take_memory(&resident_kib, &own_kib);
    in_window = 0;
    is_closing = 1;
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    clients = calloc((size_t)total, sizeof *clients);
    if (!clients) die("calloc");
    epoll = epoll_create1(EPOLL_CLOEXEC);
    int timer = new_timer();
    watch(epoll, EPOLL_CTL_ADD, timer, EPOLLIN, NULL);
    began_ns = now_ns();
    arm(timer, began_ns);
    window_from_ns = began_ns + (int64_t)(ramp_s * NS_PER_S);
    window_until_ns = window_from_ns + (int64_t)(window_s * NS_PER_S);
    struct epoll_event ready[256];
    for (;;) {
        int64_t now = now_ns();
        keep_going(now);
        look_at_the_clock(now);
        if (is_closing && (all_idle() || now > window_until_ns + PATIENCE_NS)) break;
        int count = epoll_wait(epoll, ready, 256, -1);
        for (int i = 0; i < count; i++) {
            struct client *client = ready[i].data.ptr;
            if (!client) rest(timer), arm(timer, now_ns() + TICK_NS);
            else if (client->fd >= 0) receive(client);
        }
    }
    report();
    return 0;
}
