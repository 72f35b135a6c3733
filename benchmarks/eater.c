/* A worker that leaks memory at a steady rate, and keeps a record of it that outlives the worker.
 *
 *     eater RECORD GO RATE LARGEST [polite]
 *
 * It begins when a byte can be read from the FIFO GO, takes RATE bytes a second (0: all it can get) up to
 * LARGEST bytes, and stays.  A polite one stops eating at SIGTERM, writes down what its cgroup says, and
 * ends with status 0.  Compiled as a shared library, `eat()` does the same inside another program.
 */
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (256L << 10)
#define ENTRIES 4096

struct record {
    long long pid;
    long long asked; /* when SIGTERM came; all times are nanoseconds of CLOCK_MONOTONIC */
    long long peak, oom_kill, oom; /* memory.peak and memory.events at the end; -1: no cgroup */
    long long chunks;
    long long at[ENTRIES]; /* when so many chunks had been written to */
};

static struct record *record;

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void asked(int number)
{
    (void)number;
    record->asked = now();
}

/* Return the number that follows `key` in a file of our cgroup, or -1. */
static long long of_cgroup(const char *name, const char *key)
{
    char line[PATH_MAX], path[2 * PATH_MAX] = "", word[64];
    long long value, found = -1;
    FILE *file = fopen("/proc/self/cgroup", "r");
    while (file && fgets(line, sizeof line, file))
        if (!strncmp(line, "0::", 3)) {
            line[strcspn(line, "\n")] = 0;
            snprintf(path, sizeof path, "/sys/fs/cgroup%s/%s", line + 3, name);
        }
    if (file)
        fclose(file);
    if (!(file = fopen(path, "r")))
        return -1;
    if (!*key) {
        if (fscanf(file, "%lld", &found) != 1)
            found = -1;
    } else {
        while (fscanf(file, "%63s %lld", word, &value) == 2)
            if (!strcmp(word, key))
                found = value;
    }
    fclose(file);
    return found;
}

int eat(const char *path, const char *go, double rate, long long largest)
{
    int file = open(path, O_RDWR | O_CREAT, 0666);
    if (file < 0 || ftruncate(file, sizeof *record) < 0)
        return 1;
    record = mmap(NULL, sizeof *record, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (record == MAP_FAILED)
        return 1;
    record->pid = getpid();

    char byte;
    int gate = open(go, O_RDONLY);
    if (gate < 0 || read(gate, &byte, 1) != 1)
        return 1;
    close(gate);

    long long began = now(), count = largest / CHUNK;
    if (count > ENTRIES)
        count = ENTRIES;
    for (long long i = 0; i < count && !record->asked; i++) {
        char *chunk = mmap(NULL, CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (chunk == MAP_FAILED)
            return 1;
        for (long page = 0; page < CHUNK; page += 4096)
            chunk[page] = 1;
        record->at[i] = now();
        record->chunks = i + 1;
        if (rate > 0) {
            long long due = began + (long long)((i + 1) * CHUNK / rate * 1e9), left = due - now();
            if (left > 100000) /* shorter sleeps take longer than they should */
                nanosleep(&(struct timespec){left / 1000000000, left % 1000000000}, NULL);
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    int polite = argc > 5;
    record = calloc(1, sizeof *record); /* until there is the real one */
    if (polite)
        sigaction(SIGTERM, &(struct sigaction){.sa_handler = asked}, NULL);
    if (eat(argv[1], argv[2], atof(argv[3]), atoll(argv[4])))
        return 1;
    while (!polite)
        pause();
    while (!record->asked)
        usleep(1000);
    record->peak = of_cgroup("memory.peak", "");
    record->oom_kill = of_cgroup("memory.events", "oom_kill");
    record->oom = of_cgroup("memory.events", "oom");
    return 0;
}
