/* A library whose constructor opens a file (LIBRARY_LOG names it), and that mirrors all that goes to
   standard output and error into it. It opens the file as carelessly as libraries do: other programs
   inherit it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fd = -1;

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("LIBRARY_LOG");
    if (path)
        fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
}

ssize_t write(int to, const void *bytes, size_t count)
{
    if ((to == 1 || to == 2) && fd >= 0)
        syscall(SYS_write, fd, bytes, count);
    return syscall(SYS_write, to, bytes, count);
}
