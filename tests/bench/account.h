/* What /proc says that processes and the machine have used. */
#pragma once
#include "common.h"
#include <dirent.h>

#define MOST_PROCESSES 16

struct account {
    int64_t at_ns, cpu_ns, waited_ns; /* of the processes: on a core, and waiting for one */
    long steal_ticks, all_ticks;      /* of the machine */
};

static pid_t counted[MOST_PROCESSES];
static int counted_length;

static inline void count_processes(char *list) {
    for (char *pid = strtok(list, ","); pid && counted_length < MOST_PROCESSES; pid = strtok(NULL, ","))
        counted[counted_length++] = atoi(pid);
}

static inline void add_thread(struct account *account, int pid, const char *thread) {
    char path[128];
    long cpu_ns, waited_ns;
    snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", pid, thread);
    FILE *file = fopen(path, "re");
    if (file && fscanf(file, "%ld %ld", &cpu_ns, &waited_ns) == 2) {
        account->cpu_ns += cpu_ns;
        account->waited_ns += waited_ns;
    }
    if (file) fclose(file);
}

static inline void add_process(struct account *account, int pid) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *threads = opendir(path);
    if (!threads) die(path);
    for (struct dirent *each; (each = readdir(threads));)
        if (*each->d_name != '.') add_thread(account, pid, each->d_name);
    closedir(threads);
}

static inline void add_machine(struct account *account) {
    long ticks[8] = {0};
    FILE *file = fopen("/proc/stat", "re");
    if (!file || fscanf(file, "cpu %ld %ld %ld %ld %ld %ld %ld %ld", ticks, ticks + 1, ticks + 2, ticks + 3, ticks + 4,
                        ticks + 5, ticks + 6, ticks + 7) != 8)
        die("/proc/stat");
    fclose(file);
    account->steal_ticks = ticks[7];
    for (int i = 0; i < 8; i++) account->all_ticks += ticks[i];
}

static inline struct account take_account(void) {
    struct account account = {.at_ns = now_ns()};
    for (int i = 0; i < counted_length; i++) add_process(&account, counted[i]);
    add_machine(&account);
    return account;
}

/* KiB of memory of the counted processes: resident, and what is theirs alone. */
static inline void take_memory(long *resident_kib, long *own_kib) {
    *resident_kib = *own_kib = 0;
    for (int i = 0; i < counted_length; i++) {
        char path[64], line[256];
        long kib;
        snprintf(path, sizeof path, "/proc/%d/smaps_rollup", counted[i]);
        FILE *file = fopen(path, "re");
        while (file && fgets(line, sizeof line, file)) {
            if (sscanf(line, "Rss: %ld", &kib) == 1) *resident_kib += kib;
            if (sscanf(line, "Private_Clean: %ld", &kib) == 1 || sscanf(line, "Private_Dirty: %ld", &kib) == 1)
                *own_kib += kib;
        }
        if (file) fclose(file);
    }
}
