/* See session.h. Packets: $data#sum, each answered with + or - until the client asks for no acknowledgements.
 */
#include "vm/gdb/session.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "vm/gdb/session_int.h"

static const char digits[] = "0123456789abcdef";

static int digit_value(uint8_t c)
{
    const char *at = c ? strchr(digits, c >= 'A' && c <= 'F' ? c + ('a' - 'A') : c) : NULL;
    return at ? (int)(at - digits) : -1;
}

size_t gdb_from_hex(const char *text, uint8_t *bytes, size_t max)
{
    size_t n = 0;
    while (n < max) {
        int high = digit_value((uint8_t)text[2 * n]);
        int low = high < 0 ? -1 : digit_value((uint8_t)text[2 * n + 1]);
        if (low < 0) {
            break;
        }
        bytes[n++] = (uint8_t)(high << 4 | low);
    }
    return n;
}

bool gdb_hex(const char **at, uint64_t *ret_value)
{
    uint64_t value = 0;
    unsigned n = 0;
    for (int digit; (digit = digit_value((uint8_t) * *at)) >= 0; (*at)++, n++) {
        value = value << 4 | (unsigned)digit;
    }
    if (n == 0 || n > 16) {
        return false;
    }
    *ret_value = value;
    return true;
}

/* --- replies --- */

static void out_byte(struct gdb *gdb, uint8_t byte)
{
    if (gdb->out_len < GDB_PACKET_MAX) {
        gdb->out[gdb->out_len++] = byte;
    }
}

void gdb_out_text(struct gdb *gdb, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    for (const char *c = text; *c; c++) {
        out_byte(gdb, (uint8_t)*c);
    }
}

void gdb_out_hex(struct gdb *gdb, const void *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        out_byte(gdb, (uint8_t)digits[((const uint8_t *)bytes)[i] >> 4]);
        out_byte(gdb, (uint8_t)digits[((const uint8_t *)bytes)[i] & 15]);
    }
}

static bool needs_escape(uint8_t byte)
{
    return byte == '#' || byte == '$' || byte == '}' || byte == '*';
}

void gdb_out_binary(struct gdb *gdb, const void *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        uint8_t byte = ((const uint8_t *)bytes)[i];
        if (needs_escape(byte)) {
            out_byte(gdb, '}');
            byte ^= 0x20;
        }
        out_byte(gdb, byte);
    }
}

void gdb_send(struct gdb *gdb)
{
    uint8_t sum = 0;
    size_t n = 0;
    gdb->sent[n++] = '$';
    for (size_t i = 0; i < gdb->out_len; i++) {
        sum = (uint8_t)(sum + gdb->out[i]);
        gdb->sent[n++] = gdb->out[i];
    }
    gdb->sent[n++] = '#';
    gdb->sent[n++] = (uint8_t)digits[sum >> 4];
    gdb->sent[n++] = (uint8_t)digits[sum & 15];
    gdb->sent_len = n;
    gdb->out_len = 0;
    gdb->target.send(gdb->target.opaque, gdb->sent, n);
}

void gdb_reply(struct gdb *gdb, const char *text)
{
    gdb->out_len = 0;
    gdb_out_text(gdb, "%s", text);
    gdb_send(gdb);
}

void gdb_reply_error(struct gdb *gdb, int error)
{
    gdb->out_len = 0;
    gdb_out_text(gdb, "E%02x", (unsigned)-error & 0xff);
    gdb_send(gdb);
}

void gdb_console(struct gdb *gdb, const char *text)
{
    size_t len = strlen(text);
    while (len > 0) {
        size_t n = MIN(len, (size_t)(GDB_PACKET_MAX / 2 - 16));
        gdb_out_text(gdb, "O");
        gdb_out_hex(gdb, text, n);
        gdb_send(gdb);
        text += n;
        len -= n;
    }
}

/* "Stop Reply Packets": the signal, the thread, why, and the registers that gdb wants first. */
void gdb_reply_stop(struct gdb *gdb)
{
    static const char *const watches[] = {
        [ENGINE_POINT_WRITE] = "watch", [ENGINE_POINT_READ] = "rwatch", [ENGINE_POINT_ACCESS] = "awatch"};
    gdb->out_len = 0;
    gdb_out_text(gdb, "T%02xthread:%x;", (unsigned)gdb->stop_signal, gdb->stop_cpu + 1);
    const struct engine_stop *stop = &gdb->stop;
    if (stop->point && stop->kind != ENGINE_POINT_EXEC) {
        gdb_out_text(gdb, "%s:%llx;", watches[stop->kind], (unsigned long long)stop->va);
    } else if (stop->point) {
        bool soft = false;
        for (unsigned i = 0; i < gdb->point_count; i++) {
            soft |= gdb->points[i].kind == ENGINE_POINT_EXEC && gdb->points[i].va == stop->va &&
                    gdb->point_soft[i];
        }
        if (soft ? gdb->swbreak : gdb->hwbreak) {
            gdb_out_text(gdb, "%s:;", soft ? "swbreak" : "hwbreak");
        }
    }
    struct x86_state state;
    uint64_t cr8;
    if (gdb->target.get_state(gdb->target.opaque, gdb->stop_cpu, &state, &cr8) == 0) {
        static const unsigned first[] = {GDB_REG_RIP, GDB_REG_RSP, GDB_REG_RBP};
        for (size_t i = 0; i < ARRAY_SIZE(first); i++) {
            uint8_t value[GDB_REGISTER_BYTES_MAX];
            size_t len = gdb_register_get(&gdb->registers, &state, cr8, first[i], value);
            gdb_out_text(gdb, "%02x:", first[i]);
            gdb_out_hex(gdb, value, len);
            gdb_out_text(gdb, ";");
        }
    }
    gdb_send(gdb);
}

