/* Forks while other threads make and end teams of OpenMP; the children step. Prints how many
 * children did not get on, or did not step every element, and the most threads that one had. */
#define _DEFAULT_SOURCE
#include "fused_adamw.h"

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIZE = 1 << 22, FORKS = 20, STEPPERS = 2, SMALL = 1 << 16, SECONDS = 30 };

static fused_adamw_scalars scalars;
static volatile int done;

static fused_adamw_tensor zeros(ptrdiff_t size)
{
    float *memory = calloc((size_t)size * 4, sizeof *memory);
    return (fused_adamw_tensor){.params = memory,
                                .grads = memory + size,
                                .m = memory + 2 * size,
                                .v = memory + 3 * size,
                                .size = size,
                                .scalars = &scalars};
}

static int is_stepped(const fused_adamw_tensor *tensor)
{
    const float *params = tensor->params;
    ptrdiff_t i = 0;
    while (i < tensor->size && params[i] != 0)
        i++;
    return i == tensor->size;
}

static void *make_teams(void *unused)
{
    const fused_adamw_tensor tensor = zeros(SMALL);
    for (int i = 0; !done; i++)
        fused_adamw_step(fused_adamw_find_isa(NULL), &tensor, 1, 2 + i % 3);
    return unused;
}

static int count_threads(void)
{
    DIR *tasks = opendir("/proc/self/task");
    int found = -2; /* . and .. */
    while (tasks && readdir(tasks))
        found++;
    return found;
}

int main(void)
{
    const fused_adamw_hyperparams hyperparams = {1e-3, 0.9, 0.999, 1e-8, 0.01, 0.0};
    pthread_t steppers[STEPPERS];
    int failed = 0, most = 0;
    fused_adamw_init();
    fused_adamw_derive_scalars(&hyperparams, FUSED_ADAMW_FLOAT32, 1, &scalars);
    fused_adamw_finish_scalars(&scalars, 1, 1, 0);
    const fused_adamw_tensor tensor = zeros(SIZE);
    for (ptrdiff_t i = 0; i < tensor.size; i++)
        ((float *)tensor.grads)[i] = 1;
    for (int i = 0; i < STEPPERS; i++)
        pthread_create(&steppers[i], NULL, make_teams, NULL);
    for (int i = 0; i < FORKS; i++) {
        int status;
        const pid_t child = fork();
        if (child == 0) {
            alarm(SECONDS);
            fused_adamw_step(fused_adamw_find_isa(NULL), &tensor, 1,
                             1 + fused_adamw_default_threads(0, 0));
            const int threads = count_threads(); /* soon: those of the step are about to end */
            _exit(is_stepped(&tensor) ? threads : 0);
        }
        const int exited = waitpid(child, &status, 0) == child && WIFEXITED(status);
        const int threads = exited ? WEXITSTATUS(status) : 0;
        failed += threads == 0;
        if (threads > most)
            most = threads;
    }
    done = 1;
    for (int i = 0; i < STEPPERS; i++)
        pthread_join(steppers[i], NULL);
    printf("%d %d\n", failed, most);
    return 0;
}
