/* See watchdog.h. */
#include "dev/legacy/watchdog.h"

#include <errno.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/state.h"
#include "base/util.h"
#include "mem/mem.h"

#define PERIOD_NS (WATCHDOG_PERIOD_MS * 1000000ull)

struct watchdog {
    struct device device;
    struct watchdog_config config;
    struct clock_timer timer;
    uint32_t count;
    bool running, fired;
};

static void restart(struct watchdog *dog)
{
    clock_timer_cancel(dog->config.clock, &dog->timer);
    if (dog->running) {
        uint64_t deadline = clock_now_ns(dog->config.clock) + MAX(dog->count, 1u) * PERIOD_NS;
        clock_timer_arm(dog->config.clock, &dog->timer, deadline);
    }
}

static uint32_t remains(const struct watchdog *dog)
{
    uint64_t now = clock_now_ns(dog->config.clock);
    if (!dog->running || dog->timer.deadline_ns <= now) {
        return dog->running ? 0 : dog->count;
    }
    return (uint32_t)((dog->timer.deadline_ns - now + PERIOD_NS - 1) / PERIOD_NS);
}

static void on_timer(void *opaque)
{
    struct watchdog *dog = opaque;
    dog->running = false;
    dog->fired = true;
    dog->config.fired(dog->config.opaque);
}

/* Registers are read and written whole; other accesses read as ones and write nothing. */
static uint64_t watchdog_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct watchdog *dog = opaque;
    if (size != 4) {
        return UINT64_MAX;
    }
    switch (offset) {
    case WATCHDOG_CONTROL: return dog->running;
    case WATCHDOG_COUNT: return dog->count;
    case WATCHDOG_REMAINS: return remains(dog);
    case WATCHDOG_STATUS: return dog->fired;
    default: return UINT64_MAX;
    }
}

static void watchdog_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct watchdog *dog = opaque;
    if (size != 4) {
        return;
    }
    switch (offset) {
    case WATCHDOG_CONTROL: dog->running = value & 1; break;
    case WATCHDOG_COUNT: dog->count = (uint32_t)value & WATCHDOG_COUNT_MAX; break;
    case WATCHDOG_STATUS: dog->fired = dog->fired && (value & 1); return;
    default: break;
    }
    restart(dog);
}

static const struct mem_io_ops watchdog_ops = {watchdog_read, watchdog_write};

static void watchdog_reset(struct device *dev)
{
    struct watchdog *dog = CONTAINER_OF(dev, struct watchdog, device);
    dog->running = false;
    dog->count = WATCHDOG_COUNT_MAX;
    restart(dog);
}

static void watchdog_free(struct device *dev)
{
    struct watchdog *dog = CONTAINER_OF(dev, struct watchdog, device);
    clock_timer_cancel(dog->config.clock, &dog->timer);
    free(dog);
}

static unsigned watchdog_describe(const struct device *dev, char *buf, unsigned size)
{
    const struct watchdog *dog = CONTAINER_OF(dev, const struct watchdog, device);
    int n = snprintf(buf, size, "running=%d count=%u remains=%u fired=%d\n", dog->running, dog->count,
                     remains(dog), dog->fired);
    return MIN((unsigned)MAX(n, 0), size);
}

static void watchdog_state(struct device *dev, struct state *s)
{
    struct watchdog *dog = CONTAINER_OF(dev, struct watchdog, device);
    uint64_t deadline_ns = dog->running ? dog->timer.deadline_ns : 0;
    state_field(s, "running", &dog->running);
    state_field(s, "fired", &dog->fired);
    state_field(s, "count", &dog->count);
    state_field(s, "deadline_ns", &deadline_ns);
    state_require(s, dog->count <= WATCHDOG_COUNT_MAX, "count");
    state_require(s, deadline_ns < CLOCK_NEVER / 2, "deadline_ns");
    if (state_loaded(s) && dog->running) {
        (void)clock_timer_arm(dog->config.clock, &dog->timer, deadline_ns);
    }
}

static const struct device_ops watchdog_device_ops = {.name = "watchdog",
                                                      .reset = watchdog_reset,
                                                      .free = watchdog_free,
                                                      .describe = watchdog_describe,
                                                      .state = watchdog_state};

struct watchdog *watchdog_new(const struct watchdog_config *config, struct err *err)
{
    struct watchdog *dog = calloc(1, sizeof(*dog));
    if (!dog) {
        err_set(err, -ENOMEM, "out of memory");
        return NULL;
    }
    dog->device.ops = &watchdog_device_ops;
    dog->config = *config;
    clock_timer_init(&dog->timer, on_timer, dog);
    watchdog_reset(&dog->device);
    if (mem_add_pio(config->mem, WATCHDOG_BASE, WATCHDOG_PORTS, &watchdog_ops, dog, "watchdog", err) < 0) {
        free(dog);
        return NULL;
    }
    return dog;
}

struct device *watchdog_device(struct watchdog *dog)
{
    return &dog->device;
}
