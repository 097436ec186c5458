/*
 * Two 8259A in cascade: see i8259.h.
 *
 * Each chip is a small machine over four bytes: lines (the inputs as they are), irr (requests), imr (masks),
 * isr (in service). After every change pic_update() carries the slave's output to the master's input 2 and
 * the master's to the INTR line.
 *
 * Invariants
 *  1. A level-triggered bit of irr equals the bit in lines; an edge-triggered one is set by a rising edge and
 *     cleared by its acknowledge.
 *  2. intr_level is what the INTR line was last told.
 */
#include "dev/irq/i8259.h"

#include "base/state.h"
#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdio.h>

#define CASCADE_INPUT 2u

/* Data sheet, "Initialization Command Words". */
#define ICW1_ICW4   0x01u
#define ICW1_SINGLE 0x02u
#define ICW1_INIT   0x10u
#define ICW4_AEOI   0x02u
#define ICW4_SFNM   0x10u
/* "Operation Command Words": OCW3. */
#define OCW3_ID   0x08u
#define OCW3_RIS  0x01u
#define OCW3_RR   0x02u
#define OCW3_POLL 0x04u
#define OCW3_SMM  0x20u
#define OCW3_ESMM 0x40u

enum init_step { INIT_DONE, INIT_ICW2, INIT_ICW3, INIT_ICW4 };

struct pic_chip {
    uint8_t lines, irr, imr, isr;
    uint8_t elcr, elcr_mask; /* ELCR bits that exist; IRQ 0, 1, 2, 8 and 13 are always edge (PIIX4 4.1.3) */
    uint8_t lowest;          /* the input with the lowest priority: 7 after initialization */
    uint8_t vector_base;
    enum init_step step;
    bool single, want_icw4;
    bool auto_eoi, rotate_on_aeoi, special_mask, special_nested;
    bool read_isr, poll;
    bool master;
};

struct i8259 {
    struct device device;
    struct irq_line intr;
    bool intr_level;
    struct pic_chip chip[2]; /* master, slave */
};

static void pic_update(struct i8259 *pic);

/* The set bit with the highest priority, 0-7, or -1. */
static int highest(const struct pic_chip *chip, unsigned bits)
{
    for (unsigned i = 1; i <= 8; i++) {
        unsigned n = (chip->lowest + i) & 7;
        if (bits & BIT(n)) {
            return (int)n;
        }
    }
    return -1;
}

static unsigned rank(const struct pic_chip *chip, int n)
{
    return n < 0 ? 8 : ((unsigned)n + 7 - chip->lowest) & 7;
}

/* The input that asks for service now, or -1: it must outrank what is in service. */
static int chip_request(const struct pic_chip *chip)
{
    if (chip->step != INIT_DONE) {
        return -1;
    }
    unsigned in_service = chip->isr;
    if (chip->special_mask) {
        in_service &= ~(unsigned)chip->imr;
    }
    if (chip->special_nested && chip->master) {
        in_service &= ~BIT(CASCADE_INPUT); /* the slave may interrupt itself */
    }
    int n = highest(chip, chip->irr & ~(unsigned)chip->imr);
    return rank(chip, n) < rank(chip, highest(chip, in_service)) ? n : -1;
}

static void chip_set_input(struct pic_chip *chip, unsigned n, bool level)
{
    uint8_t bit = (uint8_t)BIT(n);
    bool was = chip->lines & bit;
    chip->lines = (uint8_t)(level ? chip->lines | bit : chip->lines & ~bit);
    if (chip->elcr & bit) {
        chip->irr = (uint8_t)(level ? chip->irr | bit : chip->irr & ~bit);
    } else if (level && !was) {
        chip->irr |= bit;
    }
}

/* Takes the input into service, as the first INTA pulse does. */
static void chip_accept(struct pic_chip *chip, unsigned n)
{
    uint8_t bit = (uint8_t)BIT(n);
    if (!(chip->elcr & bit)) {
        chip->irr &= (uint8_t)~bit;
    }
    if (!chip->auto_eoi) {
        chip->isr |= bit;
    } else if (chip->rotate_on_aeoi) {
        chip->lowest = (uint8_t)n;
    }
}

static void pic_update(struct i8259 *pic)
{
    /* The slave's output is wired to an edge input that falls with the request, unlike a device's pulse. */
    struct pic_chip *master = &pic->chip[0];
    bool slave_out = chip_request(&pic->chip[1]) >= 0;
    chip_set_input(master, CASCADE_INPUT, slave_out);
    if (slave_out) {
        master->irr |= BIT(CASCADE_INPUT);
    } else {
        master->irr &= (uint8_t)~BIT(CASCADE_INPUT);
    }
    bool out = chip_request(master) >= 0;
    if (out != pic->intr_level) {
        pic->intr_level = out;
        irq_set(&pic->intr, out);
    }
}

void i8259_set_irq(void *opaque, unsigned n, bool level)
{
    struct i8259 *pic = opaque;
    if (n > 15 || n == CASCADE_INPUT) {
        return;
    }
    chip_set_input(&pic->chip[n >> 3], n & 7, level);
    pic_update(pic);
}

