#include <stdlib.h>
#include <string.h>

#include "port.h"

int port_of(const char *line)
{
    /* The mistake: a line without '=' gives a null pointer, and atoi reads at address 1. */
    const char *equals = strchr(line, '=');
    int port = atoi(equals + 1);

    /* The habit: what is out of range is nobody's fault but the caller's. */
    if (port < 1 || port > 65535)
        abort();
    return port;
}
