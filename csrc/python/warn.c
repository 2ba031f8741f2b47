/* Warnings of the core and of plugins become records of Python's logger "asenpp".
 *
 * Whoever warns may hold any lock, and the GIL or not; so nothing of Python runs there. The text is kept, and the
 * interpreter is asked to come by: it calls `emit` in the main thread, once that has taken the GIL again. */
#include "core/fork.h"
#include "python/module.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

typedef struct text {
    struct text *next;
    char words[];
} text;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of the list; nothing is called with it held */
static text *first, **last = &first;

static void warnings_fork(asen_fork_phase phase)
{
    if (phase == ASEN_FORK_BEFORE)
        pthread_mutex_lock(&lock);
    else
        pthread_mutex_unlock(&lock);
}

static text *take_all(void)
{
    pthread_mutex_lock(&lock);
    text *all = first;
    first = NULL;
    last = &first;
    pthread_mutex_unlock(&lock);
    return all;
}

static void log_one(const char *words)
{
    PyObject *logging = PyImport_ImportModule("logging"), *logger = NULL, *done = NULL;
    PyObject *message = PyUnicode_DecodeUTF8(words, (Py_ssize_t)strlen(words), "replace");
    if (logging != NULL && message != NULL)
        logger = PyObject_CallMethod(logging, "getLogger", "s", "asenpp");
    if (logger != NULL)
        done = PyObject_CallMethod(logger, "warning", "sO", "%s", message);
    if (done == NULL)
        PyErr_WriteUnraisable(logger);
    Py_XDECREF(done);
    Py_XDECREF(logger);
    Py_XDECREF(message);
    Py_XDECREF(logging);
}

static int emit(void *unused)
{
    for (text *t = take_all(), *after; t != NULL; t = after) {
        after = t->next;
        log_one(t->words);
        free(t);
    }
    return 0;
}

static void keep(const char *words)
{
    size_t size = strlen(words) + 1;
    text *t = Py_IsInitialized() ? malloc(sizeof *t + size) : NULL;
    if (t == NULL)
        return;
    t->next = NULL;
    memcpy(t->words, words, size);
    pthread_mutex_lock(&lock);
    *last = t;
    last = &t->next;
    pthread_mutex_unlock(&lock);
    Py_AddPendingCall(emit, NULL); /* where its queue is full, the next warning brings this one along */
}

int asen_py_add_warn(PyObject *module)
{
    int status = asen_fork_protect(ASEN_FORK_WARNINGS, warnings_fork);
    if (status != ASEN_OK) {
        asen_py_raise(status);
        return -1;
    }
    asen_warn_set_handler(keep);
    return 0;
}