/* A chip without a request answers with input 7 and takes nothing into service (data sheet, "Interrupt
 * Sequence"). */
static unsigned chip_ack(struct pic_chip *chip)
{
    int n = chip_request(chip);
    if (n < 0) {
        return 7;
    }
    chip_accept(chip, (unsigned)n);
    return (unsigned)n;
}

int i8259_ack(struct i8259 *pic)
{
    struct pic_chip *master = &pic->chip[0];
    bool cascade = chip_request(master) == (int)CASCADE_INPUT;
    unsigned vector = master->vector_base + chip_ack(master);
    if (cascade) {
        struct pic_chip *slave = &pic->chip[1];
        vector = slave->vector_base + chip_ack(slave);
    }
    pic_update(pic);
    return (int)(vector & 0xff);
}

static void chip_eoi(struct pic_chip *chip, int n, bool rotate)
{
    if (n >= 0) {
        chip->isr &= (uint8_t)~BIT((unsigned)n);
        if (rotate) {
            chip->lowest = (uint8_t)n;
        }
    }
}

static void chip_ocw2(struct pic_chip *chip, uint8_t value)
{
    int level = value & 7;
    unsigned in_service = chip->special_mask ? chip->isr & ~(unsigned)chip->imr : chip->isr;
    switch (value >> 5) {
    case 0: chip->rotate_on_aeoi = false; break;
    case 1: chip_eoi(chip, highest(chip, in_service), false); break;
    case 3: chip_eoi(chip, level, false); break;
    case 4: chip->rotate_on_aeoi = true; break;
    case 5: chip_eoi(chip, highest(chip, in_service), true); break;
    case 6: chip->lowest = (uint8_t)level; break;
    case 7: chip_eoi(chip, level, true); break;
    default: break; /* 2: no operation */
    }
}

static void chip_icw1(struct pic_chip *chip, uint8_t value)
{
    chip->irr = chip->lines & chip->elcr; /* edge sense is cleared: an edge must come anew */
    chip->imr = 0;
    chip->isr = 0;
    chip->lowest = 7;
    chip->special_mask = false;
    chip->read_isr = false;
    chip->poll = false;
    chip->auto_eoi = false;
    chip->rotate_on_aeoi = false;
    chip->special_nested = false;
    chip->single = value & ICW1_SINGLE;
    chip->want_icw4 = value & ICW1_ICW4;
    chip->step = INIT_ICW2;
}

static void chip_write_command(struct pic_chip *chip, uint8_t value)
{
    if (value & ICW1_INIT) {
        chip_icw1(chip, value);
    } else if (!(value & OCW3_ID)) {
        chip_ocw2(chip, value);
    } else {
        if (value & OCW3_POLL) {
            chip->poll = true;
        }
        if (value & OCW3_RR) {
            chip->read_isr = value & OCW3_RIS;
        }
        if (value & OCW3_ESMM) {
            chip->special_mask = value & OCW3_SMM;
        }
    }
}

static void chip_write_data(struct pic_chip *chip, uint8_t value)
{
    switch (chip->step) {
    case INIT_DONE: chip->imr = value; break;
    case INIT_ICW2:
        chip->vector_base = value & 0xf8;
        chip->step = !chip->single ? INIT_ICW3 : chip->want_icw4 ? INIT_ICW4 : INIT_DONE;
        break;
    case INIT_ICW3: chip->step = chip->want_icw4 ? INIT_ICW4 : INIT_DONE; break; /* the wiring is fixed */
    case INIT_ICW4:
        chip->auto_eoi = value & ICW4_AEOI;
        chip->special_nested = value & ICW4_SFNM;
        chip->step = INIT_DONE;
        break;
    }
}

static void i8259_write(struct i8259 *pic, unsigned which, uint64_t offset, uint8_t value)
{
    struct pic_chip *chip = &pic->chip[which];
    if (offset == 0) {
        chip_write_command(chip, value);
    } else {
        chip_write_data(chip, value);
    }
    pic_update(pic);
}

static uint8_t i8259_read(struct i8259 *pic, unsigned which, uint64_t offset)
{
    struct pic_chip *chip = &pic->chip[which];
    if (chip->poll) {
        /* The read after a poll command is the acknowledge (data sheet, "Poll Command"). */
        int n = chip_request(chip);
        chip->poll = false;
        if (n < 0) {
            return 0;
        }
        chip_accept(chip, (unsigned)n);
        pic_update(pic);
        return (uint8_t)(0x80 | n);
    }
    if (offset == 1) {
        return chip->imr;
    }
    return chip->read_isr ? chip->isr : chip->irr;
}

static uint64_t master_read(void *opaque, uint64_t offset, unsigned size)
{
    return size == 1 ? i8259_read(opaque, 0, offset) : UINT64_MAX;
}

static void master_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    i8259_write(opaque, 0, offset, (uint8_t)value);
    if (size == 2) {
        i8259_write(opaque, 0, 1, (uint8_t)(value >> 8));
    }
}

