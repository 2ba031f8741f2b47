/* Status codes and the message that goes with them.
 *
 * Every fallible function of the core returns an int: ASEN_OK or one of the codes below, and
 * leaves one sentence in a thread-local buffer. The binding turns the pair into an exception.
 * The core never prints, aborts or exits. */
#ifndef ASEN_STATUS_H
#define ASEN_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

enum {
    ASEN_OK = 0,
    ASEN_ERR_VALUE,        /* ValueError: a shape, a number or a key that cannot be used */
    ASEN_ERR_TYPE,         /* TypeError: a dtype or kind that does not fit */
    ASEN_ERR_INDEX,        /* IndexError */
    ASEN_ERR_MEMORY,       /* MemoryError */
    ASEN_ERR_IO,           /* OSError: a file that cannot be read or written */
    ASEN_ERR_UNSUPPORTED,  /* NotImplementedError: this device has no kernel for the op */
    ASEN_ERR_DEVICE,       /* RuntimeError: the device or a library it uses failed */
    ASEN_ERR_INTERNAL      /* RuntimeError: an invariant of ours does not hold */
};

/* Sets the thread's message (printf-style) and returns `code`, so that callers write
 * `return asen_fail(ASEN_ERR_VALUE, "...", ...)`. */
int asen_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts "prefix: " before the thread's message: outer layers name the op, inner ones the fact. */
void asen_fail_prefix(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The thread's last message; borrowed, valid until the thread fails again. Never NULL. */
const char *asen_fail_message(void);

/* Something that a user should know although it is no error (a slower way was taken, say). Whoever says it sees to it that
 * it is said once. May be called from any thread, with locks held: the handler takes no lock of others and returns at
 * once. Without a handler it is dropped. */
void asen_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
void asen_warn_set_handler(void (*handler)(const char *message));

#ifdef __cplusplus
}
#endif
#endif
