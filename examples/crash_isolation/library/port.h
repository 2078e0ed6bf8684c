#ifndef PORT_H
#define PORT_H

/* The port in a line such as "http=80". There is no other answer: a line without one ends the process. */
int port_of(const char *line);

#endif
