/*
 * The 8042: see i8042.h.
 *
 * Commands are carried out at once, so the input buffer is never full. One byte at a time stands in the
 * output buffer; the controller's answers go there directly, the keyboard's wait in a queue until it is free
 * and the keyboard's clock is on. Commands to the missing auxiliary port answer with an error at once instead
 * of with silence, which spares guests their timeouts.
 */
#include "dev/legacy/i8042.h"

#include "base/state.h"
#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdio.h>

/* Status register. */
#define STATUS_OUT     0x01u
#define STATUS_SYSTEM  0x04u
#define STATUS_COMMAND 0x08u
#define STATUS_KEYLOCK 0x10u /* off: locked */
#define STATUS_AUX     0x20u
#define STATUS_TIMEOUT 0x40u

/* Command byte, RAM address 0. */
#define CTR_IRQ       0x01u
#define CTR_SYSTEM    0x04u
#define CTR_DISABLED  0x10u
#define CTR_AUX_OFF   0x20u
#define CTR_TRANSLATE 0x40u

/* Output port. */
#define PORT_NO_RESET 0x01u
#define PORT_A20      0x02u
#define PORT_OUT_FULL 0x10u

#define INPUT_PORT_UNLOCKED 0x80u

enum pending_data { DATA_KEYBOARD, DATA_RAM, DATA_OUT_PORT, DATA_OUT_BUFFER, DATA_OUT_AUX, DATA_AUX };

#define KBD_ACK    0xfau
#define KBD_RESEND 0xfeu
#define KBD_BAT_OK 0xaau
#define KBD_QUEUE  16u

struct i8042 {
    struct device device;
    struct i8042_config config;
    bool irq_level;
    uint8_t ram[32]; /* [0]: command byte */
    uint8_t out_port;
    uint8_t out;
    uint8_t status; /* OUT, COMMAND, AUX, TIMEOUT as they change; the rest is worked out */
    enum pending_data next_data;
    uint8_t ram_address;

    uint8_t kbd_command; /* one that waits for its parameter, 0: none */
    uint8_t kbd_set;     /* scan code set */
    uint8_t queue[KBD_QUEUE];
    unsigned queue_head, queue_len;
};

static void irq_update(struct i8042 *kbc)
{
    bool level = (kbc->status & STATUS_OUT) && !(kbc->status & STATUS_AUX) && (kbc->ram[0] & CTR_IRQ);
    if (level != kbc->irq_level) {
        kbc->irq_level = level;
        irq_set(&kbc->config.irq, level);
    }
}

static void put_out(struct i8042 *kbc, uint8_t byte, uint8_t flags)
{
    kbc->out = byte;
    kbc->status = (uint8_t)((kbc->status & ~(STATUS_AUX | STATUS_TIMEOUT)) | STATUS_OUT | flags);
    irq_update(kbc);
}

/* Moves the next byte of the keyboard into the free output buffer. */
static void pull_keyboard(struct i8042 *kbc)
{
    if ((kbc->status & STATUS_OUT) || (kbc->ram[0] & CTR_DISABLED) || !kbc->queue_len) {
        return;
    }
    uint8_t byte = kbc->queue[kbc->queue_head];
    kbc->queue_head = (kbc->queue_head + 1) % KBD_QUEUE;
    kbc->queue_len--;
    /* Of all that this keyboard says, only its ID has a translation to set 1. */
    if ((kbc->ram[0] & CTR_TRANSLATE) && byte == 0x83) {
        byte = 0x41;
    }
    put_out(kbc, byte, 0);
}

static void kbd_say(struct i8042 *kbc, uint8_t byte)
{
    if (kbc->queue_len < KBD_QUEUE) { /* a full queue drops, as the keyboard's own buffer does */
        kbc->queue[(kbc->queue_head + kbc->queue_len++) % KBD_QUEUE] = byte;
    }
}

static void kbd_parameter(struct i8042 *kbc, uint8_t command, uint8_t value)
{
    kbd_say(kbc, KBD_ACK);
    if (command == 0xf0) {
        if (value == 0) {
            kbd_say(kbc, kbc->kbd_set);
        } else if (value <= 3) {
            kbc->kbd_set = value;
        }
    }
}

