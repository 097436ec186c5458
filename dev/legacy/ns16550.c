/*
 * The 16550A: see ns16550.h.
 *
 * Sending takes no time: a byte written to the transmitter is in the output buffer at once, and the
 * transmitter is empty again as long as that buffer has room for one more FIFO of bytes. Receiving takes no
 * time either, but for the receiver's timeout, which is the time of four characters.
 *
 * Invariants
 *  1. out_len <= sizeof(out); THRE and TEMT are on exactly when FIFO_SIZE more bytes fit.
 *  2. irq_level is what the line was last told: some cause in IIR, gated by OUT2 (on PCs) and not in
 *     loopback.
 */
#include "dev/legacy/ns16550.h"

#include "base/clock.h"
#include "base/state.h"
#include "base/util.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define FIFO_SIZE 16u
#define OUT_SIZE  4096u
#define INPUT_HZ  1843200u
#define NS_PER_S  1000000000ull
#define CHAR_BITS 10u /* start, eight bits, stop */

enum uart_reg { REG_DATA, REG_IER, REG_FCR_IIR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };

#define IER_RDA  0x01u
#define IER_THRE 0x02u
#define IER_RLS  0x04u
#define IER_MSR  0x08u

#define IIR_NONE    0x01u
#define IIR_MSR     0x00u
#define IIR_THRE    0x02u
#define IIR_RDA     0x04u
#define IIR_RLS     0x06u
#define IIR_TIMEOUT 0x0cu
#define IIR_FIFOS   0xc0u

#define FCR_ENABLE   0x01u
#define FCR_RX_RESET 0x02u
#define FCR_TX_RESET 0x04u

#define LCR_DLAB 0x80u

#define MCR_DTR  0x01u
#define MCR_RTS  0x02u
#define MCR_OUT1 0x04u
#define MCR_OUT2 0x08u
#define MCR_LOOP 0x10u

#define LSR_DR     0x01u
#define LSR_OE     0x02u
#define LSR_ERRORS 0x1eu
#define LSR_THRE   0x20u
#define LSR_TEMT   0x40u

#define MSR_CTS  0x10u
#define MSR_DSR  0x20u
#define MSR_RI   0x40u
#define MSR_DCD  0x80u
#define MSR_TERI 0x04u

struct ns16550 {
    struct device device;
    struct ns16550_config config;
    bool irq_level;
    uint8_t ier, fcr, lcr, mcr, lsr, msr, scr;
    uint16_t divisor;
    bool thre_pending; /* the THRE interrupt's own latch: off once IIR showed it */
    bool rx_timed_out;
    bool input_refused; /* ns16550_input() took less than it was given */
    uint8_t rx[FIFO_SIZE];
    unsigned rx_head, rx_len;
    struct clock_timer rx_timer;

    struct clock_timer flush_timer;
    bool flush_armed;
    unsigned out_len;
    uint8_t out[OUT_SIZE];
};

