/*
 * See tap.h.
 */
#include "tap.h"

#include <stdarg.h>

#define EXIT_PORT 0xf4

static unsigned tests, failures;
static const char *subject;

void rt_putc(char c)
{
    for (unsigned i = 0; i < 100000 && !(inb(COM1 + 5) & 0x20); i++) {
    }
    outb(COM1, (uint8_t)c);
}

static void put_number(unsigned long v, unsigned base)
{
    char text[24];
    unsigned n = 0;
    do {
        text[n++] = "0123456789abcdef"[v % base];
        v /= base;
    } while (v);
    while (n) {
        rt_putc(text[--n]);
    }
}

void rt_printf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    for (; *fmt; fmt++) {
        if (*fmt != '%') {
            rt_putc(*fmt);
            continue;
        }
        bool is_long = *++fmt == 'l';
        fmt += is_long;
        switch (*fmt) {
        case 's':
            for (const char *s = va_arg(ap, const char *); *s; s++) {
                rt_putc(*s);
            }
            break;
        case 'c': rt_putc((char)va_arg(ap, int)); break;
        case 'x': put_number(is_long ? va_arg(ap, unsigned long) : va_arg(ap, unsigned), 16); break;
        default: put_number(is_long ? va_arg(ap, unsigned long) : va_arg(ap, unsigned), 10); break;
        }
    }
    va_end(ap);
}

bool ok(bool cond, const char *text)
{
    tests++;
    failures += !cond;
    rt_printf("%sok %u - %s%s%s\n", cond ? "" : "not ", tests, subject ? subject : "", subject ? ": " : "",
              text);
    return cond;
}

bool is(unsigned long got, unsigned long want, const char *text)
{
    bool same = ok(got == want, text);
    if (!same) {
        rt_printf("#   got 0x%lx, want 0x%lx\n", got, want);
    }
    return same;
}

void skip(const char *text, const char *why)
{
    rt_printf("ok %u - %s%s%s # SKIP %s\n", ++tests, subject ? subject : "", subject ? ": " : "", text, why);
}

void about(const char *name)
{
    subject = name;
}

void note(const char *text)
{
    rt_printf("# %s\n", text);
}

void rt_exit(unsigned status)
{
    outb(EXIT_PORT, (uint8_t)status);
    for (;;) {
        asm volatile("cli; hlt");
    }
}

void rt_finish(void)
{
    rt_printf("1..%u\n", tests);
    rt_exit(failures ? 1 : 0);
}
