/* What ggml's processor code asks of OpenMP; openmp.c answers. zig brings no OpenMP of its own. */
#pragma once
#ifdef __cplusplus
extern "C" {
#endif
int omp_get_thread_num(void);
int omp_get_num_threads(void);
int omp_get_max_threads(void);
#ifdef __cplusplus
}
#endif