/* --- life --- */

struct gdb *gdb_new(const struct gdb_target *target)
{
    struct gdb *gdb = calloc(1, sizeof(*gdb));
    if (gdb) {
        gdb->target = *target;
        gdb_registers_init(&gdb->registers);
    }
    return gdb;
}

void gdb_free(struct gdb *gdb)
{
    free(gdb);
}

void gdb_attached(struct gdb *gdb)
{
    gdb->attached = true;
    gdb->running = gdb->no_ack = gdb->swbreak = gdb->hwbreak = gdb->physical = false;
    gdb->state = GDB_IDLE;
    gdb->sent_len = gdb->out_len = 0;
    gdb->cpu = gdb->resume_cpu = gdb->stop_cpu = 0;
    gdb->stop_signal = GDB_SIGTRAP;
    gdb->stop = (struct engine_stop){.step = false};
    gdb->point_count = 0;
}

void gdb_gone(struct gdb *gdb)
{
    if (gdb->attached) {
        gdb->attached = false;
        gdb->target.detach(gdb->target.opaque);
    }
}

bool gdb_is_attached(const struct gdb *gdb)
{
    return gdb->attached;
}

bool gdb_is_running(const struct gdb *gdb)
{
    return gdb->attached && gdb->running;
}

void gdb_stopped(struct gdb *gdb, unsigned cpu, int signal, const struct engine_stop *stop)
{
    if (!gdb_is_running(gdb)) {
        return;
    }
    gdb->running = false;
    gdb->cpu = gdb->stop_cpu = cpu;
    gdb->stop_signal = signal;
    gdb->stop = stop ? *stop : (struct engine_stop){.step = false};
    gdb_reply_stop(gdb);
}

void gdb_ended(struct gdb *gdb, int status)
{
    if (gdb->attached && !gdb->ended) {
        gdb->ended = true;
        gdb->out_len = 0;
        gdb_out_text(gdb, "W%02x", (unsigned)status & 0xff);
        gdb_send(gdb);
    }
}

/* --- input --- */

static void acknowledge(struct gdb *gdb, bool good)
{
    if (!gdb->no_ack) {
        gdb->target.send(gdb->target.opaque, good ? "+" : "-", 1);
    }
}

static bool packet_end(struct gdb *gdb)
{
    gdb->state = GDB_IDLE;
    bool good = gdb->sum == gdb->sum_read;
    if (!good && !gdb->no_ack) {
        acknowledge(gdb, false);
        return true;
    }
    acknowledge(gdb, true);
    if (gdb->in_too_long) {
        gdb_reply_error(gdb, -E2BIG);
        return true;
    }
    if (gdb->running) {
        return true; /* nothing but an interruption counts then */
    }
    gdb->in[gdb->in_len] = '\0';
    return gdb_command(gdb);
}

static void interrupt(struct gdb *gdb)
{
    if (gdb->running && gdb->target.halt(gdb->target.opaque)) {
        gdb_stopped(gdb, gdb->resume_cpu, GDB_SIGINT, NULL);
    }
}

static bool take_byte(struct gdb *gdb, uint8_t byte)
{
    int digit = digit_value(byte);
    switch (gdb->state) {
    case GDB_IDLE:
        if (byte == '$') {
            gdb->state = GDB_IN_PACKET;
            gdb->in_len = 0;
            gdb->sum = 0;
            gdb->in_too_long = false;
        } else if (byte == 3) {
            interrupt(gdb);
        } else if (byte == '-' && gdb->sent_len && !gdb->no_ack) {
            gdb->target.send(gdb->target.opaque, gdb->sent, gdb->sent_len);
        }
        return true;
    case GDB_IN_PACKET:
        if (byte == '#') {
            gdb->state = GDB_SUM1;
            return true;
        }
        gdb->sum = (uint8_t)(gdb->sum + byte);
        if (gdb->in_len < GDB_PACKET_MAX) {
            gdb->in[gdb->in_len++] = byte;
        } else {
            gdb->in_too_long = true;
        }
        return true;
    case GDB_SUM1:
        gdb->sum_read = (uint8_t)((digit < 0 ? 0 : digit) << 4);
        gdb->state = GDB_SUM2;
        return true;
    default: gdb->sum_read |= (uint8_t)(digit < 0 ? 0 : digit); return packet_end(gdb);
    }
}

bool gdb_input(struct gdb *gdb, const uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len && gdb->attached; i++) {
        if (!take_byte(gdb, bytes[i])) {
            return false;
        }
    }
    return gdb->attached;
}
