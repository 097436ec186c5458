/* What packets ask: the GDB manual, appendix E.2 to E.6. One function for each kind of packet, and a table.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "vm/gdb/session_int.h"

#define PAGE 4096u

static const char *text_of(const struct gdb *gdb)
{
    return (const char *)gdb->in;
}

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* --- registers --- */

static void read_all_registers(struct gdb *gdb)
{
    struct x86_state state;
    uint64_t cr8;
    int rc = gdb->target.get_state(gdb->target.opaque, gdb->cpu, &state, &cr8);
    if (rc < 0) {
        gdb_reply_error(gdb, rc);
        return;
    }
    uint8_t value[GDB_REGISTER_BYTES_MAX];
    for (unsigned i = 0; i < gdb->registers.count; i++) {
        size_t len = gdb_register_get(&gdb->registers, &state, cr8, i, value);
        gdb_out_hex(gdb, value, len);
    }
    gdb_send(gdb);
}

static void read_register(struct gdb *gdb, const char *at)
{
    struct x86_state state;
    uint64_t cr8, number;
    uint8_t value[GDB_REGISTER_BYTES_MAX];
    if (!gdb_hex(&at, &number) || gdb->target.get_state(gdb->target.opaque, gdb->cpu, &state, &cr8) < 0) {
        gdb_reply_error(gdb, -EINVAL);
        return;
    }
    size_t len = number < gdb->registers.count
                     ? gdb_register_get(&gdb->registers, &state, cr8, (unsigned)number, value)
                     : 0;
    if (len == 0) {
        gdb_reply_error(gdb, -EINVAL);
        return;
    }
    gdb_out_hex(gdb, value, len);
    gdb_send(gdb);
}

/* Registers from `first` on, as many as the text has (and at most `most`). */
static void write_registers(struct gdb *gdb, const char *at, unsigned first, unsigned most)
{
    struct x86_state state;
    uint64_t cr8;
    int rc = gdb->target.get_state(gdb->target.opaque, gdb->cpu, &state, &cr8);
    unsigned done = 0;
    for (unsigned i = first; rc == 0 && i < gdb->registers.count && done < most; i++, done++) {
        uint8_t value[GDB_REGISTER_BYTES_MAX];
        size_t bytes = gdb->registers.reg[i].bytes;
        if (gdb_from_hex(at, value, bytes) < bytes) {
            break;
        }
        at += 2 * bytes;
        bool taken = gdb_register_set(&gdb->registers, &state, i, value);
        rc = taken || most > 1 ? 0 : -EPERM;
    }
    if (rc == 0 && done == 0) {
        rc = -EINVAL;
    }
    if (rc == 0) {
        rc = gdb->target.set_state(gdb->target.opaque, gdb->cpu, &state);
    }
    if (rc < 0) {
        gdb_reply_error(gdb, rc);
    } else {
        gdb_reply(gdb, "OK");
    }
}

static void write_register(struct gdb *gdb, const char *at)
{
    uint64_t number;
    if (!gdb_hex(&at, &number) || *at != '=' || number >= gdb->registers.count) {
        gdb_reply_error(gdb, -EINVAL);
        return;
    }
    write_registers(gdb, at + 1, (unsigned)number, 1);
}

/* --- memory --- */

int gdb_memory(struct gdb *gdb, uint64_t address, void *buf, size_t len, bool write, bool physical,
               size_t *ret_done)
{
    const struct gdb_target *target = &gdb->target;
    *ret_done = 0;
    while (*ret_done < len) {
        uint64_t at = address + *ret_done, gpa = at;
        size_t n = MIN(len - *ret_done, (size_t)(PAGE - at % PAGE));
        uint8_t *bytes = (uint8_t *)buf + *ret_done;
        if (!physical && target->walk(target->opaque, gdb->cpu, at, &gpa) < 0) {
            return -EFAULT;
        }
        int rc = write ? target->write(target->opaque, gpa, bytes, n)
                       : target->read(target->opaque, gpa, bytes, n);
        if (rc < 0) {
            return rc;
        }
        *ret_done += n;
    }
    return 0;
}