static unsigned rx_capacity(const struct ns16550 *uart)
{
    return uart->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

/* Bytes in the FIFO that raise the data interrupt (data sheet, FCR bits 6 and 7). */
static unsigned rx_trigger(const struct ns16550 *uart)
{
    static const uint8_t levels[4] = {1, 4, 8, 14};
    return uart->fcr & FCR_ENABLE ? levels[uart->fcr >> 6] : 1;
}

static bool tx_empty(const struct ns16550 *uart)
{
    return uart->out_len + FIFO_SIZE <= OUT_SIZE;
}

/* The interrupt to report, by priority (data sheet, table IV). */
static uint8_t iir_cause(const struct ns16550 *uart)
{
    if ((uart->ier & IER_RLS) && (uart->lsr & LSR_ERRORS)) {
        return IIR_RLS;
    }
    if ((uart->ier & IER_RDA) && uart->rx_len >= rx_trigger(uart)) {
        return IIR_RDA;
    }
    if ((uart->ier & IER_RDA) && uart->rx_timed_out) {
        return IIR_TIMEOUT;
    }
    if ((uart->ier & IER_THRE) && uart->thre_pending) {
        return IIR_THRE;
    }
    if ((uart->ier & IER_MSR) && (uart->msr & 0x0f)) {
        return IIR_MSR;
    }
    return IIR_NONE;
}

static void irq_update(struct ns16550 *uart)
{
    bool gate = (uart->mcr & MCR_OUT2) && !(uart->mcr & MCR_LOOP);
    bool level = gate && iir_cause(uart) != IIR_NONE;
    if (level != uart->irq_level) {
        uart->irq_level = level;
        irq_set(&uart->config.irq, level);
    }
}

void ns16550_flush(struct ns16550 *uart)
{
    if (!uart->out_len) {
        return;
    }
    bool was_empty = tx_empty(uart);
    size_t taken = uart->config.sink(uart->config.opaque, uart->out, uart->out_len);
    taken = MIN(taken, uart->out_len);
    uart->out_len -= (unsigned)taken;
    memmove(uart->out, uart->out + taken, uart->out_len);
    if (!was_empty && tx_empty(uart)) {
        uart->thre_pending = true;
        irq_update(uart);
    }
    if (uart->out_len) {
        uart->flush_armed = true;
        (void)clock_timer_arm(uart->config.clock, &uart->flush_timer,
                              clock_now_ns(uart->config.clock) + NS16550_FLUSH_NS);
    } else if (uart->flush_armed) {
        uart->flush_armed = false;
        clock_timer_cancel(uart->config.clock, &uart->flush_timer);
    }
}

static void flush_timer_expired(void *opaque)
{
    struct ns16550 *uart = opaque;
    uart->flush_armed = false;
    ns16550_flush(uart);
}

static void rx_timer_expired(void *opaque)
{
    struct ns16550 *uart = opaque;
    if (uart->rx_len) {
        uart->rx_timed_out = true;
        irq_update(uart);
    }
}

/* Starts the receiver's timeout anew: four character times after the last byte came or went. */
static void rx_timeout_restart(struct ns16550 *uart)
{
    uart->rx_timed_out = false;
    if (!uart->rx_len || !(uart->fcr & FCR_ENABLE)) {
        clock_timer_cancel(uart->config.clock, &uart->rx_timer);
        return;
    }
    uint64_t divisor = uart->divisor ? uart->divisor : 1;
    uint64_t ns = 4ull * CHAR_BITS * NS_PER_S * 16 * divisor / INPUT_HZ;
    (void)clock_timer_arm(uart->config.clock, &uart->rx_timer, clock_now_ns(uart->config.clock) + ns);
}

/* Puts one byte into the receiver. Without room the 16550 keeps its FIFO and loses the new byte; the 16450
 * mode replaces the old one (data sheet, LSR bit 1). */
static void rx_put(struct ns16550 *uart, uint8_t byte)
{
    if (uart->rx_len < rx_capacity(uart)) {
        uart->rx[(uart->rx_head + uart->rx_len++) % FIFO_SIZE] = byte;
    } else {
        uart->lsr |= LSR_OE;
        if (!(uart->fcr & FCR_ENABLE)) {
            uart->rx[uart->rx_head] = byte;
        }
    }
}

size_t ns16550_input(struct ns16550 *uart, const uint8_t *bytes, size_t len)
{
    size_t taken = 0;
    if (!(uart->mcr & MCR_LOOP)) {
        while (taken < len && uart->rx_len < rx_capacity(uart)) {
            rx_put(uart, bytes[taken++]);
        }
    }
    uart->input_refused = taken < len;
    if (taken) {
        rx_timeout_restart(uart);
        irq_update(uart);
    }
    return taken;
}

static void tell_room(struct ns16550 *uart)
{
    if (uart->input_refused && !(uart->mcr & MCR_LOOP) && uart->rx_len < rx_capacity(uart)) {
        uart->input_refused = false;
        if (uart->config.room) {
            uart->config.room(uart->config.opaque);
        }
    }
}

static void rx_clear(struct ns16550 *uart)
{
    uart->rx_head = 0;
    uart->rx_len = 0;
    rx_timeout_restart(uart);
}

static uint8_t data_read(struct ns16550 *uart)
{
    uint8_t byte = uart->rx[uart->rx_head]; /* an empty receiver shows the last byte */
    if (uart->rx_len) {
        uart->rx_head = (uart->rx_head + 1) % FIFO_SIZE;
        uart->rx_len--;
        rx_timeout_restart(uart);
        irq_update(uart);
        if (!uart->rx_len) {
            tell_room(uart); /* not at every byte: a burst then costs one interrupt per FIFO */
        }
    }
    return byte;
}

static void data_write(struct ns16550 *uart, uint8_t byte)
{
    if (uart->mcr & MCR_LOOP) {
        rx_put(uart, byte);
        rx_timeout_restart(uart);
    } else if (uart->out_len < OUT_SIZE) { /* else the guest did not wait for THRE */
        uart->out[uart->out_len++] = byte;
        if (uart->out_len % NS16550_FLUSH_BYTES == 0) {
            ns16550_flush(uart);
        } else if (!uart->flush_armed) {
            uart->flush_armed = true;
            (void)clock_timer_arm(uart->config.clock, &uart->flush_timer,
                                  clock_now_ns(uart->config.clock) + NS16550_FLUSH_NS);
        }
    }
    uart->thre_pending = tx_empty(uart);
    irq_update(uart);
}

/* The modem lines: of a terminal that is always there, or looped back (data sheet, MCR bit 4). */
static uint8_t modem_lines(const struct ns16550 *uart)
{
    if (!(uart->mcr & MCR_LOOP)) {
        return MSR_CTS | MSR_DSR | MSR_DCD;
    }
    return (uint8_t)((uart->mcr & MCR_RTS ? MSR_CTS : 0) | (uart->mcr & MCR_DTR ? MSR_DSR : 0) |
                     (uart->mcr & MCR_OUT1 ? MSR_RI : 0) | (uart->mcr & MCR_OUT2 ? MSR_DCD : 0));
}

static void modem_update(struct ns16550 *uart)
{
    uint8_t lines = modem_lines(uart);
    uint8_t old = uart->msr & 0xf0;
    uint8_t delta = (uint8_t)((lines ^ old) >> 4);
    if (lines & MSR_RI) {
        delta &= (uint8_t)~MSR_TERI; /* only the trailing edge of ring counts */
    }
    uart->msr = (uint8_t)(lines | (uart->msr & 0x0f) | delta);
}

static void fcr_write(struct ns16550 *uart, uint8_t value)
{
    bool toggled = (value ^ uart->fcr) & FCR_ENABLE;
    if (toggled || (value & FCR_RX_RESET)) {
        uart->fcr = value & FCR_ENABLE; /* rx_clear asks for the mode */
        rx_clear(uart);
    }
    /* The transmitter's FIFO is never seen full: its reset leaves it empty, and bytes that were sent stay
     * sent. */
    uart->fcr = value & FCR_ENABLE ? value & (uint8_t) ~(FCR_RX_RESET | FCR_TX_RESET) : 0;
    tell_room(uart);
}

static uint8_t reg_read(struct ns16550 *uart, unsigned reg)
{
    uint8_t value;
    switch (reg) {
    case REG_DATA: return uart->lcr & LCR_DLAB ? (uint8_t)uart->divisor : data_read(uart);
    case REG_IER: return uart->lcr & LCR_DLAB ? (uint8_t)(uart->divisor >> 8) : uart->ier;
    case REG_FCR_IIR:
        value = iir_cause(uart);
        if (value == IIR_THRE) {
            uart->thre_pending = false;
            irq_update(uart);
        }
        return value | (uart->fcr & FCR_ENABLE ? IIR_FIFOS : 0);
    case REG_LCR: return uart->lcr;
    case REG_MCR: return uart->mcr;
    case REG_LSR:
        value = uart->lsr | (uart->rx_len ? LSR_DR : 0) | (tx_empty(uart) ? LSR_THRE | LSR_TEMT : 0);
        uart->lsr &= (uint8_t)~LSR_ERRORS;
        irq_update(uart);
        return value;
    case REG_MSR:
        value = uart->msr;
        uart->msr &= 0xf0;
        irq_update(uart);
        return value;
    default: return uart->scr;
    }
}

static void reg_write(struct ns16550 *uart, unsigned reg, uint8_t value)
{
    switch (reg) {
    case REG_DATA:
        if (uart->lcr & LCR_DLAB) {
            uart->divisor = (uint16_t)((uart->divisor & 0xff00) | value);
            return;
        }
        data_write(uart, value);
        return;
    case REG_IER:
        if (uart->lcr & LCR_DLAB) {
            uart->divisor = (uint16_t)((uart->divisor & 0xff) | value << 8);
            return;
        }
        if ((value & IER_THRE) && !(uart->ier & IER_THRE)) {
            uart->thre_pending = tx_empty(uart); /* enabling it with an empty transmitter interrupts */
        }
        uart->ier = value & 0x0f;
        break;
    case REG_FCR_IIR: fcr_write(uart, value); break;
    case REG_LCR: uart->lcr = value; break;
    case REG_MCR:
        uart->mcr = value & 0x1f;
        modem_update(uart);
        tell_room(uart);
        break;
    case REG_SCR: uart->scr = value; break;
    default: break; /* LSR and MSR are read-only */
    }
    irq_update(uart);
}

static uint64_t uart_read(void *opaque, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++) {
        value |= (uint64_t)reg_read(opaque, (unsigned)(offset + i) & 7) << (8 * i);
    }
    return value;
}

