/* An HTTP load client that costs next to nothing: ready-made requests in, latencies as JSON out.
 *
 *   schedule --port P --requests FILE [--connections N] [--seconds S] [--rate R] [--once] [--acks FILE]
 *
 * FILE holds ready requests, head and body: for each a little-endian u32 length and the bytes.
 * With --rate R request i is due at start + i/R, and its latency counts from that moment, so that a server
 * which stalls can't hide it by making the client wait (coordinated omission). Without it each connection
 * sends its next request as soon as it has its answer. --once: every request once, then stop.
 * SIGTERM ends it early, with its report. --acks writes a line "nanoseconds index status" for each answer. One thread, epoll, Content-Length answers only.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_MAX (8u << 20)

typedef struct { const char *bytes; uint32_t size; } Request;

typedef struct {
    int fd;
    int busy;               /* a request is under way */
    uint64_t due_ns;        /* when it should have begun */
    uint64_t index;         /* its number, counted from the start */
    const Request *request;
    size_t sent;
    char *answer;
    size_t got, head, body; /* bytes read; size of the head once it is whole, of the body as announced */
} Connection;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void die(const char *what) { perror(what); exit(1); }

static Request *requests;
static size_t request_count;
static uint64_t *latencies;
static size_t latency_count, latency_room;
static uint64_t failures, broken, next_index;
static FILE *acks;
static int port, poller;
static volatile sig_atomic_t stopped;

static void stop(int number) { (void)number; stopped = 1; }

static void load(const char *path) {
    int fd = open(path, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0) die(path);
    const char *base = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (base == MAP_FAILED) die("mmap");
    size_t room = 0;
    for (off_t at = 0; at + 4 <= st.st_size;) {
        uint32_t size;
        memcpy(&size, base + at, 4);
        if (request_count == room) {
            room = room ? room * 2 : 1024;
            requests = realloc(requests, room * sizeof *requests);
            if (!requests) die("realloc");
        }
        requests[request_count++] = (Request){base + at + 4, size};
        at += 4 + (off_t)size;
    }
    if (!request_count) { fprintf(stderr, "%s holds no request\n", path); exit(1); }
}

static void open_connection(Connection *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e) < 0) die("epoll_ctl");
}

static void want(Connection *c, uint32_t events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void push(Connection *c) {
    while (c->sent < c->request->size) {
        ssize_t n = send(c->fd, c->request->bytes + c->sent, c->request->size - c->sent, MSG_NOSIGNAL);
        if (n > 0) { c->sent += (size_t)n; continue; }
        if (n < 0 && errno == EAGAIN) { want(c, EPOLLIN | EPOLLOUT); return; }
        return; /* the read side will see why */
    }
    want(c, EPOLLIN);
}

static void begin(Connection *c, uint64_t due_ns) {
    c->busy = 1;
    c->due_ns = due_ns;
    c->index = next_index++;
    c->request = &requests[c->index % request_count];
    c->sent = c->got = c->head = c->body = 0;
    push(c);
}

static void record(Connection *c, int status) {
    uint64_t at = now_ns();
    if (latency_count == latency_room) {
        latency_room = latency_room ? latency_room * 2 : 1 << 16;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
        if (!latencies) die("realloc");
    }
    latencies[latency_count++] = at - c->due_ns;
    if (status != 200) failures++;
    if (acks) fprintf(acks, "%llu %llu %d\n", (unsigned long long)at, (unsigned long long)c->index, status);
    c->busy = 0;
}

/* 1: a whole answer is there; 0: not yet; -1: the connection is gone. */
static int pull(Connection *c) {
    for (;;) {
        ssize_t n = recv(c->fd, c->answer + c->got, ANSWER_MAX - c->got, 0);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) return -1;
        c->got += (size_t)n;
        if (!c->head) {
            char *end = memmem(c->answer, c->got, "\r\n\r\n", 4);
            if (!end) continue;
            c->head = (size_t)(end - c->answer) + 4;
            *end = 0;
            char *field = strcasestr(c->answer, "\r\ncontent-length:");
            c->body = field ? strtoul(field + 17, NULL, 10) : 0;
        }
        if (c->got >= c->head + c->body) return 1;
        if (c->got == ANSWER_MAX) { fprintf(stderr, "answer too large\n"); exit(1); }
    }
}

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static double percentile_ms(double share) {
    if (!latency_count) return 0;
    size_t at = (size_t)(share * (double)(latency_count - 1) + 0.5);
    return (double)latencies[at] / 1e6;
}

