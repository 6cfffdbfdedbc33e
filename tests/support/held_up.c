// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Preloaded into a gateway, holds up a thread that has registered a UDP socket for some milliseconds at
 * each of the next locks that it lets go of: what others may do in between comes to pass.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TIMES = 8, MICROSECONDS = 5000 };

static __thread int times;

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
