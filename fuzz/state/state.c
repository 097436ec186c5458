/*
 * Fuzz target: what a saved machine's file says, loaded into a machine with two vCPUs and its devices.
 *
 * An input is a list of changes of the machine's own state: fields altered, cut, lengthened, renamed, of
 * another type, dropped, doubled and moved; the same for sections. Checksums are made right again, so that
 * each change gets as far as it can. What is loaded is saved again, and its timers run. The first byte's
 * lowest bit: the input is laid over a whole file instead, which is opened and read.
 *
 * Invariant: behind each run the machine has its own state again.
 */
#include "fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/state.h"
#include "base/util.h"
#include "mem/mem.h"
#include "vm/config.h"
#include "vm/devices.h"
#include "vm/machine.h"
#include "vm/pc.h"
#include "vm/saved/file.h"
#include "vm/saved/machine.h"

#define SECTIONS_MAX 64u
#define FIELDS_MAX   512u
#define BYTES_MAX    (1u << 20)
#define OP_BYTES     6u
#define FILE_AT      4u /* bytes of one change of a file: where (3), what */

/* As docs/state.md has them. */
struct section_head {
    uint32_t magic, version, name_len, payload_len;
};
struct field_head {
    uint8_t type, name_len;
    uint16_t zero;
    uint32_t len;
};

struct field {
    struct field_head head;
    const uint8_t *name, *bytes;
};

struct section {
    struct section_head head;
    const uint8_t *name;
    struct field fields[FIELDS_MAX];
    unsigned count;
};

struct sections {
    struct section all[SECTIONS_MAX];
    unsigned count;
};

static struct {
    uv_loop_t loop;
    struct mem *mem;
    struct clock *clock;
    struct machine *machine;
    struct devices *devices;
    struct vm_config config;
    uint8_t *base;
    size_t base_len;
    struct sections parsed, changed;
    uint8_t *file; /* a whole one */
    size_t file_len;
} rig;

static _Noreturn void broken(const char *what, const struct err *err)
{
    fprintf(stderr, "fuzz-state: %s: %s\n", what, err->text);
    abort();
}

/* --- the machine ------------------------------------------------------------------------------------------
 */

static void on_stopping(void *opaque)
{
}

static size_t serial_sink(void *opaque, const uint8_t *bytes, size_t len)
{
    return len;
}

static void serial_room(void *opaque)
{
}

static size_t terminal_sink(void *opaque, const uint8_t *bytes, size_t len)
{
    return len;
}

static void thaw(void)
{
    struct err err = {0};
    if (machine_thaw(rig.machine, &err) < 0) {
        broken("the clock does not go on", &err);
    }
}

/* Returns the writer's bytes, from malloc. The machine stands. */
static uint8_t *save(size_t *ret_len)
{
    struct state *s = state_new_writer();
    struct err err = {0};
    machine_state(rig.machine, s);
    const void *bytes = state_encoded(s, ret_len);
    if (state_error(s, &err) < 0 || !bytes) {
        broken("what was loaded can't be saved", &err);
    }
    uint8_t *copy = malloc(*ret_len + 1);
    memcpy(copy, bytes, *ret_len);
    state_free(s);
    return copy;
}

static int load(const uint8_t *bytes, size_t len)
{
    struct err err = {0};
    struct state *s;
    int rc = state_new_reader(bytes, len, &s, &err);
    if (rc == 0) {
        machine_state(rig.machine, s);
        rc = state_finish(s, &err);
        state_free(s);
    }
    return rc;
}

static void run_timers(void)
{
    mem_lock(rig.mem);
    clock_run(rig.clock);
    mem_unlock(rig.mem);
    uv_run(&rig.loop, UV_RUN_NOWAIT);
}