static uint64_t slave_read(void *opaque, uint64_t offset, unsigned size)
{
    return size == 1 ? i8259_read(opaque, 1, offset) : UINT64_MAX;
}

static void slave_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    i8259_write(opaque, 1, offset, (uint8_t)value);
    if (size == 2) {
        i8259_write(opaque, 1, 1, (uint8_t)(value >> 8));
    }
}

static uint64_t elcr_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct i8259 *pic = opaque;
    return size == 1 ? pic->chip[offset & 1].elcr : pic->chip[0].elcr | (uint64_t)pic->chip[1].elcr << 8;
}

static void elcr_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct i8259 *pic = opaque;
    for (unsigned i = 0; i < size; i++, value >>= 8) {
        struct pic_chip *chip = &pic->chip[(offset + i) & 1];
        chip->elcr = (uint8_t)value & chip->elcr_mask;
        chip->irr = (uint8_t)((chip->irr & ~chip->elcr) | (chip->lines & chip->elcr));
    }
    pic_update(pic);
}

static const struct mem_io_ops master_ops = {master_read, master_write};
static const struct mem_io_ops slave_ops = {slave_read, slave_write};
static const struct mem_io_ops elcr_ops = {elcr_read, elcr_write};

static void i8259_reset(struct device *dev)
{
    struct i8259 *pic = CONTAINER_OF(dev, struct i8259, device);
    for (unsigned i = 0; i < 2; i++) {
        struct pic_chip *chip = &pic->chip[i];
        uint8_t lines = chip->lines;
        *chip = (struct pic_chip){.lines = lines, .imr = 0xff, .lowest = 7, .master = i == 0};
        chip->elcr_mask = i == 0 ? 0xf8 : 0xde;
    }
    pic_update(pic);
}

static void i8259_free(struct device *dev)
{
    free(CONTAINER_OF(dev, struct i8259, device));
}

static unsigned i8259_describe(const struct device *dev, char *buf, unsigned size)
{
    const struct i8259 *pic = CONTAINER_OF(dev, const struct i8259, device);
    unsigned len = 0;
    for (unsigned i = 0; i < 2 && len < size; i++) {
        const struct pic_chip *chip = &pic->chip[i];
        int n =
            snprintf(buf + len, size - len, "%s base=%02x irr=%02x imr=%02x isr=%02x elcr=%02x lines=%02x\n",
                     i == 0 ? "master" : "slave ", chip->vector_base, chip->irr, chip->imr, chip->isr,
                     chip->elcr, chip->lines);
        len += (unsigned)MAX(n, 0);
    }
    return MIN(len, size);
}

static void i8259_state(struct device *dev, struct state *s)
{
    struct i8259 *pic = CONTAINER_OF(dev, struct i8259, device);
    state_field(s, "intr", &pic->intr_level);
    for (unsigned i = 0; i < 2; i++) {
        struct pic_chip *chip = &pic->chip[i];
        uint8_t step = (uint8_t)chip->step;
        state_prefix(s, i == 0 ? "master." : "slave.");
        state_field(s, "lines", &chip->lines);
        state_field(s, "irr", &chip->irr);
        state_field(s, "imr", &chip->imr);
        state_field(s, "isr", &chip->isr);
        state_field(s, "elcr", &chip->elcr);
        state_field(s, "lowest", &chip->lowest);
        state_require(s, chip->lowest < 8, "lowest");
        state_field(s, "vector_base", &chip->vector_base);
        state_field(s, "init_step", &step);
        state_require(s, step <= INIT_ICW4, "init_step");
        state_field(s, "single", &chip->single);
        state_field(s, "want_icw4", &chip->want_icw4);
        state_field(s, "auto_eoi", &chip->auto_eoi);
        state_field(s, "rotate_on_aeoi", &chip->rotate_on_aeoi);
        state_field(s, "special_mask", &chip->special_mask);
        state_field(s, "special_nested", &chip->special_nested);
        state_field(s, "read_isr", &chip->read_isr);
        state_field(s, "poll", &chip->poll);
        chip->step = (enum init_step)(step & 3);
        chip->elcr &= chip->elcr_mask;
    }
}

static const struct device_ops i8259_device_ops = {.name = "i8259",
                                                   .reset = i8259_reset,
                                                   .free = i8259_free,
                                                   .describe = i8259_describe,
                                                   .state = i8259_state};

struct i8259 *i8259_new(const struct i8259_config *config, struct err *err)
{
    struct i8259 *pic = calloc(1, sizeof(*pic));
    if (!pic) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    pic->device.ops = &i8259_device_ops;
    pic->intr = config->intr;
    if (mem_add_pio(config->mem, 0x20, 2, &master_ops, pic, "i8259-master", err) < 0 ||
        mem_add_pio(config->mem, 0xa0, 2, &slave_ops, pic, "i8259-slave", err) < 0 ||
        mem_add_pio(config->mem, 0x4d0, 2, &elcr_ops, pic, "i8259-elcr", err) < 0) {
        free(pic);
        return NULL;
    }
    i8259_reset(&pic->device);
    return pic;
}

struct device *i8259_device(struct i8259 *pic)
{
    return &pic->device;
}
