/* Reads one HTTP answer after the other, byte by byte, and what the bench's engine said in it.

An answer has ended when its body has: with the terminal chunk, or with the last byte of its length. Both a /v1 stream
(`"content":"STAMPS"`) and the simple door's (`data: STAMPS`) are understood. */
#pragma once
#include "common.h"

#define LINE_BYTES 2048

enum part { HEAD, SIZE, CHUNK, AFTER_CHUNK, TRAILER, WHOLE };

struct answer {
    enum part part;
    int status, chunked, done, failed; /* done: the stream said that it was complete; failed: it reported an error */
    long left, tokens;                 /* left: bytes of this chunk, or of a whole body */
    int64_t last_stamp_ns;
    size_t line_length, event_length;
    char line[LINE_BYTES], event[LINE_BYTES]; /* a line of HTTP's, and one of the events within */
};

/* Called for each token; `sent_ns` is when it left the engine. */
typedef void on_token(void *who, int64_t sent_ns);

static inline void expect_answer(struct answer *a) {
    memset(a, 0, offsetof(struct answer, line));
}

static inline void read_stamps(struct answer *a, const char *text, on_token *tell, void *who) {
    for (char digits[STAMP_DIGITS + 1]; strspn(text, "0123456789") >= STAMP_DIGITS; text += STAMP_DIGITS) {
        memcpy(digits, text, STAMP_DIGITS);
        digits[STAMP_DIGITS] = 0;
        int64_t stamp_ns = atoll(digits);
        if (stamp_ns <= a->last_stamp_ns) a->failed = 1; /* out of order, or twice */
        a->last_stamp_ns = stamp_ns;
        a->tokens++;
        tell(who, stamp_ns);
    }
}

static inline void event_line(struct answer *a, on_token *tell, void *who) {
    static const char member[] = "\"content\":\"";
    a->event[a->event_length] = 0;
    a->event_length = 0;
    char *content = strstr(a->event, member);
    if (strcmp(a->event, "data: [DONE]") == 0 || strcmp(a->event, "event: done") == 0) a->done = 1;
    else if (strstr(a->event, "\"error\"") || strcmp(a->event, "event: error") == 0) a->failed = 1;
    else if (content) read_stamps(a, content + sizeof member - 1, tell, who);
    else if (strncmp(a->event, "data: ", 6) == 0) read_stamps(a, a->event + 6, tell, who);
}

static inline void head_line(struct answer *a) {
    if (strncmp(a->line, "HTTP/1.", 7) == 0) a->status = atoi(a->line + 9);
    else if (strncasecmp(a->line, "content-length:", 15) == 0) a->left = atol(a->line + 15);
    else if (strncasecmp(a->line, "transfer-encoding: chunked", 26) == 0) a->chunked = 1;
}

/* A line of HTTP's own is complete; returns whether the answer has ended with it. */
static inline int http_line(struct answer *a) {
    int is_empty = a->line_length == 0;
    a->line[a->line_length] = 0;
    a->line_length = 0;
    switch (a->part) {
    case HEAD:
        if (!is_empty) head_line(a);
        else a->part = a->chunked ? SIZE : WHOLE;
        return is_empty && !a->chunked && a->left == 0;
    case SIZE:
        a->left = strtol(a->line, NULL, 16);
        a->part = a->left ? CHUNK : TRAILER;
        return 0;
    case AFTER_CHUNK:
        if (!is_empty) a->failed = 1;
        a->part = SIZE;
        return 0;
    default:
        return is_empty;
    }
}

static inline void body_byte(struct answer *a, char byte, on_token *tell, void *who) {
    a->left--;
    if (byte == '\n') event_line(a, tell, who);
    else if (a->event_length < LINE_BYTES - 1) a->event[a->event_length++] = byte;
}

/* Takes one byte; returns whether the answer has ended with it. */
static inline int take_byte(struct answer *a, char byte, on_token *tell, void *who) {
    if (a->part == CHUNK || a->part == WHOLE) {
        body_byte(a, byte, tell, who);
        if (a->left) return 0;
        a->part = AFTER_CHUNK;
        return !a->chunked;
    }
    if (byte == '\n') return http_line(a);
    if (byte != '\r' && a->line_length < LINE_BYTES - 1) a->line[a->line_length++] = byte;
    return 0;
}