static void uart_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    for (unsigned i = 0; i < size; i++) {
        reg_write(opaque, (unsigned)(offset + i) & 7, (uint8_t)(value >> (8 * i)));
    }
}

static const struct mem_io_ops uart_ops = {uart_read, uart_write};

static void ns16550_reset(struct device *dev)
{
    struct ns16550 *uart = CONTAINER_OF(dev, struct ns16550, device);
    ns16550_flush(uart);
    uart->ier = 0;
    uart->fcr = 0;
    uart->lcr = 0;
    uart->mcr = 0;
    uart->lsr = 0;
    uart->msr = modem_lines(uart);
    uart->scr = 0;
    uart->divisor = 12; /* 9,600 baud; the data sheet leaves it undefined */
    uart->thre_pending = false;
    rx_clear(uart);
    irq_update(uart);
    tell_room(uart);
}

static void ns16550_free(struct device *dev)
{
    struct ns16550 *uart = CONTAINER_OF(dev, struct ns16550, device);
    ns16550_flush(uart);
    clock_timer_cancel(uart->config.clock, &uart->flush_timer);
    clock_timer_cancel(uart->config.clock, &uart->rx_timer);
    free(uart);
}

static unsigned ns16550_describe(const struct device *dev, char *buf, unsigned size)
{
    const struct ns16550 *uart = CONTAINER_OF(dev, const struct ns16550, device);
    int n = snprintf(buf, size,
                     "ier=%02x iir=%02x fcr=%02x lcr=%02x mcr=%02x msr=%02x divisor=%u rx=%u tx=%u irq=%d\n",
                     uart->ier, iir_cause(uart), uart->fcr, uart->lcr, uart->mcr, uart->msr, uart->divisor,
                     uart->rx_len, uart->out_len, uart->irq_level);
    return MIN((unsigned)MAX(n, 0), size);
}

