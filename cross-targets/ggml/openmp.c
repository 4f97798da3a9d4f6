/* The part of OpenMP's run-time library that ggml's compute threads use, handed on to the program's own team of threads
 * (daemon/llm/src/llama/team.rs). Compiled into libggml-base.so, which the program and every processor variant share, so that
 * neither libgomp nor libomp is needed. The program says at its start who does the work; until then a team has one member.
 *
 * Both compilers are served: gcc calls GOMP_..., clang (zig) __kmpc_... Complete for `parallel num_threads(n)`, `single` and
 * `barrier`, which is what ggml-cpu.c writes; a variant that used more would not load, and the build's check says so. */

#include <stdarg.h>
#include <stddef.h>

#define PUBLIC __attribute__((visibility("default")))

typedef void body_fn(void *data);

struct vademecum_team {
    void (*parallel)(body_fn *body, void *data, unsigned threads, unsigned flags);
    void (*barrier)(void);
    int (*number)(void);
    int (*members)(void);
};

static void alone_parallel(body_fn *body, void *data, unsigned threads, unsigned flags) {
    (void) threads;
    (void) flags;
    body(data);
}
static void alone_barrier(void) {}
static int alone_number(void) { return 0; }
static int alone_members(void) { return 1; }

static struct vademecum_team team = { alone_parallel, alone_barrier, alone_number, alone_members };

/* Called once by the program, before anything is computed. */
PUBLIC void vademecum_team(const struct vademecum_team *ours) { team = *ours; }

PUBLIC int omp_get_thread_num(void) { return team.number(); }
PUBLIC int omp_get_num_threads(void) { return team.members(); }
PUBLIC int omp_get_max_threads(void) { return 1; }

/* --- gcc ------------------------------------------------------------------------------------------------------------ */

PUBLIC void GOMP_parallel(body_fn *body, void *data, unsigned threads, unsigned flags) {
    team.parallel(body, data, threads, flags);
}
PUBLIC void GOMP_barrier(void) { team.barrier(); }
PUBLIC _Bool GOMP_single_start(void) { return team.number() == 0; }

/* --- clang ---------------------------------------------------------------------------------------------------------- */

typedef void microtask_fn(int *number, int *bound, ...);
enum { MOST = 8 };

struct region {
    microtask_fn *task;
    int count;
    void *captured[MOST];
};

static _Thread_local int requested;

PUBLIC int __kmpc_global_thread_num(void *where) {
    (void) where;
    return team.number();
}
PUBLIC void __kmpc_push_num_threads(void *where, int number, int threads) {
    (void) where;
    (void) number;
    requested = threads;
}
PUBLIC int __kmpc_single(void *where, int number) {
    (void) where;
    (void) number;
    return team.number() == 0;
}
PUBLIC void __kmpc_end_single(void *where, int number) {
    (void) where;
    (void) number;
}
PUBLIC void __kmpc_barrier(void *where, int number) {
    (void) where;
    (void) number;
    team.barrier();
}

/* The compiler's outlined function takes two numbers and then what it captured, each as wide as a pointer. It is no variadic
 * function, so it is called with the very number of arguments. */
static void run(void *data) {
    struct region *r = data;
    void **c = r->captured;
    int number = team.number(), bound = 0;
    void *task = (void *) r->task;
#define N int *, int *
#define P void *
    switch (r->count) {
        case 0: ((void (*)(N)) task)(&number, &bound); break;
        case 1: ((void (*)(N, P)) task)(&number, &bound, c[0]); break;
        case 2: ((void (*)(N, P, P)) task)(&number, &bound, c[0], c[1]); break;
        case 3: ((void (*)(N, P, P, P)) task)(&number, &bound, c[0], c[1], c[2]); break;
        case 4: ((void (*)(N, P, P, P, P)) task)(&number, &bound, c[0], c[1], c[2], c[3]); break;
        case 5: ((void (*)(N, P, P, P, P, P)) task)(&number, &bound, c[0], c[1], c[2], c[3], c[4]); break;
        case 6: ((void (*)(N, P, P, P, P, P, P)) task)(&number, &bound, c[0], c[1], c[2], c[3], c[4], c[5]); break;
        case 7: ((void (*)(N, P, P, P, P, P, P, P)) task)(&number, &bound, c[0], c[1], c[2], c[3], c[4], c[5], c[6]); break;
        default: ((void (*)(N, P, P, P, P, P, P, P, P)) task)(&number, &bound, c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]);
    }
}

PUBLIC void __kmpc_fork_call(void *where, int count, microtask_fn *task, ...) {
    (void) where;
    struct region region = { task, count, { NULL } };
    va_list list;
    if (count > MOST) {
        __builtin_trap(); /* a ggml that captures more: found by the first test that computes anything */
    }
    va_start(list, task);
    for (int i = 0; i < count; i++) {
        region.captured[i] = va_arg(list, void *);
    }
    va_end(list);
    int threads = requested;
    requested = 0;
    team.parallel(run, &region, threads > 0 ? (unsigned) threads : 1, 0);
}