/* "addr,length" */
static bool read_range(const char **at, uint64_t *ret_address, uint64_t *ret_len)
{
    if (!gdb_hex(at, ret_address) || **at != ',') {
        return false;
    }
    (*at)++;
    return gdb_hex(at, ret_len);
}

static void read_memory(struct gdb *gdb, const char *at)
{
    uint64_t address, len;
    uint8_t buf[GDB_PACKET_MAX / 2];
    size_t done;
    if (!read_range(&at, &address, &len)) {
        gdb_reply_error(gdb, -EINVAL);
        return;
    }
    len = MIN(len, sizeof(buf)); /* less than asked for is allowed */
    int rc = gdb_memory(gdb, address, buf, len, false, gdb->physical, &done);
    if (rc < 0 && done == 0) {
        gdb_reply_error(gdb, rc);
        return;
    }
    gdb_out_hex(gdb, buf, done);
    gdb_send(gdb);
}

/* Undoes the escapes; returns the bytes. */
static size_t unescape(const uint8_t *from, size_t len, uint8_t *to)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (from[i] == '}' && i + 1 < len) {
            to[n++] = from[++i] ^ 0x20;
        } else {
            to[n++] = from[i];
        }
    }
    return n;
}

static void write_memory(struct gdb *gdb, const char *at, bool binary)
{
    uint64_t address, len;
    uint8_t buf[GDB_PACKET_MAX];
    size_t done, have;
    if (!read_range(&at, &address, &len) || *at != ':' || len > sizeof(buf)) {
        gdb_reply_error(gdb, -EINVAL);
        return;
    }
    at++;
    if (binary) {
        have = unescape((const uint8_t *)at, (size_t)(gdb->in + gdb->in_len - (const uint8_t *)at), buf);
    } else {
        have = gdb_from_hex(at, buf, len);
    }
    int rc = have < len ? -EINVAL : gdb_memory(gdb, address, buf, len, true, gdb->physical, &done);
    if (rc < 0) {
        gdb_reply_error(gdb, rc);
    } else {
        gdb_reply(gdb, "OK");
    }
}

/* --- points --- */

static const struct {
    enum engine_point_kind kind;
    bool soft;
} point_types[] = {{ENGINE_POINT_EXEC, true},
                   {ENGINE_POINT_EXEC, false},
                   {ENGINE_POINT_WRITE, false},
                   {ENGINE_POINT_READ, false},
                   {ENGINE_POINT_ACCESS, false}};

static unsigned find_point(const struct gdb *gdb, const struct engine_point *want, bool soft)
{
    unsigned i = 0;
    while (i < gdb->point_count && !(gdb->points[i].va == want->va && gdb->points[i].size == want->size &&
                                     gdb->points[i].kind == want->kind && gdb->point_soft[i] == soft)) {
        i++;
    }
    return i;
}

static int add_point(struct gdb *gdb, const struct engine_point *point, bool soft)
{
    if (gdb->point_count == ENGINE_POINTS_MAX) {
        return -ENOSPC;
    }
    gdb->points[gdb->point_count] = *point;
    gdb->point_soft[gdb->point_count] = soft;
    int rc = gdb->target.try_points(gdb->target.opaque, gdb->points, gdb->point_count + 1);
    gdb->point_count += rc == 0;
    return rc;
}