static void ns16550_state(struct device *dev, struct state *s)
{
    struct ns16550 *uart = CONTAINER_OF(dev, struct ns16550, device);
    state_field(s, "irq", &uart->irq_level);
    state_field(s, "ier", &uart->ier);
    state_field(s, "fcr", &uart->fcr);
    state_field(s, "lcr", &uart->lcr);
    state_field(s, "mcr", &uart->mcr);
    state_field(s, "lsr", &uart->lsr);
    state_field(s, "msr", &uart->msr);
    state_field(s, "scr", &uart->scr);
    state_field(s, "divisor", &uart->divisor);
    state_field(s, "thre_pending", &uart->thre_pending);
    state_field(s, "rx_timed_out", &uart->rx_timed_out);
    state_array(s, "rx", uart->rx);
    state_field(s, "rx_head", &uart->rx_head);
    state_field(s, "rx_len", &uart->rx_len);
    state_require(s, uart->rx_head < FIFO_SIZE, "rx_head");
    state_require(s, uart->rx_len <= rx_capacity(uart), "rx_len");
    state_array(s, "out", uart->out);
    state_field(s, "out_len", &uart->out_len);
    state_require(s, uart->out_len <= OUT_SIZE, "out_len");
    if (state_loaded(s)) {
        bool timed_out = uart->rx_timed_out;
        rx_timeout_restart(uart);
        uart->rx_timed_out = timed_out;
        ns16550_flush(uart);
        tell_room(uart);
    }
}

static const struct device_ops ns16550_device_ops = {.name = "ns16550",
                                                     .reset = ns16550_reset,
                                                     .free = ns16550_free,
                                                     .describe = ns16550_describe,
                                                     .state = ns16550_state};

struct ns16550 *ns16550_new(const struct ns16550_config *config, struct err *err)
{
    struct ns16550 *uart = calloc(1, sizeof(*uart));
    if (!uart) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    uart->device.ops = &ns16550_device_ops;
    uart->config = *config;
    clock_timer_init(&uart->flush_timer, flush_timer_expired, uart);
    clock_timer_init(&uart->rx_timer, rx_timer_expired, uart);
    if (mem_add_pio(config->mem, config->port, 8, &uart_ops, uart, "ns16550", err) < 0) {
        free(uart);
        return NULL;
    }
    ns16550_reset(&uart->device);
    return uart;
}

struct device *ns16550_device(struct ns16550 *uart)
{
    return &uart->device;
}