static void kbd_write(struct i8042 *kbc, uint8_t value)
{
    if (kbc->kbd_command) {
        uint8_t command = kbc->kbd_command;
        kbc->kbd_command = 0;
        kbd_parameter(kbc, command, value);
        return;
    }
    switch (value) {
    case 0xed: /* LEDs */
    case 0xf0: /* scan code set */
    case 0xf3: /* typematic rate */
        kbc->kbd_command = value;
        kbd_say(kbc, KBD_ACK);
        break;
    case 0xee: kbd_say(kbc, 0xee); break; /* echo */
    case 0xf2:                            /* identify: MF2 keyboard */
        kbd_say(kbc, KBD_ACK);
        kbd_say(kbc, 0xab);
        kbd_say(kbc, 0x83);
        break;
    case 0xf4: /* enable */
    case 0xf5: /* default and disable */
    case 0xf6: /* default */
        kbc->kbd_set = 2;
        kbd_say(kbc, KBD_ACK);
        break;
    case 0xff:
        kbc->kbd_set = 2;
        kbc->queue_len = 0;
        kbd_say(kbc, KBD_ACK);
        kbd_say(kbc, KBD_BAT_OK);
        break;
    default: kbd_say(kbc, KBD_RESEND); break;
    }
}

static void out_port_write(struct i8042 *kbc, uint8_t value)
{
    bool a20 = value & PORT_A20;
    bool a20_was = kbc->out_port & PORT_A20;
    kbc->out_port = value & (PORT_A20 | PORT_NO_RESET);
    if (a20 != a20_was && kbc->config.set_a20) {
        kbc->config.set_a20(kbc->config.opaque, a20);
    }
    if (!(value & PORT_NO_RESET)) {
        kbc->out_port |= PORT_NO_RESET;
        kbc->config.reset(kbc->config.opaque);
    }
}

static void command_write(struct i8042 *kbc, uint8_t value)
{
    kbc->next_data = DATA_KEYBOARD;
    if (value >= 0xf0) {
        /* Pulses the output port's low bits that are 0 here; bit 0 is the reset line. */
        if (!(value & 1)) {
            kbc->config.reset(kbc->config.opaque);
        }
        return;
    }
    if (value >= 0x20 && value < 0x40) {
        put_out(kbc, kbc->ram[value & 0x1f], 0);
        return;
    }
    if (value >= 0x60 && value < 0x80) {
        kbc->ram_address = value & 0x1f;
        kbc->next_data = DATA_RAM;
        return;
    }
    switch (value) {
    case 0xa7: kbc->ram[0] |= CTR_AUX_OFF; break;
    case 0xa8: kbc->ram[0] &= (uint8_t)~CTR_AUX_OFF; break;
    case 0xa9: put_out(kbc, 0x01, 0); break; /* auxiliary port test: its clock line is stuck low */
    case 0xaa:
        kbc->ram[0] |= CTR_SYSTEM;
        put_out(kbc, 0x55, 0);
        break;
    case 0xab: put_out(kbc, 0x00, 0); break; /* keyboard port test: no error */
    case 0xad: kbc->ram[0] |= CTR_DISABLED; break;
    case 0xae: kbc->ram[0] &= (uint8_t)~CTR_DISABLED; break;
    case 0xc0: put_out(kbc, INPUT_PORT_UNLOCKED, 0); break;
    case 0xd0:
        put_out(kbc, (uint8_t)(kbc->out_port | (kbc->status & STATUS_OUT ? PORT_OUT_FULL : 0)), 0);
        break;
    case 0xd1: kbc->next_data = DATA_OUT_PORT; break;
    case 0xd2: kbc->next_data = DATA_OUT_BUFFER; break;
    case 0xd3: kbc->next_data = DATA_OUT_AUX; break;
    case 0xd4: kbc->next_data = DATA_AUX; break;
    default: break; /* unknown commands do nothing */
    }
}

static void data_write(struct i8042 *kbc, uint8_t value)
{
    enum pending_data what = kbc->next_data;
    kbc->next_data = DATA_KEYBOARD;
    switch (what) {
    case DATA_KEYBOARD:
        kbc->ram[0] &= (uint8_t)~CTR_DISABLED; /* sending to the keyboard turns its clock on */
        kbd_write(kbc, value);
        break;
    case DATA_RAM: kbc->ram[kbc->ram_address] = value; break;
    case DATA_OUT_PORT: out_port_write(kbc, value); break;
    case DATA_OUT_BUFFER: put_out(kbc, value, 0); break;
    case DATA_OUT_AUX: put_out(kbc, value, 0); break; /* without the AUX flag: there is no such port */
    case DATA_AUX: put_out(kbc, KBD_RESEND, STATUS_AUX | STATUS_TIMEOUT); break;
    }
}

