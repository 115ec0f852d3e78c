/* The job that is measured: so much memory, so many threads and processes, and somebody who never
 * looks away from the clock.
 *
 *   job MIB PATTERN THREADS PROCESSES WORKERS
 *
 * PATTERN is random, zeros (nine pages of ten are zero) or text. WORKERS threads count how much work
 * they get done. It takes orders from a file `order` in its directory and answers in `answer`; both
 * appear whole, by rename. Figures are kept in memory, so that they survive a restore, and times that
 * have to be compared with others' are those of CLOCK_REALTIME.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MOST_WORKERS 64

static char *memory;
static size_t pages;

/* The longest time between two readings of the clock, and when it ended. */
static volatile int64_t longest_gap, gap_end;
static volatile uint64_t readings;

struct worker {
	volatile uint64_t done;
	char padding[56];
};
static struct worker workers[MOST_WORKERS];

static int64_t clock_now(clockid_t clock)
{
	struct timespec time;
	clock_gettime(clock, &time);
	return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void nap(long nanoseconds)
{
	struct timespec span = { 0, nanoseconds };
	nanosleep(&span, NULL);
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void fill_page(uint64_t *words, const char *pattern, uint64_t *state, size_t number)
{
	if (!strcmp(pattern, "zeros") && number % 10)
		return;
	if (!strcmp(pattern, "text")) {
		static const char *vocabulary[] = { "the ", "energy ", "of ", "step ", "and ", "converged ",
						    "0.0", "residual ", "iteration ", "at ", "1.2345", "\n" };
		char *text = (char *)words;
		for (size_t at = 0; at + 16 < PAGE;) {
			const char *word = vocabulary[next_random(state) % 12];
			memcpy(text + at, word, strlen(word));
			at += strlen(word);
		}
		return;
	}
	for (size_t i = 0; i < PAGE / sizeof *words; i++)
		words[i] = next_random(state);
}

static void *watch(void *unused)
{
	int64_t last = clock_now(CLOCK_REALTIME);
	for (;;) {
		int64_t time = clock_now(CLOCK_REALTIME);
		if (time - last > longest_gap) {
			longest_gap = time - last;
			gap_end = time;
		}
		last = time;
		readings++;
	}
	return unused;
}

/* Waits until the clock has been read again, after whatever has kept this process from it. */
static void await_reading(void)
{
	for (uint64_t seen = readings; readings < seen + 2;)
		nap(100000);
}

static void *work(void *argument)
{
	struct worker *own = argument;
	uint64_t state = 88172645463325252u;
	for (;;) {
		for (int i = 0; i < 1000; i++)
			next_random(&state);
		own->done += state != 0;
	}
	return NULL;
}

static void *idle(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void start(void *(*body)(void *), void *argument)
{
	pthread_t thread;
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 64 << 10);
	if (pthread_create(&thread, &attributes, body, argument))
		die("pthread_create");
}

/* Writes to so many of every thousand pages, spread evenly, and says how many. */
static int64_t dirty(long permille, uint64_t value)
{
	int64_t written = 0;
	for (size_t page = 0; page < pages; page++) {
		if (page * 7919 % 1000 < (size_t)permille) {
			*(volatile uint64_t *)(memory + page * PAGE + 8) = value + page;
			written++;
		}
	}
	return written;
}

static int64_t touch(void)
{
	int64_t begun = clock_now(CLOCK_MONOTONIC);
	for (size_t page = 0; page < pages; page++)
		(void)*(volatile char *)(memory + page * PAGE);
	return clock_now(CLOCK_MONOTONIC) - begun;
}

static int64_t time_fork(void)
{
	int64_t begun = clock_now(CLOCK_MONOTONIC);
	pid_t child = fork();
	int64_t took = clock_now(CLOCK_MONOTONIC) - begun;
	if (child == 0)
		_exit(0);
	waitpid(child, NULL, 0);
	return took;
}

static void answer(int64_t first, int64_t second)
{
	char text[64];
	int fd = open("answer.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	int length = snprintf(text, sizeof text, "%ld %ld\n", (long)first, (long)second);
	if (fd < 0 || write(fd, text, (size_t)length) != length || close(fd) ||
	    rename("answer.new", "answer"))
		die("answer");
}

static void obey(const char *order)
{
	if (!strncmp(order, "gap", 3)) {
		await_reading();
		answer(longest_gap, gap_end);
		longest_gap = 0;
	} else if (!strncmp(order, "dirty ", 6)) {
		answer(dirty(strtol(order + 6, NULL, 10), (uint64_t)clock_now(CLOCK_REALTIME)), 0);
	} else if (!strncmp(order, "touch", 5)) {
		answer(touch(), 0);
	} else if (!strncmp(order, "fork", 4)) {
		answer(time_fork(), 0);
	} else if (!strncmp(order, "count", 5)) {
		uint64_t done = 0;
		for (int i = 0; i < MOST_WORKERS; i++)
			done += workers[i].done;
		answer((int64_t)done, clock_now(CLOCK_REALTIME));
	} else if (!strncmp(order, "quit", 4)) {
		answer(0, 0);
		_exit(0);
	}
}

int main(int count, char **words)
{
	if (count != 6)
		return 2;
	pages = strtoul(words[1], NULL, 10) << 8;
	if (pages) {
		memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED)
			die("mmap");
		madvise(memory, pages * PAGE, MADV_NOHUGEPAGE);
	}
	uint64_t state = 0x9e3779b97f4a7c15 ^ (uint64_t)getpid();
	for (size_t page = 0; page < pages; page++)
		fill_page((uint64_t *)(memory + page * PAGE), words[2], &state, page);
	for (long left = strtol(words[4], NULL, 10); left > 1; left--) {
		pid_t child = fork();
		if (child < 0)
			die("fork");
		if (child == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			idle(NULL);
		}
	}
	for (long left = strtol(words[3], NULL, 10); left > 1; left--)
		start(idle, NULL);
	for (long number = strtol(words[5], NULL, 10); number > 0 && number <= MOST_WORKERS; number--)
		start(work, &workers[number - 1]);
	start(watch, NULL);
	answer(0, 0);
	for (;;) {
		char order[64];
		nap(1000000);
		int fd = open("order", O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		ssize_t length = read(fd, order, sizeof order - 1);
		close(fd);
		if (length <= 0)
			continue;
		order[length] = 0;
		unlink("order");
		obey(order);
	}
}
