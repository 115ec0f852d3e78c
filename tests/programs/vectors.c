/* Long loops that hold their state in AVX-512, AVX or SSE registers all the time. */
#include <immintrin.h>
#include <stdio.h>

enum { STEPS = 600, INNER = 1500000 };

__attribute__((target("avx512f"))) static void wide(double *memory)
{
	__m512d a = _mm512_loadu_pd(memory), b = _mm512_loadu_pd(memory + 8), c = _mm512_set1_pd(0.9999999);
	__mmask8 mask = 0xb5;
	for (int i = 0; i < INNER; i++) {
		a = _mm512_mask_fmadd_pd(a, mask, c, b);
		b = _mm512_permutex_pd(_mm512_mul_pd(b, c), 0x39);
	}
	_mm512_storeu_pd(memory, a);
	_mm512_storeu_pd(memory + 8, _mm512_add_pd(b, _mm512_set1_pd(0.001)));
}

__attribute__((target("avx2,fma"))) static void middle(double *memory)
{
	__m256d a = _mm256_loadu_pd(memory), b = _mm256_loadu_pd(memory + 4), c = _mm256_set1_pd(0.9999999);
	for (int i = 0; i < INNER; i++) {
		a = _mm256_fmadd_pd(a, c, b);
		b = _mm256_permute4x64_pd(_mm256_mul_pd(b, c), 0x39);
	}
	_mm256_storeu_pd(memory, a);
	_mm256_storeu_pd(memory + 4, _mm256_add_pd(b, _mm256_set1_pd(0.001)));
}

static void narrow(double *memory)
{
	for (int i = 0; i < INNER; i++)
		memory[0] = memory[0] * 0.9999999 + memory[1];
}

int main(void)
{
	double memory[16];
	for (int i = 0; i < 16; i++)
		memory[i] = i + 0.5;
	FILE *output = fopen("output.vectors", "w");
	if (!output)
		return 1;
	for (int step = 0; step < STEPS; step++) {
		if (__builtin_cpu_supports("avx512f"))
			wide(memory);
		else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
			middle(memory);
		else
			narrow(memory);
		fprintf(output, "%d", step);
		for (int i = 0; i < 16; i++)
			fprintf(output, " %a", memory[i]);
		fprintf(output, "\n");
		fflush(output);
	}
	return fclose(output);
}
