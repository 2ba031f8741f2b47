/* The thread-local error message, and warnings: see status.h. */
#include "core/status.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char message[1024];

int asen_fail(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return code;
}

void asen_fail_prefix(const char *format, ...)
{
    char inner[sizeof message];
    memcpy(inner, message, sizeof message);
    va_list args;
    va_start(args, format);
    int n = vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (n < 0 || (size_t)n >= sizeof message)
        return;
    snprintf(message + n, sizeof message - (size_t)n, ": %s", inner);
}

const char *asen_fail_message(void)
{
    return message;
}

static void (*_Atomic warn_handler)(const char *message);

void asen_warn_set_handler(void (*handler)(const char *message))
{
    atomic_store(&warn_handler, handler);
}

void asen_warn(const char *format, ...)
{
    char text[sizeof message];
    void (*handler)(const char *) = atomic_load(&warn_handler);
    if (handler == NULL)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    handler(text);
}
