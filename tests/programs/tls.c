/* Threads with thread-local storage, meant to be linked statically. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { THREADS = 4, STEPS = 400 };

static __thread uint64_t state = 88172645463325252;
static __thread char name[32];
static pthread_barrier_t barrier;
static uint64_t results[THREADS];
static FILE *output;

static void *work(void *argument)
{
	long index = (long)argument;
	state += (uint64_t)index;
	snprintf(name, sizeof name, "thread %ld", index);
	for (int step = 0; step < STEPS; step++) {
		for (int i = 0; i < 1500000; i++) {
			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
		}
		results[index] = state;
		if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) {
			uint64_t sum = 0;
			for (int i = 0; i < THREADS; i++)
				sum = sum * 31 + results[i];
			fprintf(output, "step %d: %016lx\n", step, sum);
			fflush(output);
		}
		pthread_barrier_wait(&barrier);
	}
	results[index] ^= (uint64_t)name[7];
	return NULL;
}

int main(void)
{
	pthread_t threads[THREADS];
	output = fopen("output.tls", "w");
	if (!output)
		return 1;
	pthread_barrier_init(&barrier, NULL, THREADS);
	for (long i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work, (void *)i);
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < THREADS; i++)
		printf("%d %016lx\n", i, results[i]);
	return fclose(output);
}