/* Z and z: "type,addr,kind"; both do nothing the second time. */
static void change_point(struct gdb *gdb, const char *at, bool insert)
{
    uint64_t type, address, size;
    if (!gdb_hex(&at, &type) || *at++ != ',' || !read_range(&at, &address, &size)) {
        gdb_reply_error(gdb, -EINVAL);
        return;
    }
    if (type >= ARRAY_SIZE(point_types) || *at == ';') { /* conditions and commands: not here */
        gdb_reply(gdb, "");
        return;
    }
    bool exec = point_types[type].kind == ENGINE_POINT_EXEC;
    struct engine_point point = {
        .va = address, .size = exec ? 1 : (uint32_t)size, .kind = point_types[type].kind};
    if (!exec && (size == 0 || size > PAGE)) {
        gdb_reply_error(gdb, -EINVAL);
        return;
    }
    unsigned i = find_point(gdb, &point, point_types[type].soft);
    int rc = 0;
    if (insert && i == gdb->point_count) {
        rc = add_point(gdb, &point, point_types[type].soft);
    } else if (!insert && i < gdb->point_count) {
        gdb->point_count--;
        gdb->points[i] = gdb->points[gdb->point_count];
        gdb->point_soft[i] = gdb->point_soft[gdb->point_count];
    }
    if (rc < 0) {
        gdb_reply_error(gdb, rc);
    } else {
        gdb_reply(gdb, "OK");
    }
}

/* --- threads --- */

/* "-1" all, "0" any, or N. False: no such thread. *ret_all: "-1". */
static bool read_thread(const struct gdb *gdb, const char **at, unsigned *ret_cpu, bool *ret_all)
{
    uint64_t id;
    *ret_all = starts_with(*at, "-1");
    if (*ret_all) {
        *at += 2;
        *ret_cpu = gdb->stop_cpu;
        return true;
    }
    if (!gdb_hex(at, &id) || id > gdb->target.cpus) {
        return false;
    }
    *ret_cpu = id == 0 ? gdb->stop_cpu : (unsigned)id - 1;
    return true;
}

static void choose_thread(struct gdb *gdb, const char *at)
{
    char what = *at++;
    unsigned cpu;
    bool all;
    if ((what != 'g' && what != 'c') || !read_thread(gdb, &at, &cpu, &all)) {
        gdb_reply_error(gdb, -EINVAL);
        return;
    }
    *(what == 'g' ? &gdb->cpu : &gdb->resume_cpu) = cpu;
    gdb_reply(gdb, "OK");
}

static void thread_alive(struct gdb *gdb, const char *at)
{
    unsigned cpu;
    bool all;
    if (read_thread(gdb, &at, &cpu, &all)) {
        gdb_reply(gdb, "OK");
    } else {
        gdb_reply_error(gdb, -EINVAL);
    }
}

static void list_threads(struct gdb *gdb, bool first)
{
    gdb->thread_listed = first ? 0 : gdb->thread_listed;
    if (gdb->thread_listed == gdb->target.cpus) {
        gdb_reply(gdb, "l");
        return;
    }
    for (unsigned i = 0; i < gdb->target.cpus; i++) {
        gdb_out_text(gdb, "%c%x", i == 0 ? 'm' : ',', i + 1);
    }
    gdb->thread_listed = gdb->target.cpus;
    gdb_send(gdb);
}

static void describe_thread(struct gdb *gdb, const char *at)
{
    unsigned cpu;
    bool all;
    if (!read_thread(gdb, &at, &cpu, &all)) {
        gdb_reply_error(gdb, -EINVAL);
        return;
    }
    char text[64];
    snprintf(text, sizeof(text), "vCPU %u, %s", cpu, gdb->target.describe(gdb->target.opaque, cpu));
    gdb_out_hex(gdb, text, strlen(text));
    gdb_send(gdb);
}

/* --- running --- */

static void resume(struct gdb *gdb, const enum gdb_action *actions)
{
    for (unsigned i = 0; i < MIN(gdb->target.cpus, VM_CPUS_MAX); i++) {
        if (actions[i] == GDB_STEP) {
            gdb->resume_cpu = i;
        }
    }
    gdb->running = true;
    int rc = gdb->target.resume(gdb->target.opaque, actions, gdb->points, gdb->point_count);
    if (rc < 0) {
        gdb->running = false;
        gdb_reply_error(gdb, rc);
    }
}

