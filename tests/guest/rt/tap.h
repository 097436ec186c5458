/*
 * What every guest prints: TAP on the serial port, and its end by the exit port. For 32- and 64-bit programs:
 * numbers are of the machine's word.
 */
#ifndef TAP_H
#define TAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COM1 0x3f8

static inline void outb(uint16_t port, uint8_t v)
{
    asm volatile("outb %0, %1" ::"a"(v), "Nd"(port));
}
static inline uint8_t inb(uint16_t port)
{
    uint8_t v;
    asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

void rt_putc(char c);
void rt_printf(const char *fmt, ...); /* %s %d %u %x %lx %c */
bool ok(bool cond, const char *text);
bool is(unsigned long got, unsigned long want, const char *text); /* prints both when they differ */
void skip(const char *text, const char *why);
void about(const char *name);   /* "name: " goes in front of every check's text from here on; NULL: nothing */
void note(const char *text);    /* "# text" */
_Noreturn void rt_finish(void); /* plan and exit by port 0xf4: 0 when all passed, else 1 */
_Noreturn void rt_exit(unsigned status);

#endif
