/* Adds a line to a file again and again, opening and closing it each time, and tells the file's length in
   another one that stays open.

   append STEPS MICROSECONDS_BETWEEN */

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int count, char **words)
{
    long steps = count > 2 ? atol(words[1]) : 0, pause = count > 2 ? atol(words[2]) : 0;
    unsigned long state = 1;
    FILE *lengths = fopen("lengths.log", "w");
    if (!lengths)
        return 2;
    for (long step = 0; step < steps; step++) {
        struct stat facts;
        FILE *results = fopen("results.csv", "a");
        if (!results)
            return 3;
        state = state * 6364136223846793005UL + 1442695040888963407UL;
        fprintf(results, "%ld,%lu\n", step, state >> 33);
        if (fclose(results) != 0 || stat("results.csv", &facts) != 0)
            return 4;
        fprintf(lengths, "%ld %ld\n", step, (long)facts.st_size);
        usleep(pause);
    }
    printf("%ld lines\n", steps);
    return fclose(lengths) == 0 ? 0 : 5;
}
