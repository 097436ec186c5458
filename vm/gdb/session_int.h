/*
 * What the files of vm/gdb share: session.c (packets), commands.c (what they ask), monitor.c (`monitor ...`),
 * registers.c (register numbers and target.xml). Only for vm/gdb.
 */
#ifndef FONDA_VM_GDB_SESSION_INT_H
#define FONDA_VM_GDB_SESSION_INT_H

#include "vm/config.h"
#include "vm/gdb/registers.h"
#include "vm/gdb/session.h"

struct gdb {
    struct gdb_target target;
    struct gdb_registers registers;

    /* Input: between packets, in one, or in its checksum. */
    enum { GDB_IDLE, GDB_IN_PACKET, GDB_SUM1, GDB_SUM2 } state;
    uint8_t in[GDB_PACKET_MAX + 1]; /* with a NUL behind it */
    size_t in_len;
    bool in_too_long;
    uint8_t sum, sum_read;

    /* The reply being made; the last one, for a repetition. */
    uint8_t out[GDB_PACKET_MAX + 4];
    size_t out_len;
    size_t sent_len;
    uint8_t sent[2 * GDB_PACKET_MAX + 8];
    bool no_ack, swbreak, hwbreak;

    bool attached, running, ended;
    bool physical;            /* m, M and X take guest-physical addresses */
    unsigned cpu, resume_cpu; /* Hg, Hc */
    unsigned thread_listed;
    unsigned stop_cpu;
    int stop_signal;
    struct engine_stop stop;

    unsigned point_count;
    struct engine_point points[ENGINE_POINTS_MAX];
    bool point_soft[ENGINE_POINTS_MAX]; /* set by Z0, reported as swbreak */
};

/* session.c: making and sending a reply. What does not fit is cut. */
void gdb_out_text(struct gdb *gdb, const char *format, ...) __attribute__((format(printf, 2, 3)));
void gdb_out_hex(struct gdb *gdb, const void *bytes, size_t len);
void gdb_out_binary(struct gdb *gdb, const void *bytes, size_t len); /* escaped */
void gdb_send(struct gdb *gdb);
void gdb_reply(struct gdb *gdb, const char *text);
void gdb_reply_error(struct gdb *gdb, int error); /* a negative errno */
void gdb_reply_stop(struct gdb *gdb);
/* "O": text for the person, outside of a reply. */
void gdb_console(struct gdb *gdb, const char *text);

/* Reads hexadecimal digits; returns how many bytes (or digits) were there. */
size_t gdb_from_hex(const char *text, uint8_t *bytes, size_t max);
bool gdb_hex(const char **at, uint64_t *ret_value);

/* commands.c: executes the packet in gdb->in. False: the connection ends. */
bool gdb_command(struct gdb *gdb);
/* By virtual (or physical, as the client chose) address. 0 or -EFAULT; *ret_done: the bytes before. */
int gdb_memory(struct gdb *gdb, uint64_t address, void *buf, size_t len, bool write, bool physical,
               size_t *ret_done);

/* monitor.c */
void gdb_monitor(struct gdb *gdb, const char *command);

#endif
