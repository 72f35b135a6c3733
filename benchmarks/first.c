/* The smallest worker: its first instructions say when it began, and then it does nothing.
 *
 *     first [FIFO]
 *
 * "PID NANOSECONDS" of CLOCK_MONOTONIC goes into FIFO, or into $BENCH_FIFO.  With $BENCH_EXEC it then
 * becomes that program, so that the beginning of any program can be told.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const char *fifo = argc > 1 ? argv[1] : NULL, *next = getenv("BENCH_EXEC");
    if (getenv("BENCH_FIFO"))
        fifo = getenv("BENCH_FIFO");
    int file = fifo ? open(fifo, O_WRONLY) : -1;
    dprintf(file, "%d %lld\n", (int)getpid(), now.tv_sec * 1000000000LL + now.tv_nsec);
    close(file);
    if (next) {
        argv[0] = (char *)next; /* Python finds its own installation by it */
        execv(next, argv);
        return 127;
    }
    for (;;)
        pause();
}