static void make_machine(void)
{
    static char disk[] = "/tmp/fonda-fuzz-XXXXXX";
    static char disk_option[64];
    static char *argv[] = {"fuzz-state", "--kernel", "none",      "--memory", "4M",   "--cpus",
                           "2",          "--disk",   disk_option, "--net",    "user", "--balloon"};
    struct err err = {0};
    int fd = mkstemp(disk);
    if (fd < 0 || ftruncate(fd, 1 << 20) < 0) {
        abort();
    }
    close(fd);
    snprintf(disk_option, sizeof(disk_option), "%s,format=raw", disk);
    uv_loop_init(&rig.loop);
    rig.clock = clock_new_host();
    if (vm_config_parse(ARRAY_SIZE(argv), argv, 1, &rig.config, &err) < 0 ||
        mem_new(rig.config.memory_bytes, &rig.mem, &err) < 0) {
        broken("options", &err);
    }
    const struct machine_config config = {.engine = engines[0],
                                          .mem = rig.mem,
                                          .clock = rig.clock,
                                          .cpus = (unsigned)rig.config.cpus,
                                          .cpu_model = rig.config.cpu_model,
                                          .stopping = on_stopping,
                                          .serial_sink = serial_sink,
                                          .serial_room = serial_room};
    const struct ports_terminal terminal = {terminal_sink, serial_room, NULL};
    if (machine_new(&config, &rig.machine, &err) < 0 ||
        devices_new(&rig.config, &rig.loop, rig.mem, rig.machine, &terminal, &rig.devices, &err) < 0) {
        broken("the machine", &err);
    }
    unlink(disk);
    pc_reset(machine_pc(rig.machine));
}

/* --- sections ---------------------------------------------------------------------------------------------
 */

static void parse(const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        struct section *section = &rig.parsed.all[rig.parsed.count++];
        memcpy(&section->head, at, sizeof(section->head));
        section->name = at + sizeof(section->head);
        at = section->name + section->head.name_len;
        const uint8_t *stop = at + section->head.payload_len;
        while (at < stop) {
            struct field *field = &section->fields[section->count++];
            memcpy(&field->head, at, sizeof(field->head));
            field->name = at + sizeof(field->head);
            field->bytes = field->name + field->head.name_len;
            at = field->bytes + field->head.len;
            if (section->count == FIELDS_MAX) {
                abort();
            }
        }
        at += sizeof(uint32_t);
    }
}

static size_t put(uint8_t *out, size_t at, const void *bytes, size_t len)
{
    if (at + len > BYTES_MAX) {
        return at;
    }
    memcpy(out + at, bytes, len);
    return at + len;
}

static size_t encode(const struct sections *sections, uint8_t *out)
{
    size_t at = 0;
    for (unsigned i = 0; i < sections->count; i++) {
        const struct section *section = &sections->all[i];
        struct section_head head = section->head;
        size_t start = at;
        head.payload_len = 0;
        for (unsigned f = 0; f < section->count; f++) {
            const struct field *field = &section->fields[f];
            head.payload_len += (uint32_t)sizeof(field->head) + field->head.name_len + field->head.len;
        }
        at = put(out, at, &head, sizeof(head));
        at = put(out, at, section->name, head.name_len);
        for (unsigned f = 0; f < section->count; f++) {
            const struct field *field = &section->fields[f];
            at = put(out, at, &field->head, sizeof(field->head));
            at = put(out, at, field->name, field->head.name_len);
            at = put(out, at, field->bytes, field->head.len);
        }
        uint32_t crc = state_crc32c(0, out + start, at - start);
        at = put(out, at, &crc, sizeof(crc));
    }
    return at;
}

/* Values live in pool, which a run has for itself. */
static void change_field(struct section *section, unsigned index, unsigned how, uint16_t value, uint8_t *pool)
{
    struct field *field = &section->fields[index];
    uint32_t len = MIN(field->head.len, 1u << 16);
    switch (how) {
    case 0: /* all bytes alike */
        memset(pool, (uint8_t)value, len);
        field->bytes = pool;
        break;
    case 1: /* one byte */
        memcpy(pool, field->bytes, len);
        if (len > 0) {
            pool[(value >> 8) % len] = (uint8_t)value;
        }
        field->bytes = pool;
        break;
    case 2: /* a small number, and its negative */
        memset(pool, value & 1 ? 0xff : 0, len);
        memcpy(pool, &value, MIN(len, (uint32_t)sizeof(value)));
        field->bytes = pool;
        break;
    case 3: field->head.len = field->head.len ? value % field->head.len : 0; break;
    case 4:
        memset(pool, 0, len + 256);
        memcpy(pool, field->bytes, len);
        field->bytes = pool;
        field->head.len = len + value % 256;
        break;
    case 5: field->head.type = (uint8_t)value; break;
    case 6:
        memcpy(pool, field->name, field->head.name_len);
        pool[value % MAX(field->head.name_len, 1u)] ^= (uint8_t)(value >> 8 | 1);
        field->name = pool;
        break;
    case 7: *field = section->fields[--section->count]; break;
    case 8:
        if (section->count < FIELDS_MAX) {
            section->fields[section->count++] = *field;
        }
        break;
    default: {
        struct field other = section->fields[value % section->count];
        section->fields[value % section->count] = *field;
        *field = other;
    }
    }
}

