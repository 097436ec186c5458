/*
 * The GDB remote serial protocol (the GDB manual, appendix E), server's side, without a socket and without a
 * machine: bytes in, bytes out, and a table of what the target can do. server.c puts both around it; unit
 * tests and a fuzzer put others.
 *
 * All-stop: while the target is stopped the client asks, while it runs the client can only interrupt. vCPU N
 * is thread N + 1.
 *
 *     gdb_attached -> stopped --c, s, vCont--> running --gdb_stopped, 03H--> stopped ... --D--> detached
 *
 * Everything that a client can grow has a limit below. Threads: the caller's, one at a time.
 */
#ifndef FONDA_VM_GDB_SESSION_H
#define FONDA_VM_GDB_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu/engine.h"
#include "cpu/x86/state.h"

#define GDB_PACKET_MAX 16384u /* bytes between '$' and '#', both ways */

enum gdb_action { GDB_HOLD, GDB_CONTINUE, GDB_STEP };

/* What happened to a vCPU, as signal numbers of the protocol say it. */
#define GDB_SIGINT  2
#define GDB_SIGTRAP 5

struct gdb_target {
    void *opaque;
    unsigned cpus;
    void (*send)(void *opaque, const void *bytes, size_t len);
    /* The vCPUs stand still from the return on, or false. */
    bool (*halt)(void *opaque);
    /* One action for each vCPU, and the points to stop at. 0, or a negative errno (-ENOSPC: too many points);
     * then nothing runs. */
    int (*resume)(void *opaque, const enum gdb_action *actions, const struct engine_point *points,
                  unsigned count);
    /* Whether the engine can stop at these. */
    int (*try_points)(void *opaque, const struct engine_point *points, unsigned count);
    void (*detach)(void *opaque); /* everything runs on, without points */
    void (*kill)(void *opaque);
    int (*get_state)(void *opaque, unsigned cpu, struct x86_state *ret_state, uint64_t *ret_cr8);
    int (*set_state)(void *opaque, unsigned cpu, const struct x86_state *state);
    /* RAM by guest-physical address; -EFAULT when some byte is none. No device is touched. */
    int (*read)(void *opaque, uint64_t gpa, void *buf, size_t len);
    int (*write)(void *opaque, uint64_t gpa, const void *buf, size_t len);
    int (*walk)(void *opaque, unsigned cpu, uint64_t va, uint64_t *ret_gpa);
    /* "running", "halted"... for `info threads`. */
    const char *(*describe)(void *opaque, unsigned cpu);
    /* What the translator makes of an address: text into buf, cut to size. NULL: the engine doesn't
     * translate. */
    int (*translation)(void *opaque, unsigned cpu, uint64_t va, char *buf, size_t size);
    int (*count_blocks)(void *opaque, bool on);
};

struct gdb;

/* target is copied. NULL: no memory. */
struct gdb *gdb_new(const struct gdb_target *target);
void gdb_free(struct gdb *gdb);

/* A client is there (the vCPUs stand still), or is gone: then the target is detached unless it was. */
void gdb_attached(struct gdb *gdb);
void gdb_gone(struct gdb *gdb);
bool gdb_is_attached(const struct gdb *gdb);
bool gdb_is_running(const struct gdb *gdb);

/* Bytes from the client. False: it said something that ends the connection (it detached, or killed). */
bool gdb_input(struct gdb *gdb, const uint8_t *bytes, size_t len);

/* A vCPU stopped; all of them stand still. signal: GDB_SIG*. stop may be NULL. */
void gdb_stopped(struct gdb *gdb, unsigned cpu, int signal, const struct engine_stop *stop);
/* The machine ended. */
void gdb_ended(struct gdb *gdb, int status);

#endif
