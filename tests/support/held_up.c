// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Preloaded into a gateway, holds up threads so that what others may do in between comes to pass: one that
 * has registered a UDP socket for some milliseconds at each of the next locks that it lets go of, and the
 * clock that repeats a flight of DTLS, behind each packet that it sends. A packet that begins with SLOW takes
 * its time to be read.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TIMES = 8, MICROSECONDS = 5000, CLOCK_MICROSECONDS = 300000, DTLS_HANDSHAKE = 22 };
enum { SLOW = 255, SLOW_MICROSECONDS = 200 };

static __thread int times, reads;

int epoll_ctl(int queue, int operation, int descriptor, struct epoll_event *event)
{
    static int (*real)(int, int, int, struct epoll_event *);
    if (!real)
        real = dlsym(RTLD_NEXT, "epoll_ctl");
    int type = 0;
    socklen_t size = sizeof type;
    getsockopt(descriptor, SOL_SOCKET, SO_TYPE, &type, &size);
    times = operation == EPOLL_CTL_ADD && type == SOCK_DGRAM ? TIMES : 0;
    return real(queue, operation, descriptor, event);
}

int pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    static int (*real)(pthread_mutex_t *);
    if (!real)
        real = dlsym(RTLD_NEXT, "pthread_mutex_unlock");
    int status = real(mutex);
    if (times) {
        --times;
        usleep(MICROSECONDS);
    }
    return status;
}

ssize_t recvfrom(int socket, void *data, size_t size, int flags, struct sockaddr *from, socklen_t *length)
{
    static ssize_t (*real)(int, void *, size_t, int, struct sockaddr *, socklen_t *);
    if (!real)
        real = dlsym(RTLD_NEXT, "recvfrom");
    reads = 1;
    ssize_t got = real(socket, data, size, flags, from, length);
    if (got > 0 && *(const unsigned char *)data == SLOW)
        usleep(SLOW_MICROSECONDS);
    return got;
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length)
{
    static ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "sendto");
    ssize_t sent = real(socket, data, size, flags, to, length);
    if (!reads && size && *(const unsigned char *)data == DTLS_HANDSHAKE)
        usleep(CLOCK_MICROSECONDS);
    return sent;
}
