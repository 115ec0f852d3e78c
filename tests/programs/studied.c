/* Threads that stand in functions whose names a debugger shows, with something to be found in memory of
 * every kind. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int answer;
char *on_the_heap;
char *in_shared_memory;

static void *stand_aside(void *argument)
{
	for (volatile int own_number = 7; own_number == 7;)
		pause();
	return argument;
}

static void stand_here(int depth)
{
	if (depth > 0)
		stand_here(depth - 1);
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}

int main(void)
{
	pthread_t thread;
	answer = 42;
	on_the_heap = strdup("from the heap");
	in_shared_memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	strcpy(in_shared_memory, "from shared memory");
	if (pthread_create(&thread, NULL, stand_aside, NULL) != 0)
		return 1;
	stand_here(3);
}
