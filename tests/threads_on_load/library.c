/* A library that starts a thread when it is loaded, as OpenBLAS does: unless a variable says that it
   is to have one thread only, which it reads then and never again. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *wait_for_work(void *nothing)
{
    for (;;)
        pause();
    return nothing;
}

__attribute__((constructor)) static void start(void)
{
    const char *most = getenv("OPENBLAS_NUM_THREADS");
    pthread_t thread;
    if (most && strcmp(most, "1") == 0)
        return;
    if (pthread_create(&thread, NULL, wait_for_work, NULL) == 0)
        pthread_setname_np(thread, "blas-worker");
}
