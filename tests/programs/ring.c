/* Ranks that pass a token around a ring, and add up what all have, step by step. */
#include <mpi.h>
#include <stdio.h>
#include <time.h>

int main(int count, char **arguments)
{
	int rank, size;
	MPI_Init(&count, &arguments);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	static double large[50000];
	for (int step = 0; step < 300; step++) {
		long token = step, sum = 0, mine = (long)(rank + 1) * step;
		if (rank == 0) {
			MPI_Send(&token, 1, MPI_LONG, 1 % size, 0, MPI_COMM_WORLD);
			MPI_Recv(&token, 1, MPI_LONG, size - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		} else {
			MPI_Recv(&token, 1, MPI_LONG, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			token += rank;
			MPI_Send(&token, 1, MPI_LONG, (rank + 1) % size, 0, MPI_COMM_WORLD);
		}
		MPI_Allreduce(&mine, &sum, 1, MPI_LONG, MPI_SUM, MPI_COMM_WORLD);
		/* Large enough to be read by one process out of the memory of another. */
		for (int i = 0; i < 50000; i++)
			large[i] = rank == step % size ? i + step : 0;
		MPI_Bcast(large, 50000, MPI_DOUBLE, step % size, MPI_COMM_WORLD);
		double total = 0;
		for (int i = 0; i < 50000; i++)
			total += large[i];
		if (rank == 0) {
			printf("%d %ld %ld %.0f\n", step, token, sum, total);
			fflush(stdout);
		}
		struct timespec span = { 0, 10000000 };
		nanosleep(&span, NULL);
	}
	MPI_Finalize();
	return 0;
}