static void report(double seconds) {
    qsort(latencies, latency_count, sizeof *latencies, by_value);
    printf("{\"requests\": %zu, \"failures\": %llu, \"broken\": %llu, \"seconds\": %.4f, \"per_s\": %.2f, "
           "\"p50_ms\": %.4f, \"p90_ms\": %.4f, \"p99_ms\": %.4f, \"p999_ms\": %.4f, \"max_ms\": %.4f}\n",
           latency_count, (unsigned long long)failures, (unsigned long long)broken, seconds,
           (double)latency_count / seconds, percentile_ms(.5), percentile_ms(.9), percentile_ms(.99),
           percentile_ms(.999), percentile_ms(1));
}

int main(int argc, char **argv) {
    int connections = 1, once = 0;
    double seconds = 1e9, rate = 0;
    static struct option options[] = {
        {"port", 1, 0, 'p'}, {"requests", 1, 0, 'f'}, {"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'},
        {"rate", 1, 0, 'r'}, {"once", 0, 0, 'o'},     {"acks", 1, 0, 'a'},        {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == 'p') port = atoi(optarg);
        else if (o == 'f') load(optarg);
        else if (o == 'c') connections = atoi(optarg);
        else if (o == 's') seconds = atof(optarg);
        else if (o == 'r') rate = atof(optarg);
        else if (o == 'o') once = 1;
        else if (o == 'a') { if (!(acks = fopen(optarg, "w"))) die(optarg); }
        else return 2;
    }
    if (!port || !request_count || connections < 1) { fprintf(stderr, "--port and --requests are needed\n"); return 2; }

    signal(SIGTERM, stop);
    poller = epoll_create1(0);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event te = {.events = EPOLLIN, .data.ptr = NULL};
    if (poller < 0 || timer < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, timer, &te) < 0) die("epoll");
    Connection *all = calloc((size_t)connections, sizeof *all);
    for (int i = 0; i < connections; i++) {
        if (!(all[i].answer = malloc(ANSWER_MAX))) die("malloc");
        open_connection(&all[i]);
    }

    uint64_t start = now_ns(), end = start + (uint64_t)(seconds * 1e9), total = once ? request_count : UINT64_MAX;
    int under_way = 0;
    for (;;) {
        uint64_t at = now_ns();
        int open = !stopped && at < end && next_index < total;
        for (int i = 0; open && i < connections; i++) {
            if (all[i].busy) continue;
            uint64_t due = rate > 0 ? start + (uint64_t)((double)next_index / rate * 1e9) : at;
            if (due > at) break;
            begin(&all[i], due);
            under_way++;
            open = next_index < total;
        }
        if (!open && !under_way) break;
        if (stopped && at < end) end = at;
        if (at > end + 30000000000ull) { fprintf(stderr, "%d answers never came\n", under_way); broken += (uint64_t)under_way; break; }
        /* Wake when the next request is due, and now and then in any case, to see the end. */
        uint64_t wake = at + 100000000ull;
        if (open && rate > 0 && under_way < connections) {
            uint64_t due = start + (uint64_t)((double)next_index / rate * 1e9);
            if (due < wake) wake = due;
        }
        struct itimerspec alarm = {.it_value = {(time_t)(wake / 1000000000ull), (long)(wake % 1000000000ull)}};
        timerfd_settime(timer, TFD_TIMER_ABSTIME, &alarm, NULL);
        struct epoll_event events[64];
        int n = epoll_wait(poller, events, 64, 200);
        for (int i = 0; i < n; i++) {
            Connection *c = events[i].data.ptr;
            if (!c) { uint64_t ticks; if (read(timer, &ticks, sizeof ticks) < 0) {} continue; }
            if ((events[i].events & EPOLLOUT) && c->busy) push(c);
            if (!(events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))) continue;
            int state = c->busy ? pull(c) : -1;
            if (state > 0) { under_way--; record(c, atoi(c->answer + 9)); }
            if (state < 0) {
                if (c->busy) { under_way--; broken++; record(c, 0); }
                close(c->fd);
                open_connection(c);
            }
        }
    }
    report((double)(now_ns() - start) / 1e9);
    if (acks) fclose(acks);
    return 0;
}