static uint64_t data_read(void *opaque, uint64_t offset, unsigned size)
{
    struct i8042 *kbc = opaque;
    uint8_t byte = kbc->out;
    kbc->status &= (uint8_t) ~(STATUS_OUT | STATUS_AUX | STATUS_TIMEOUT);
    irq_update(kbc);
    pull_keyboard(kbc);
    return byte;
}

static void data_port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8042 *kbc = opaque;
    kbc->status &= (uint8_t)~STATUS_COMMAND;
    data_write(kbc, (uint8_t)value);
    irq_update(kbc);
    pull_keyboard(kbc);
}

static uint64_t status_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct i8042 *kbc = opaque;
    return kbc->status | STATUS_KEYLOCK | (kbc->ram[0] & CTR_SYSTEM ? STATUS_SYSTEM : 0u);
}

static void command_port_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8042 *kbc = opaque;
    kbc->status |= STATUS_COMMAND;
    command_write(kbc, (uint8_t)value);
    irq_update(kbc);
    pull_keyboard(kbc);
}

static const struct mem_io_ops data_ops = {data_read, data_port_write};
static const struct mem_io_ops command_ops = {status_read, command_port_write};

static void i8042_reset(struct device *dev)
{
    struct i8042 *kbc = CONTAINER_OF(dev, struct i8042, device);
    struct i8042_config config = kbc->config;
    bool irq_level = kbc->irq_level;
    *kbc = (struct i8042){.device = kbc->device, .config = config, .irq_level = irq_level, .kbd_set = 2};
    kbc->ram[0] = CTR_IRQ | CTR_SYSTEM | CTR_TRANSLATE | CTR_AUX_OFF; /* as PC firmware leaves it */
    kbc->out_port = PORT_NO_RESET | PORT_A20;
    irq_update(kbc);
}

static void i8042_free(struct device *dev)
{
    free(CONTAINER_OF(dev, struct i8042, device));
}

static unsigned i8042_describe(const struct device *dev, char *buf, unsigned size)
{
    const struct i8042 *kbc = CONTAINER_OF(dev, const struct i8042, device);
    int n = snprintf(buf, size, "status=%02x ctr=%02x out=%02x queued=%u port=%02x irq=%d\n", kbc->status,
                     kbc->ram[0], kbc->out, kbc->queue_len, kbc->out_port, kbc->irq_level);
    return MIN((unsigned)MAX(n, 0), size);
}

static void i8042_state(struct device *dev, struct state *s)
{
    struct i8042 *kbc = CONTAINER_OF(dev, struct i8042, device);
    uint8_t next_data = (uint8_t)kbc->next_data;
    state_field(s, "irq", &kbc->irq_level);
    state_array(s, "ram", kbc->ram);
    state_field(s, "out_port", &kbc->out_port);
    state_field(s, "out", &kbc->out);
    state_field(s, "status", &kbc->status);
    state_field(s, "next_data", &next_data);
    state_require(s, next_data <= DATA_AUX, "next_data");
    state_field(s, "ram_address", &kbc->ram_address);
    state_require(s, kbc->ram_address < ARRAY_SIZE(kbc->ram), "ram_address");
    state_field(s, "kbd_command", &kbc->kbd_command);
    state_field(s, "kbd_set", &kbc->kbd_set);
    state_array(s, "queue", kbc->queue);
    state_field(s, "queue_head", &kbc->queue_head);
    state_field(s, "queue_len", &kbc->queue_len);
    state_require(s, kbc->queue_head < KBD_QUEUE, "queue_head");
    state_require(s, kbc->queue_len <= KBD_QUEUE, "queue_len");
    kbc->next_data = (enum pending_data)next_data;
}

static const struct device_ops i8042_device_ops = {.name = "i8042",
                                                   .reset = i8042_reset,
                                                   .free = i8042_free,
                                                   .describe = i8042_describe,
                                                   .state = i8042_state};

struct i8042 *i8042_new(const struct i8042_config *config, struct err *err)
{
    struct i8042 *kbc = calloc(1, sizeof(*kbc));
    if (!kbc) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    kbc->device.ops = &i8042_device_ops;
    kbc->config = *config;
    if (mem_add_pio(config->mem, 0x60, 1, &data_ops, kbc, "i8042-data", err) < 0 ||
        mem_add_pio(config->mem, 0x64, 1, &command_ops, kbc, "i8042-command", err) < 0) {
        free(kbc);
        return NULL;
    }
    i8042_reset(&kbc->device);
    return kbc;
}

struct device *i8042_device(struct i8042 *kbc)
{
    return &kbc->device;
}