/* c, s, C, S: all vCPUs run on, one of them perhaps by a step. A signal means nothing to a machine. */
static void resume_simply(struct gdb *gdb, bool step)
{
    enum gdb_action actions[VM_CPUS_MAX] = {GDB_HOLD};
    for (unsigned i = 0; i < gdb->target.cpus; i++) {
        actions[i] = step ? GDB_HOLD : GDB_CONTINUE;
    }
    if (step) {
        actions[gdb->resume_cpu] = GDB_STEP;
    }
    resume(gdb, actions);
}

/* "vCont;action[:thread]...": the leftmost action that fits a thread counts; without one it stays. */
static void resume_by_thread(struct gdb *gdb, const char *at)
{
    enum gdb_action actions[VM_CPUS_MAX] = {GDB_HOLD};
    bool chosen[VM_CPUS_MAX] = {false};
    bool any = false;
    for (unsigned i = 0; i < gdb->target.cpus; i++) {
        actions[i] = GDB_HOLD;
    }
    while (*at == ';') {
        at++;
        char what = *at;
        if (what != 'c' && what != 'C' && what != 's' && what != 'S') {
            gdb_reply_error(gdb, -EINVAL);
            return;
        }
        at++;
        uint64_t signal;
        if (what == 'C' || what == 'S') {
            gdb_hex(&at, &signal);
        }
        unsigned cpu = 0;
        bool all = *at != ':';
        if (!all) {
            at++;
            if (!read_thread(gdb, &at, &cpu, &all)) {
                gdb_reply_error(gdb, -EINVAL);
                return;
            }
        }
        for (unsigned i = 0; i < gdb->target.cpus; i++) {
            if ((all || i == cpu) && !chosen[i]) {
                chosen[i] = any = true;
                actions[i] = what == 's' || what == 'S' ? GDB_STEP : GDB_CONTINUE;
            }
        }
    }
    if (!any) {
        gdb_reply_error(gdb, -EINVAL);
        return;
    }
    resume(gdb, actions);
}

/* --- queries --- */

static void supported(struct gdb *gdb, const char *at)
{
    gdb->swbreak = strstr(at, "swbreak+") != NULL;
    gdb->hwbreak = strstr(at, "hwbreak+") != NULL;
    gdb_out_text(gdb, "PacketSize=%x;qXfer:features:read+;QStartNoAckMode+;vContSupported+;swbreak+;hwbreak+",
                 GDB_PACKET_MAX);
    gdb_send(gdb);
}

/* "qXfer:features:read:target.xml:offset,length" */
static void read_features(struct gdb *gdb, const char *at)
{
    uint64_t offset, len;
    if (!starts_with(at, "target.xml:")) {
        gdb_reply(gdb, "E00");
        return;
    }
    at += strlen("target.xml:");
    if (!read_range(&at, &offset, &len)) {
        gdb_reply_error(gdb, -EINVAL);
        return;
    }
    const struct gdb_registers *r = &gdb->registers;
    offset = MIN(offset, r->xml_len);
    len = MIN(MIN(len, r->xml_len - offset), (uint64_t)(GDB_PACKET_MAX / 2 - 1));
    gdb_out_text(gdb, offset + len == r->xml_len ? "l" : "m");
    gdb_out_binary(gdb, r->xml + offset, len);
    gdb_send(gdb);
}

static void run_monitor(struct gdb *gdb, const char *at)
{
    char command[256];
    size_t len = gdb_from_hex(at, (uint8_t *)command, sizeof(command) - 1);
    command[len] = '\0';
    gdb_monitor(gdb, command);
}