static void change_section(struct sections *sections, unsigned index, unsigned how, uint16_t value)
{
    struct section *section = &sections->all[index];
    switch (how) {
    case 0: *section = sections->all[--sections->count]; break;
    case 1:
        if (sections->count < SECTIONS_MAX) {
            sections->all[sections->count++] = *section;
        }
        break;
    case 2: section->head.version = value; break;
    case 3: section->head.magic ^= value; break;
    default: {
        static struct section other;
        other = sections->all[value % sections->count];
        sections->all[value % sections->count] = *section;
        *section = other;
    }
    }
}

static void run_sections(const uint8_t *data, size_t size)
{
    static uint8_t out[BYTES_MAX], pool[16][(1 << 16) + 256];
    rig.changed = rig.parsed;
    for (unsigned i = 0; i < ARRAY_SIZE(pool) && size >= OP_BYTES; i++, data += OP_BYTES, size -= OP_BYTES) {
        uint16_t value = (uint16_t)(data[4] | data[5] << 8);
        unsigned which = data[1] | (unsigned)data[2] << 8;
        if (rig.changed.count == 0) {
            break;
        }
        unsigned index = data[0] % rig.changed.count;
        struct section *section = &rig.changed.all[index];
        if (data[3] % 16 < 11 && section->count > 0) {
            change_field(section, which % section->count, data[3] % 16, value, pool[i]);
        } else {
            change_section(&rig.changed, index, which % 5, value);
        }
    }
    machine_freeze(rig.machine);
    int rc = load(out, encode(&rig.changed, out));
    if (rc == 0) {
        size_t len;
        free(save(&len));
        thaw();
        run_timers();
        machine_freeze(rig.machine);
    }
    if (load(rig.base, rig.base_len) < 0) {
        abort();
    }
    thaw();
}

/* --- the file ---------------------------------------------------------------------------------------------
 */

static void make_file(void)
{
    const struct saved_head head = {"{\"fonda\": \"0\"}", rig.base, rig.base_len, 256 * KiB, 64 * KiB};
    char path[] = "/tmp/fonda-fuzz-XXXXXX";
    static uint8_t chunk[64 * KiB];
    struct saved_writer *writer;
    struct err err = {0};
    uint64_t bytes;
    int fd = mkstemp(path);
    close(fd);
    if (saved_create(path, &head, &writer, &err) < 0) {
        broken("a file", &err);
    }
    for (unsigned i = 0; i < 4; i++) {
        memset(chunk, (int)i, sizeof(chunk) / 2);
        saved_write_chunk(writer, chunk, &err);
    }
    if (saved_commit(writer, &bytes, &err) < 0) {
        broken("a file", &err);
    }
    FILE *in = fopen(path, "re");
    rig.file = malloc(bytes);
    rig.file_len = in && rig.file ? fread(rig.file, 1, bytes, in) : 0;
    fclose(in);
    unlink(path);
}

static void run_file(const uint8_t *data, size_t size)
{
    static uint8_t buf[64 * KiB];
    char path[40];
    struct err err = {0};
    struct saved_reader *reader;
    int fd = memfd_create("fuzz-state", MFD_CLOEXEC);
    if (fd < 0 || write(fd, rig.file, rig.file_len) < 0) {
        abort();
    }
    for (; size >= FILE_AT; data += FILE_AT, size -= FILE_AT) {
        uint32_t where = data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16;
        if (where % 64 == 63) {
            (void)!ftruncate(fd, where % (2 * (uint32_t)rig.file_len));
        } else {
            (void)!pwrite(fd, data + 3, 1, where % 128 < 96 ? where % 40 : where % (uint32_t)rig.file_len);
        }
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (saved_open(path, &reader, &err) == 0) {
        for (uint64_t i = 0; i < saved_chunks(reader); i++) {
            (void)saved_read_chunk(reader, 0, i, buf, sizeof(buf));
        }
        saved_close(reader);
    }
    close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!rig.machine) {
        make_machine();
        machine_freeze(rig.machine);
        rig.base = save(&rig.base_len);
        thaw();
        parse(rig.base, rig.base + rig.base_len);
        make_file();
    }
    if (size > 0 && data[0] & 1) {
        run_file(data + 1, size - 1);
    } else if (size > 0) {
        run_sections(data + 1, size - 1);
    }
    return 0;
}