static void query(struct gdb *gdb)
{
    const char *at = text_of(gdb);
    if (starts_with(at, "qSupported")) {
        supported(gdb, at);
    } else if (starts_with(at, "qXfer:features:read:")) {
        read_features(gdb, at + strlen("qXfer:features:read:"));
    } else if (strcmp(at, "qfThreadInfo") == 0 || strcmp(at, "qsThreadInfo") == 0) {
        list_threads(gdb, at[1] == 'f');
    } else if (starts_with(at, "qThreadExtraInfo,")) {
        describe_thread(gdb, at + strlen("qThreadExtraInfo,"));
    } else if (strcmp(at, "qC") == 0) {
        gdb_out_text(gdb, "QC%x", gdb->cpu + 1);
        gdb_send(gdb);
    } else if (starts_with(at, "qAttached")) {
        gdb_reply(gdb, "1");
    } else if (starts_with(at, "qSymbol")) {
        gdb_reply(gdb, "OK");
    } else if (starts_with(at, "qRcmd,")) {
        run_monitor(gdb, at + strlen("qRcmd,"));
    } else if (strcmp(at, "qqemu.PhyMemMode") == 0) { /* as QEMU has it, for clients that know it */
        gdb_reply(gdb, gdb->physical ? "1" : "0");
    } else {
        gdb_reply(gdb, "");
    }
}

static void set(struct gdb *gdb)
{
    const char *at = text_of(gdb);
    if (strcmp(at, "QStartNoAckMode") == 0) {
        gdb_reply(gdb, "OK");
        gdb->no_ack = true;
    } else if (starts_with(at, "Qqemu.PhyMemMode:")) {
        gdb->physical = at[strlen("Qqemu.PhyMemMode:")] == '1';
        gdb_reply(gdb, "OK");
    } else {
        gdb_reply(gdb, "");
    }
}

/* --- the end --- */

static bool end(struct gdb *gdb, bool kill)
{
    gdb->attached = false;
    if (kill) {
        gdb->target.kill(gdb->target.opaque);
    } else {
        gdb->target.detach(gdb->target.opaque);
    }
    return false;
}

static bool letter_v(struct gdb *gdb)
{
    const char *at = text_of(gdb);
    if (strcmp(at, "vCont?") == 0) {
        gdb_reply(gdb, "vCont;c;C;s;S");
    } else if (starts_with(at, "vCont;")) {
        resume_by_thread(gdb, at + strlen("vCont"));
    } else if (starts_with(at, "vKill")) {
        gdb_reply(gdb, "OK");
        return end(gdb, true);
    } else {
        gdb_reply(gdb, "");
    }
    return true;
}

bool gdb_command(struct gdb *gdb)
{
    const char *at = text_of(gdb);
    switch (*at) {
    case '?': gdb_reply_stop(gdb); break;
    case 'g': read_all_registers(gdb); break;
    case 'G': write_registers(gdb, at + 1, 0, GDB_REGISTERS_MAX); break;
    case 'p': read_register(gdb, at + 1); break;
    case 'P': write_register(gdb, at + 1); break;
    case 'm': read_memory(gdb, at + 1); break;
    case 'M': write_memory(gdb, at + 1, false); break;
    case 'X': write_memory(gdb, at + 1, true); break;
    case 'Z': change_point(gdb, at + 1, true); break;
    case 'z': change_point(gdb, at + 1, false); break;
    case 'H': choose_thread(gdb, at + 1); break;
    case 'T': thread_alive(gdb, at + 1); break;
    case 'c':
    case 'C': resume_simply(gdb, false); break;
    case 's':
    case 'S': resume_simply(gdb, true); break;
    case 'v': return letter_v(gdb);
    case 'q': query(gdb); break;
    case 'Q': set(gdb); break;
    case 'D': gdb_reply(gdb, "OK"); return end(gdb, false);
    case 'k': return end(gdb, true);
    default: gdb_reply(gdb, ""); break; /* what a server doesn't know */
    }
    return true;
}
